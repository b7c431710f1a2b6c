//! What of an architecture's keys llama.cpp would refuse: a type that it does not read, a key that it does not do without, a value that it asserts.
//!
//! - One table says how its loader reads each key: `llama_model_base::load_hparams`, and the `load_arch_hparams` of the architectures that are known here
//!   (`src/models` of its source). Which architectures' it is, their descriptions say.

use super::super::arch::{LinearRule, Occurs, Router, Shared};
use super::{Architecture, of_type};
use crate::gguf::FindingSeverity::Refused;
use crate::gguf::{Array, FoundInFile, Metadata, Value, ValueType};

/// How llama.cpp's loader reads a key.
#[derive(Clone, Copy)]
enum Reads {
    /// `get_key`: one value, of this type and no other.
    One(ValueType),
    /// `get_key_or_arr`: one u32, or an array with a number for each layer.
    EachLayer,
    /// `get_key_or_arr` of so many numbers: one i32, or an array of so many.
    Several(u64),
    /// `get_arr`, else `get_key`: an array of numbers, of at most [`MOST_LAYERS`], or one u32.
    NumbersOrOne,
    /// `get_arr`: an array of strings; what is no array is left out.
    Names,
}

impl Reads {
    /// What was expected of a value that is not so, and whether of its type or its length.
    fn expected(self, value: &Value, layers: Option<u64>) -> Option<(&'static str, String)> {
        let numbers = match value {
            Value::Array(all @ (Array::U32(_) | Array::I32(_) | Array::Bool(_))) => Some(all.len() as u64),
            _ => None,
        };
        let many = |fits: bool, what: String| (!fits).then_some(("key-length", what));
        const NUMBERS: &str = "u32, i32 or bool";
        let ty = match (self, value, numbers) {
            (Self::One(ty), value, _) if value.value_type() == ty => return None,
            (Self::EachLayer | Self::NumbersOrOne, Value::U32(_), _) | (Self::Several(_), Value::I32(_), _) => {
                return None;
            }
            (Self::Names, Value::Array(Array::String(_)), _) => return None,
            (Self::EachLayer, _, Some(n)) => {
                let layers = layers?;
                return many(n == layers, format!("as many as layers, {layers},"));
            }
            (Self::Several(all), _, Some(n)) => return many(n == all, format!("an array of {all}")),
            (Self::NumbersOrOne, _, Some(n)) => {
                return many(n <= MOST_LAYERS, format!("an array of {MOST_LAYERS} at most"));
            }
            (Self::Names, value, _) if value.value_type() != ValueType::Array => return None,
            (Self::One(ty), ..) => ty.name().to_string(),
            (Self::EachLayer | Self::NumbersOrOne, ..) => format!("u32, or an array of {NUMBERS},"),
            (Self::Several(all), ..) => format!("an array of {all} {NUMBERS}, or i32,"),
            (Self::Names, ..) => "an array of strings".to_string(),
        };
        Some(("key-type", ty))
    }
}

/// llama.cpp's `LLAMA_MAX_LAYERS`.
const MOST_LAYERS: u64 = 512;

/// A key, how it is read, and where.
struct KeyRule {
    key: &'static str,
    reads: Reads,
    /// Whether the loader comes to read it.
    read: fn(&CheckedKeys<'_>) -> bool,
    /// Whether it does not do without.
    needed: bool,
}

const fn optional(key: &'static str, reads: Reads, read: fn(&CheckedKeys<'_>) -> bool) -> KeyRule {
    KeyRule { key, reads, read, needed: false }
}

const fn needed(key: &'static str, reads: Reads, read: fn(&CheckedKeys<'_>) -> bool) -> KeyRule {
    KeyRule { key, reads, read, needed: true }
}

const U32: Reads = Reads::One(ValueType::U32);
const F32: Reads = Reads::One(ValueType::F32);
const BOOL: Reads = Reads::One(ValueType::Bool);
const STRING: Reads = Reads::One(ValueType::String);

