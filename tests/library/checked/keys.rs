//! Keys of each architecture: left out, of another type than llama.cpp reads, and with values that it does not take.

use twinscope::gguf::{Array, Value};

use super::{Case, Pieces, of_family};

/// Keys that llama.cpp reads of every architecture.
const OF_ALL: &[&str] = &[
    "context_length",
    "embedding_length",
    "block_count",
    "embedding_length_out",
    "feed_forward_length",
    "nextn_predict_layers",
    "pooling_type",
    "classifier.pooling_type",
    "classifier.output_labels",
    "expert_count",
    "expert_used_count",
    "expert_group_count",
    "expert_group_used_count",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.key_length_swa",
    "attention.value_length_swa",
    "attention.causal",
    "attention.layer_norm_rms_epsilon",
    "rope.freq_base",
    "rope.dimension_count",
    "rope.dimension_count_swa",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scale_linear",
    "rope.scaling.alpha",
    "rope.scaling.attn_factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
];

/// Keys that it reads of some.
const OF_SOME: &[&str] = &[
    "vocab_size",
    "expert_feed_forward_length",
    "expert_shared_feed_forward_length",
    "expert_shared_count",
    "expert_weights_scale",
    "expert_weights_norm",
    "expert_gating_func",
    "leading_dense_block_count",
    "attention.q_lora_rank",
    "attention.kv_lora_rank",
    "attention.key_length_mla",
    "attention.value_length_mla",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "attention.temperature_scale",
    "attention.temperature_length",
    "attention.recurrent_layers",
    "attention.scale",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "full_attention_interval",
    "logit_scale",
    "rope.freq_base_swa",
    "rope.dimension_sections",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_log_multiplier",
    "ssm.conv_kernel",
    "ssm.inner_size",
    "ssm.state_size",
    "ssm.time_step_rank",
    "ssm.group_count",
];

