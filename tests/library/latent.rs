//! `deepseek2`: what its keys and tensors mean, in files of today and in older ones.

use crate::families::{open, with_keys};
use twinscope::gguf::Value;
use twinscope::model::{Ffn, LatentHeads, Mixer, Router};
use twinscope::op::{GroupScore, Groups, Mla, Pairing, Weight};

fn u32(x: u32) -> Option<Value> {
    Some(Value::U32(x))
}

fn f32(x: f32) -> Option<Value> {
    Some(Value::F32(x))
}

#[test]
fn sizes_routers_and_scales_of_both_forms() {
    let (model, _) = open("deepseek3");
    let (c, mla, moe) = (&model.config, model.config.mla.unwrap(), model.config.moe.as_ref().unwrap());
    assert_eq!((mla.form, mla.rank, mla.q_rank, mla.turned, mla.value_dim), (Mla::Absorbed, 64, Some(64), 16, 32));
    assert_eq!((c.heads, c.kv_heads, c.head_dim, c.rotation.pairing), (4, 1, 48, Pairing::Norm));
    assert_eq!(c.cache_widths(), [80, 64]);
    let groups = |by| Some(Groups { count: 4, used: 2, by });
    assert_eq!((moe.router, moe.choice_bias, moe.groups), (Router::BiasedSigmoids, true, groups(GroupScore::TopTwo)));
    assert_eq!((moe.renormalise, moe.scale, moe.shared, moe.leading_dense), (true, 2.5, 32, 1));
    // YaRN by 4 is in the scale, with `mscale_all_dim` 1, and not in cosines and sines.
    let scale = (1.0 + 0.1 * 4f64.ln()).powi(2) / 48f64.sqrt();
    assert!((c.attention_scale.unwrap() / scale - 1.0).abs() < 1e-15, "{:?}", c.attention_scale);
    assert_eq!(c.rotation.yarn.unwrap().magnitude, 1.0);
    for (n, layer) in model.weights.layers.iter().enumerate() {
        assert_eq!(matches!(layer.ffn, Ffn::Dense { .. }), n == 0, "layer {n}");
    }

    let (model, _) = open("deepseek2");
    let (c, mla, moe) = (&model.config, model.config.mla.unwrap(), model.config.moe.as_ref().unwrap());
    assert_eq!((mla.form, mla.rank, mla.q_rank, mla.turned, mla.value_dim), (Mla::Plain, 32, None, 16, 32));
    assert_eq!((c.heads, c.kv_heads, c.head_dim, c.attention_scale), (4, 4, 48, None));
    assert_eq!(c.cache_widths(), [192, 128]);
    assert_eq!((moe.router, moe.choice_bias, moe.groups), (Router::Softmax, false, groups(GroupScore::Max)));
    assert_eq!((moe.renormalise, moe.scale, moe.shared, moe.leading_dense), (false, 1.0, 64, 0));
    let defaults: Vec<_> = c.keys.defaults.iter().map(|d| format!("{} {}", d.key, d.value)).collect();
    for default in ["rope.freq_base 10000.0", "expert_weights_scale 1.0", "expert_weights_norm false"] {
        assert!(defaults.iter().any(|d| d == default), "{default}: {defaults:?}");
    }
    // llama.cpp takes another score of a group there, and it is said.
    assert!(format!("{:?}", c.keys).contains("group_limited_greedy"), "{:?}", c.keys);
}

/// Of each head the rows of the older weight are those that make its key, and then those that make its value.
#[test]
fn the_weight_of_keys_and_values_is_taken_apart_by_heads() {
    let (model, _) = open("deepseek2");
    let Mixer::Latent(latent) = &model.weights.layers[1].mixer else { panic!("latent attention") };
    let LatentHeads::Plain { k, v } = &latent.heads else { panic!("keys and values") };
    assert_eq!(([k.cols, k.rows, k.experts], [v.cols, v.rows, v.experts]), ([32, 32, 4], [32, 32, 4]));
    let of = |weight: &Weight, head| (0..32).flat_map(|row| weight.row(head, row).to_vec()).collect::<Vec<u8>>();
    let apart: Vec<u8> = (0..4).flat_map(|head| [of(k, head), of(v, head)].concat()).collect();
    assert!(apart == model.gguf.data(model.gguf.tensor("blk.1.attn_kv_b.weight").unwrap()));
}

#[test]
fn keys_of_deepseek2_are_read_or_refused_by_name() {
    for (family, key, value, words) in [
        ("deepseek3", "rope.scaling.yarn_log_multiplier", None, "engines disagree on YaRN"),
        ("deepseek3", "rope.scaling.yarn_log_multiplier", f32(0.0), "engines disagree on YaRN"),
        ("deepseek3", "rope.scaling.yarn_attn_factor", f32(1.2), "engines disagree on another"),
        ("deepseek3", "attention.head_count_kv", u32(4), "1 was expected of latent attention, found 4"),
        ("deepseek2", "attention.head_count_kv", u32(1), "4 was expected of latent attention, found 1"),
        ("deepseek3", "attention.key_length", u32(64), "80 was expected"),
        ("deepseek3", "attention.value_length", u32(80), "64 was expected"),
        ("deepseek3", "attention.value_length_mla", None, "both or neither are expected"),
        ("deepseek3", "attention.kv_lora_rank", None, "attention.kv_lora_rank"),
        ("deepseek3", "attention.q_lora_rank", None, "tensor blk.0.attn_q.weight: is missing"),
        ("deepseek2", "rope.dimension_count", u32(48), "an even number below 48 was expected"),
        ("deepseek2", "rope.dimension_count", u32(15), "an even number below 48 was expected"),
        ("deepseek3", "expert_gating_func", u32(3), "1, a softmax, or 2, sigmoids, is expected"),
        ("deepseek3", "expert_group_count", u32(5), "groups of two or more of 12 experts"),
        ("deepseek3", "expert_group_count", u32(12), "groups of two or more of 12 experts"),
        ("deepseek3", "expert_group_used_count", u32(5), "1 to 4, with 3 experts or more"),
        ("deepseek2", "expert_group_used_count", u32(1), "1 to 4, with 4 experts or more"),
        ("deepseek3", "attention.temperature_scale", f32(0.1), "could change the result"),
    ] {
        let e =
            with_keys(family, &[(key, value.clone())]).err().unwrap_or_else(|| panic!("{key} {value:?}: not refused"));
        assert!(e.contains(key) || words.contains("tensor"), "{key}: {e}");
        assert!(e.contains(words), "{key}: {e}");
    }
    let moe = |key: &str, value| with_keys("deepseek2", &[(key, value)]).unwrap().moe.unwrap();
    assert!(moe("expert_weights_norm", Some(Value::Bool(true))).renormalise);
    assert_eq!(moe("expert_weights_scale", f32(16.0)).scale, 16.0);
    assert_eq!(moe("expert_weights_scale", f32(0.0)).scale, 1.0);
    assert_eq!(moe("expert_gating_func", u32(2)).router, Router::BiasedSigmoids);
    assert_eq!(moe("expert_group_count", u32(1)).groups, None);
    assert_eq!(moe("expert_group_used_count", u32(4)).groups, None);
    // V2 Lite's `mscale_all_dim`, of which the file has a tenth.
    let scale = with_keys("deepseek3", &[("rope.scaling.yarn_log_multiplier", f32(0.0707))]).unwrap().attention_scale;
    let expected = (1.0 + 0.1 * 0.707 * 4f64.ln()).powi(2) / 48f64.sqrt();
    assert!((scale.unwrap() / expected - 1.0).abs() < 1e-7, "{scale:?} where {expected} was expected");
}