fn all(_: &CheckedKeys<'_>) -> bool {
    true
}
fn linear(keys: &CheckedKeys<'_>) -> bool {
    keys.architecture.linear.is_some()
}
fn latent(keys: &CheckedKeys<'_>) -> bool {
    keys.architecture.latent
}
/// Of YaRN in the file's own numbers, and attention's temperature.
fn temperature(keys: &CheckedKeys<'_>) -> bool {
    keys.architecture.temperature
}
fn temperature_or_latent(keys: &CheckedKeys<'_>) -> bool {
    temperature(keys) || latent(keys)
}
/// Routers of which the file says how they weigh.
fn stated_router(keys: &CheckedKeys<'_>) -> bool {
    matches!(keys.architecture.router, Router::BiasedSigmoids | Router::Stated)
}
fn expert_width(keys: &CheckedKeys<'_>) -> bool {
    keys.architecture.experts != Occurs::Never && keys.architecture.expert_width != Occurs::Never
}
/// A layer has a plain FFN, or one of experts that have no width of their own, be it the one that every token uses.
fn plain_width(keys: &CheckedKeys<'_>) -> bool {
    let (a, absent) = (keys.architecture, |key: &str| keys.get(key).is_none());
    let moe = a.experts == Occurs::Always || a.experts == Occurs::Optional && keys.number("expert_count") > Some(0);
    !moe || a.expert_width == Occurs::Never
        || a.expert_width == Occurs::Optional && absent("expert_feed_forward_length")
        || a.shared_expert == Shared::Gated && absent("expert_shared_feed_forward_length")
        || a.leading_dense && keys.number("leading_dense_block_count") > Some(0)
}
fn windows(keys: &CheckedKeys<'_>) -> bool {
    keys.architecture.windows.is_some()
}
/// The definition has a window, of a size that llama.cpp does not know.
fn always_windows(keys: &CheckedKeys<'_>) -> bool {
    keys.architecture.windows.is_some_and(|rule| rule.keys.is_some())
}
/// What windows have besides is read where there are some.
fn has_windows(keys: &CheckedKeys<'_>) -> bool {
    always_windows(keys) || windows(keys) && keys.number("attention.sliding_window").is_some_and(|window| window > 0)
}