/// Of a family of each architecture, keys left out and of other types, and values that are none.
pub fn of_keys() -> Vec<Case> {
    let mut all = Vec::new();
    let families = [
        "llama",
        "mistral3",
        "qwen2",
        "qwen2moe",
        "qwen3-yarn",
        "olmoe",
        "gemma3",
        "glm4moe",
        "gpt-oss",
        "qwen3next",
        "qwen35",
        "qwen35moe",
        "deepseek3",
    ];
    for family in families {
        let (gguf, base) = of_family(family);
        let architecture = gguf.metadata.str("general.architecture").unwrap().to_string();
        let own = |key: &str| format!("{architecture}.{key}");
        let mut add = |what: String, rule, edit: &dyn Fn(&mut Pieces)| {
            let mut pieces = base.clone();
            edit(&mut pieces);
            let name = format!("{family}: {what}");
            all.push(Case { name, files: vec![("family.gguf".into(), pieces.bytes())], rule });
        };
        let widely = matches!(family, "llama" | "deepseek3");
        for key in OF_ALL.iter().filter(|_| widely).chain(OF_SOME) {
            let there = gguf.metadata.get(&own(key)).is_some() || *key == "vocab_size";
            if there {
                add(format!("no {key}"), Some(""), &|p| p.drop_key(&own(key)));
                add(format!("{key} as u64"), Some(""), &|p| p.set(&own(key), Value::U64(1)));
            } else {
                add(format!("{key} as u32"), Some(""), &|p| p.set(&own(key), Value::U32(1)));
                add(format!("{key} as f32"), Some(""), &|p| p.set(&own(key), Value::F32(1.0)));
                if widely {
                    add(format!("{key} as a string"), Some(""), &|p| p.set(&own(key), Value::String("none".into())));
                    let one = Value::Array(Array::F32(vec![1.0]));
                    add(format!("{key} as an array"), Some(""), &|p| p.set(&own(key), one.clone()));
                }
            }
        }
        let moe = gguf.metadata.get(&own("expert_count")).is_some();
        let layers = gguf.metadata.u32(&own("block_count")).unwrap() as usize;
        let mut set = |what: &str, rule, keys: &[(&str, Value)]| {
            add(what.to_string(), rule, &|p| keys.iter().for_each(|(key, value)| p.set(&own(key), value.clone())));
        };
        let value = Some("key-value");
        let scaling = |kind: &str| [("rope.scaling.type", Value::String(kind.into()))];
        set("an unknown kind of scaling", value, &scaling("dynamic"));
        set("more layers that guess than there are", value, &[("nextn_predict_layers", Value::U32(99))]);
        let longer = Value::U32(2 * gguf.metadata.u32(&own("embedding_length")).unwrap());
        let unknown = ("a_key_of_next_year", Value::U32(1));
        set("longer heads beside an unknown key", Some(""), &[("attention.key_length", longer), unknown.clone()]);
        if moe {
            set("no experts", value, &[("expert_count", Value::U32(0))]);
            let counts = [("expert_count", Value::U32(0)), ("expert_used_count", Value::U32(0))];
            set("no experts and none used", Some(""), &counts);
        }
        match family {
            "llama" => {
                set("scaling by longrope", Some(""), &scaling("longrope"));
                set(
                    "labels of a classifier",
                    Some(""),
                    &[("classifier.output_labels", Value::Array(Array::String(vec!["a".into()])))],
                );
                let flags = vec![true; layers];
                set(
                    "heads for each layer as bool",
                    Some(""),
                    &[("attention.head_count_kv", Value::Array(Array::Bool(flags)))],
                );
            }
            "mistral3" => {
                let none = ("rope.scaling.original_context_length", Value::U32(0));
                set(
                    "a temperature and no original context",
                    value,
                    &[("attention.temperature_scale", Value::F32(0.1)), none],
                );
            }
            "gemma3" => {
                let pattern = |value: Value| ("attention.sliding_window_pattern", value);
                let numbers = |n: usize| Value::Array(Array::U32(vec![1; n]));
                set("a pattern of bool", Some(""), &[pattern(Value::Array(Array::Bool(vec![true; layers])))]);
                set("a pattern of two layers", Some(""), &[pattern(numbers(2))]);
                set("a pattern of 513 layers", Some("key-length"), &[pattern(numbers(513))]);
                set("a pattern of f32", Some("key-type"), &[pattern(Value::Array(Array::F32(vec![1.0])))]);
                let off = ("attention.sliding_window", Value::U32(0));
                set("a pattern of no windows", Some(""), &[off, pattern(Value::String("none".into()))]);
            }
            "glm4moe" | "deepseek3" => {
                for (n, rule) in [(0, ""), (1, ""), (2, ""), (4, ""), (5, "key-value")] {
                    set(&format!("gating {n}"), Some(rule), &[("expert_gating_func", Value::U32(n))]);
                }
                for n in [0, 1, layers as u32, 99] {
                    set(&format!("{n} leading layers"), Some(""), &[("leading_dense_block_count", Value::U32(n))]);
                }
                let sections = |n: usize| [("rope.dimension_sections", Value::Array(Array::I32(vec![0; n])))];
                set("4 sections", Some(""), &sections(4));
                set("3 sections", Some(""), &sections(3));
                if family == "deepseek3" {
                    let scale = ("attention.temperature_scale", Value::F32(0.1));
                    set("a temperature without its length", value, std::slice::from_ref(&scale));
                    set("a temperature", Some(""), &[scale, ("attention.temperature_length", Value::U32(8))]);
                    set("heads that turn whole", value, &[("rope.dimension_count", Value::U32(4096))]);
                    set("26 layers", Some(""), &[("block_count", Value::U32(26))]);
                }
            }
            "gpt-oss" => set("windows of nothing", Some(""), &[("attention.sliding_window", Value::U32(0))]),
            "qwen3next" | "qwen35" | "qwen35moe" => {
                set("an interval of 0", Some(""), &[("full_attention_interval", Value::U32(0))]);
                let linear = |value: Value| ("attention.recurrent_layers", value);
                let interval = gguf.metadata.u32_opt(&own("full_attention_interval")).unwrap().unwrap_or(4) as usize;
                let flags: Vec<bool> = (0..layers).map(|n| (n + 1) % interval != 0).collect();
                let numbers = flags.iter().map(|flag| u32::from(*flag)).collect();
                set("linear layers", Some(""), &[linear(Value::Array(Array::Bool(flags.clone())))]);
                set("linear layers as numbers", Some(""), &[linear(Value::Array(Array::U32(numbers)))]);
                let listed = linear(Value::Array(Array::Bool(flags.clone())));
                set(
                    "linear layers and an interval of 0",
                    Some(""),
                    &[listed.clone(), ("full_attention_interval", Value::U32(0))],
                );
                set(
                    "linear layers and an interval as f32",
                    Some(""),
                    &[listed, ("full_attention_interval", Value::F32(4.0))],
                );
                set(
                    "linear layers of more",
                    Some("key-length"),
                    &[linear(Value::Array(Array::Bool([&flags[..], &[true]].concat())))],
                );
                for key in
                    ["ssm.conv_kernel", "ssm.inner_size", "ssm.state_size", "ssm.time_step_rank", "ssm.group_count"]
                {
                    let is = gguf.metadata.u32(&own(key)).unwrap();
                    set(&format!("{key} 0"), value, &[(key, Value::U32(0))]);
                    set(&format!("{key} twice"), Some(""), &[(key, Value::U32(2 * is))]);
                    set(
                        &format!("{key} twice beside an unknown key"),
                        Some(""),
                        &[(key, Value::U32(2 * is)), unknown.clone()],
                    );
                }
                for (name, of) in [
                    ("3 sections", Array::I32(vec![1; 3])),
                    ("4 sections as u32", Array::U32(vec![1; 4])),
                    ("4 sections as f32", Array::F32(vec![1.0; 4])),
                    ("5 sections", Array::I32(vec![1; 5])),
                ] {
                    set(name, Some(""), &[("rope.dimension_sections", Value::Array(of))]);
                }
                set("a section as i32", Some(""), &[("rope.dimension_sections", Value::I32(1))]);
            }
            _ => {}
        }
    }
    all
}