/// How llama.cpp reads the keys of the architectures that are known here.
#[rustfmt::skip] // a table
const KEYS: &[KeyRule] = &[
    needed("context_length", U32, all),
    needed("embedding_length", U32, all),
    needed("block_count", U32, all),
    optional("embedding_length_out", U32, all),
    needed("feed_forward_length", Reads::EachLayer, plain_width),
    optional("feed_forward_length", Reads::EachLayer, all),
    optional("nextn_predict_layers", U32, all),
    optional("pooling_type", U32, all),
    optional("classifier.pooling_type", U32, all),
    optional("classifier.output_labels", Reads::Names, all),
    optional("vocab_size", U32, |keys| keys.counts_vocabulary() || keys.without_vocabulary()),
    needed("expert_count", U32, |keys| keys.architecture.experts == Occurs::Always),
    optional("expert_count", U32, |keys| keys.architecture.experts != Occurs::Always),
    optional("expert_used_count", Reads::EachLayer, all),
    optional("expert_group_count", U32, all),
    optional("expert_group_used_count", U32, all),
    needed("expert_feed_forward_length", Reads::EachLayer, |keys| {
        expert_width(keys) && keys.architecture.expert_width == Occurs::Always
    }),
    optional("expert_feed_forward_length", Reads::EachLayer, expert_width),
    optional("expert_shared_feed_forward_length", U32, |keys| keys.architecture.shared_expert == Shared::Gated),
    needed("expert_shared_count", U32, |keys| keys.architecture.shared_expert == Shared::Plain),
    optional("expert_weights_scale", F32, stated_router),
    optional("expert_weights_norm", BOOL, stated_router),
    optional("expert_gating_func", U32, stated_router),
    optional("leading_dense_block_count", U32, |keys| keys.architecture.leading_dense),
    needed("attention.head_count", Reads::EachLayer, all),
    optional("attention.head_count_kv", Reads::EachLayer, all),
    needed("attention.layer_norm_rms_epsilon", F32, all),
    optional("attention.key_length", U32, all),
    optional("attention.value_length", U32, all),
    optional("attention.key_length_swa", U32, all),
    optional("attention.value_length_swa", U32, all),
    optional("attention.causal", BOOL, all),
    needed("attention.q_lora_rank", U32, |keys| latent(keys) && !keys.is_lite()),
    needed("attention.kv_lora_rank", U32, latent),
    optional("attention.key_length_mla", U32, latent),
    optional("attention.value_length_mla", U32, latent),
    needed("attention.sliding_window", U32, always_windows),
    optional("attention.sliding_window", U32, windows),
    optional("attention.sliding_window_pattern", Reads::NumbersOrOne, has_windows),
    optional("attention.temperature_scale", F32, temperature_or_latent),
    optional("attention.temperature_length", U32, latent),
    optional("attention.recurrent_layers", Reads::EachLayer, linear),
    optional("full_attention_interval", U32, |keys| linear(keys) && keys.get("attention.recurrent_layers").is_none()),
    optional("final_logit_softcapping", F32, |keys| keys.architecture.scaled_embedding),
    optional("rope.freq_base", F32, all),
    optional("rope.freq_base_swa", F32, has_windows),
    optional("rope.dimension_count", U32, all),
    optional("rope.dimension_count_swa", U32, all),
    needed("rope.dimension_sections", Reads::Several(4), |keys| keys.architecture.linear.is_some_and(|LinearRule { sections, .. }| sections)),
    optional("rope.dimension_sections", Reads::Several(4), |keys| keys.architecture.name == "glm4moe"),
    optional("rope.scaling.type", STRING, all),
    optional("rope.scaling.factor", F32, all),
    optional("rope.scale_linear", F32, |keys| keys.get("rope.scaling.factor").is_none()),
    optional("rope.scaling.alpha", F32, all),
    optional("rope.scaling.attn_factor", F32, all),
    optional("rope.scaling.finetuned", BOOL, all),
    optional("rope.scaling.original_context_length", U32, all),
    optional("rope.scaling.yarn_beta_fast", F32, temperature),
    optional("rope.scaling.yarn_beta_slow", F32, temperature),
    optional("rope.scaling.yarn_log_multiplier", F32, temperature_or_latent),
    needed("ssm.conv_kernel", U32, linear),
    needed("ssm.inner_size", U32, linear),
    needed("ssm.state_size", U32, linear),
    needed("ssm.time_step_rank", U32, linear),
    needed("ssm.group_count", U32, linear),
];

/// Keys that llama.cpp reads whatever the architecture.
pub(super) fn general(meta: &Metadata, found: &mut FoundInFile) {
    of_type(meta, "general.name", ValueType::String, found);
    of_type(meta, "general.file_type", ValueType::U32, found);
    // Tensors that are not multiplied by 4-bit activations.
    const NAMES: &str = "general.tensor_extra.name";
    const FLAGS: &str = "general.tensor_extra.prec_a4";
    let names = match meta.get(NAMES) {
        Some(Value::Array(Array::String(names))) => names.len(),
        Some(Value::Array(other)) => {
            let what = format!("an array of strings was expected, found one of {}", other.element_type().name());
            return found.add(Refused, "key-type", &format!("key {NAMES}"), what);
        }
        _ => return, // which is read as none
    };
    match meta.get(FLAGS) {
        Some(Value::Array(Array::Bool(flags))) if flags.len() == names => {}
        other => {
            let is = other.map_or("none".to_string(), ToString::to_string);
            let what = format!("an array of {names} bool was expected, one for each of {NAMES}, found {is}");
            found.add(Refused, "key-type", &format!("key {FLAGS}"), what);
        }
    }
}

/// The keys of an architecture's namespace.
pub(super) struct CheckedKeys<'a> {
    pub meta: &'a Metadata,
    pub architecture: &'static Architecture,
}

impl CheckedKeys<'_> {
    pub(super) fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture.name)
    }

    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.meta.get(&self.full(key))
    }

    pub(super) fn number(&self, key: &str) -> Option<u64> {
        self.get(key).and_then(Value::as_integer).and_then(|n| u64::try_from(n).ok())
    }

    /// The number of a layer, of a key that has one for all or one for each.
    pub(super) fn of_layer(&self, key: &str, layer: u64) -> Option<u64> {
        let at = usize::try_from(layer).ok()?;
        match self.get(key)? {
            Value::Array(Array::U32(all)) => all.get(at).map(|n| u64::from(*n)),
            Value::Array(Array::I32(all)) => all.get(at).and_then(|n| u64::try_from(*n).ok()),
            Value::Array(Array::Bool(all)) => all.get(at).map(|n| u64::from(*n)),
            _ => self.number(key),
        }
    }

    pub(super) fn refused(&self, found: &mut FoundInFile, rule: &'static str, key: &str, what: String) {
        found.add(Refused, rule, &format!("key {}", self.full(key)), what);
    }

    /// Whether the architecture's loader asks how large the vocabulary is.
    fn counts_vocabulary(&self) -> bool {
        matches!(self.architecture.name, "llama" | "deepseek2")
    }

    /// Whether the file has no tokens, so that `vocab_size` says how many there are.
    pub(super) fn without_vocabulary(&self) -> bool {
        let kind = self.meta.get("tokenizer.ggml.model");
        matches!(kind, Some(Value::String(kind)) if matches!(kind.as_str(), "no_vocab" | "none"))
    }

    /// How many layers are no such as guess further tokens.
    pub(super) fn own_layers(&self) -> u64 {
        self.number("block_count").unwrap_or(0).saturating_sub(self.number("nextn_predict_layers").unwrap_or(0))
    }

    /// Whether llama.cpp takes a model of latent attention for one whose queries have no latent.
    fn is_lite(&self) -> bool {
        let listed = || self.meta.str_array("tokenizer.ggml.tokens").ok().map(|tokens| tokens.len() as u64);
        let tokens = self.number("vocab_size").or_else(listed);
        matches!((self.own_layers(), tokens), (26 | 27, _) | (48, Some(128_256)))
    }

    /// Each key is of a type that llama.cpp reads, and those that it does not do without are there.
    pub(super) fn types(&self, found: &mut FoundInFile) {
        for rule in KEYS.iter().filter(|rule| (rule.read)(self)) {
            // What is needed of some architectures is there twice.
            let again =
                !rule.needed && KEYS.iter().any(|other| other.needed && other.key == rule.key && (other.read)(self));
            if again {
                continue;
            }
            match self.get(rule.key) {
                Some(value) => {
                    if let Some((kind, expected)) = rule.reads.expected(value, self.number("block_count")) {
                        self.refused(found, kind, rule.key, format!("{expected} was expected, found {value}"));
                    }
                }
                None if rule.needed => {
                    self.refused(found, "key-missing", rule.key, "is missing; llama.cpp has nothing for it".into());
                }
                None => {}
            }
        }
    }

    /// What `llama_model_base::load_hparams` asserts.
    pub(super) fn numbers(&self, found: &mut FoundInFile) {
        /// The second is its `LLAMA_MAX_EXPERTS`.
        const MOST: [(&str, u64); 2] = [("block_count", MOST_LAYERS), ("expert_count", 1024)];
        for (key, most) in MOST {
            if let Some(n) = self.number(key).filter(|n| *n > most) {
                self.refused(found, "key-value", key, format!("{most} at most was expected, found {n}"));
            }
        }
        if self.number("block_count") == Some(0) {
            self.refused(found, "key-value", "block_count", "1 or more was expected, found 0".into());
        }
        for key in ["embedding_length", "attention.head_count"].into_iter().filter(|key| self.number(key) == Some(0)) {
            self.refused(found, "key-value", key, "1 or more was expected, found 0".into());
        }
        let [experts, used] = ["expert_count", "expert_used_count"].map(|key| self.number(key).unwrap_or(0));
        let few = u64::from(experts > 0);
        let single = matches!(self.get("expert_used_count"), None | Some(Value::U32(_)));
        if single && !(few..=experts).contains(&used) {
            self.refused(
                found,
                "key-value",
                "expert_used_count",
                format!("{few} to {experts} was expected, found {used}"),
            );
        }
        let [groups, kept] = ["expert_group_count", "expert_group_used_count"].map(|key| self.number(key).unwrap_or(0));
        if groups > 0 && groups >= experts {
            let what = format!("fewer than {experts} were expected, which is expert_count, found {groups}");
            self.refused(found, "key-value", "expert_group_count", what);
        } else if groups > 1 {
            if !experts.is_multiple_of(groups) {
                let what = format!("a divisor of {experts} was expected, which is expert_count, found {groups}");
                self.refused(found, "key-value", "expert_group_count", what);
            }
            if !(1..groups).contains(&kept) {
                let what = format!("1 to {} was expected, found {kept}", groups - 1);
                self.refused(found, "key-value", "expert_group_used_count", what);
            }
        }
        self.of_architecture(found);
        if let (Some(heads), Some(kv_heads)) =
            (self.number("attention.head_count"), self.number("attention.head_count_kv"))
            && kv_heads > 0
            && !heads.is_multiple_of(kv_heads)
        {
            let what = format!("a divisor of {heads} was expected, which is attention.head_count, found {kv_heads}");
            self.refused(found, "key-value", "attention.head_count_kv", what);
        }
        let head = self
            .number("attention.key_length")
            .or_else(|| self.number("embedding_length")?.checked_div(self.number("attention.head_count")?));
        if let (Some(head), Some(turned)) = (head, self.number("rope.dimension_count")) {
            let (part, whole) = (self.architecture.partial_rope, turned == head);
            if turned > head || !(part || whole) {
                let up_to = if part { " at most" } else { "" };
                let what = format!("{head}{up_to} was expected, the size of a head, found {turned}");
                self.refused(found, "key-value", "rope.dimension_count", what);
            }
        }
    }
}

impl CheckedKeys<'_> {
    /// What loaders and graphs of some architectures assert, and that type of scaling must be one.
    fn of_architecture(&self, found: &mut FoundInFile) {
        const SCALING: &[&str] = &["none", "linear", "yarn", "longrope"];
        if let Some(Value::String(kind)) = self.get("rope.scaling.type")
            && !SCALING.contains(&kind.as_str())
        {
            let what = format!("one of {} was expected, found {kind:?}", SCALING.join(", "));
            self.refused(found, "key-value", "rope.scaling.type", what);
        }
        let layers = self.number("block_count").unwrap_or(0);
        if let Some(n) = self.number("nextn_predict_layers").filter(|n| *n > layers) {
            let what = format!("{layers} at most was expected, as many as layers, found {n}");
            self.refused(found, "key-value", "nextn_predict_layers", what);
        }
        let dense = self.number("leading_dense_block_count").filter(|_| self.architecture.leading_dense).unwrap_or(0);
        if self.architecture.experts == Occurs::Always && dense < self.own_layers() {
            if self.number("expert_count") == Some(0) {
                self.refused(found, "key-value", "expert_count", "1 or more was expected, found 0".into());
            }
            if let Some(n) = self.number("expert_gating_func").filter(|n| *n > 4 && stated_router(self)) {
                self.refused(found, "key-value", "expert_gating_func", format!("0 to 4 was expected, found {n}"));
            }
        }
        if linear(self) {
            self.linear(found);
        }
        if temperature_or_latent(self)
            && matches!(self.get("attention.temperature_scale"), Some(Value::F32(scale)) if *scale != 0.0)
        {
            // Of positions, so many of which have the same temperature.
            let key =
                if latent(self) { "attention.temperature_length" } else { "rope.scaling.original_context_length" };
            let context = if latent(self) { None } else { self.number("context_length") };
            if self.number(key).or(context).unwrap_or(0) == 0 {
                let what = "1 or more was expected, as attention.temperature_scale is not 0, found 0 or none";
                self.refused(found, "key-value", key, what.into());
            }
        }
        if latent(self) {
            self.latent(found);
        }
        if has_windows(self) {
            let pattern = "attention.sliding_window_pattern";
            let one_of_each = match self.get(pattern) {
                Some(Value::U32(period)) => *period == 1,
                // What is said of layers beyond these is nothing; a file may claim billions.
                Some(Value::Array(all)) => {
                    let said = self.own_layers().min(all.len() as u64).min(MOST_LAYERS);
                    (0..said).all(|n| self.of_layer(pattern, n).unwrap_or(0) == 0)
                }
                _ => false,
            };
            if one_of_each {
                let what = "a window in some layer was expected, as there is attention.sliding_window, found none";
                self.refused(found, "key-value", pattern, what.into());
            }
        }
    }

    /// Whether keys and values of heads are made of what latent attention stores, as the tensors of newer files have it.
    pub(super) fn is_absorbed(&self) -> bool {
        ["attention.key_length_mla", "attention.value_length_mla"].iter().all(|key| self.number(key) > Some(0))
    }

    /// Latent attention's sizes.
    fn latent(&self, found: &mut FoundInFile) {
        let stored = self
            .number("attention.key_length")
            .or_else(|| self.number("embedding_length")?.checked_div(self.number("attention.head_count")?));
        let Some(turned) = self.number("rope.dimension_count").or(stored) else { return };
        let (name, head) = match self.is_absorbed() {
            true => ("attention.key_length_mla", self.number("attention.key_length_mla")),
            false => ("attention.key_length", stored),
        };
        if let Some(head) = head.filter(|head| *head <= turned) {
            let what = format!("more than {turned} was expected, which is rope.dimension_count, found {head}");
            self.refused(found, "key-value", name, what);
        }
        if !self.is_absorbed() {
            return;
        }
        if let (Some(rank), Some(stored)) = (self.number("attention.kv_lora_rank"), stored)
            && rank.checked_add(turned) != Some(stored)
        {
            let what = format!(
                "{rank} and {turned} together were expected, attention.kv_lora_rank and what turns, found {stored}"
            );
            self.refused(found, "key-value", "attention.key_length", what);
        }
        let kv_heads = self
            .get("attention.head_count_kv")
            .map_or(self.number("attention.head_count"), |_| self.number("attention.head_count_kv"));
        if let Some(heads) = kv_heads.filter(|heads| *heads != 1) {
            let what = format!("1 was expected, as all heads read what is stored, found {heads}");
            self.refused(found, "key-value", "attention.head_count_kv", what);
        }
    }

    /// Linear attention's heads, and its layers.
    fn linear(&self, found: &mut FoundInFile) {
        if self.get("attention.recurrent_layers").is_none() && self.number("full_attention_interval") == Some(0) {
            self.refused(found, "key-value", "full_attention_interval", "1 or more was expected, found 0".into());
        }
        const SIZES: [&str; 3] = ["ssm.state_size", "ssm.time_step_rank", "ssm.group_count"];
        for key in SIZES.into_iter().chain(["ssm.conv_kernel"]).filter(|key| self.number(key) == Some(0)) {
            self.refused(found, "key-value", key, "1 or more was expected, found 0".into());
        }
        let [Some(state), Some(rank), Some(groups)] = SIZES.map(|key| self.number(key).filter(|n| *n > 0)) else {
            return;
        };
        if !rank.is_multiple_of(groups) {
            let what = format!("a multiple of {groups} was expected, which is ssm.group_count, found {rank}");
            self.refused(found, "key-value", "ssm.time_step_rank", what);
        }
        if let Some(inner) = self.number("ssm.inner_size").filter(|inner| rank.checked_mul(state) != Some(*inner)) {
            let what = format!(
                "{rank} heads of {state} were expected, as ssm.time_step_rank and state_size say, found {inner}"
            );
            self.refused(found, "key-value", "ssm.inner_size", what);
        }
    }
}
