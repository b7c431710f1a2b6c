//! What can be held against tensors in a file that is not understood as a whole: the width of what goes from layer to layer, those of q, k and v, and
//! which layers have which parts.

use super::keys::CheckedKeys;
use crate::gguf::FindingSeverity::Refused;
use crate::gguf::{FoundInFile, Gguf};

impl CheckedKeys<'_> {
    /// The embedding has a row for each token that llama.cpp counts.
    pub(super) fn rows(&self, gguf: &Gguf, found: &mut FoundInFile) {
        const AT: &str = "tensor token_embd.weight";
        let Some(embedding) = gguf.tensor("token_embd.weight") else {
            return found.add(Refused, "tensor-missing", AT, "is missing");
        };
        let rows = embedding.dims.get(1).copied().unwrap_or(1);
        let tokens = match self.without_vocabulary() {
            true if self.get("vocab_size").is_none() => {
                let what =
                    format!("is missing: without a tokenizer llama.cpp counts no tokens, and {AT} has {rows} rows");
                return self.refused(found, "key-missing", "vocab_size", what);
            }
            true => self.number("vocab_size"),
            false => self.meta.str_array("tokenizer.ggml.tokens").ok().map(|tokens| tokens.len() as u64),
        };
        if let Some(tokens) = tokens.filter(|tokens| *tokens != rows) {
            found.add(
                Refused,
                "tensor-shape",
                AT,
                format!("a row for each of {tokens} tokens was expected, found {rows}"),
            );
        }
    }

    /// Layers that are there. Those that guess further tokens are not read, and of others nothing is said: a file has no more layers than tensors.
    fn layers(&self, gguf: &Gguf) -> std::ops::Range<u64> {
        0..self.own_layers().min(gguf.tensors().len() as u64)
    }

    /// Whether layers have the parts that the keys say.
    pub(super) fn parts(&self, gguf: &Gguf, found: &mut FoundInFile) {
        let a = self.architecture;
        let dense = self.number("leading_dense_block_count").unwrap_or(0);
        for layer in self.layers(gguf) {
            let mut parts = Vec::new();
            if a.leading_dense {
                parts.push(match layer < dense {
                    true => ("ffn_gate", "layers below leading_dense_block_count"),
                    false => ("ffn_gate_inp", "layers from leading_dense_block_count on"),
                });
            }
            if a.linear.is_some() {
                parts.push(match self.has_linear(layer) {
                    true => ("ssm_conv1d", "layers of linear attention"),
                    false => ("attn_output", "layers without linear attention"),
                });
            }
            if a.latent {
                parts.push(match self.is_absorbed() {
                    true => ("attn_k_b", "layers of models with attention.key_length_mla and value_length_mla"),
                    false => ("attn_kv_b", "layers of models without attention.key_length_mla or value_length_mla"),
                });
            }
            for (part, which) in parts {
                let tensor = format!("blk.{layer}.{part}.weight");
                if gguf.tensor(&tensor).is_none() {
                    found.add(
                        Refused,
                        "tensor-missing",
                        &format!("tensor {tensor}"),
                        format!("is missing; {which} have it"),
                    );
                }
            }
        }
        if !a.predicts_further && self.number("nextn_predict_layers") > Some(0) {
            let first = self.own_layers();
            let tensor = format!("blk.{first}.");
            if let Some(tensor) = gguf.tensors().iter().find(|t| t.name.starts_with(&tensor)) {
                let what = format!(
                    "nothing reads it: nextn_predict_layers leaves {first} layers, and no others are read in {}",
                    a.name
                );
                found.add(Refused, "tensor-unread", &format!("tensor {}", tensor.name), what);
            }
        }
    }

    /// Whether a layer has linear attention.
    fn has_linear(&self, layer: u64) -> bool {
        const LAYERS: &str = "attention.recurrent_layers";
        match self.get(LAYERS) {
            Some(_) => self.of_layer(LAYERS, layer).unwrap_or(0) != 0,
            None => {
                let interval = self.number("full_attention_interval").unwrap_or(4);
                (layer + 1).checked_rem(interval).is_some_and(|rest| rest != 0)
            }
        }
    }

    /// Widths, as far as keys say them.
    pub(super) fn widths(&self, gguf: &Gguf, found: &mut FoundInFile) {
        let Some(hidden) = self.number("embedding_length") else { return };
        let mut hold = |tensor: String, axis: usize, expected: u64, keys: &str| {
            let Some(dim) = gguf.tensor(&tensor).and_then(|t| t.dims.get(axis)).copied() else { return };
            if dim != expected {
                let what = format!("{expected} was expected in dimension {axis}, as {keys} says, found {dim}");
                found.add(Refused, "tensor-shape", &format!("tensor {tensor}"), what);
            }
        };
        hold("token_embd.weight".into(), 0, hidden, "embedding_length");
        hold("output_norm.weight".into(), 0, hidden, "embedding_length");
        // Attention between layers of linear attention has a gate for each element of q, beside it.
        let gated = if self.architecture.linear.is_some() { 2 } else { 1 };
        for layer in self.layers(gguf) {
            let blk = |part: &str| format!("blk.{layer}.{part}");
            hold(blk("attn_norm.weight"), 0, hidden, "embedding_length");
            if self.architecture.linear.is_some() {
                self.linear_widths(&mut |part, axis, expected, keys| hold(blk(part), axis, expected, keys));
            }
            // Latent attention has heads of other sizes; nothing else here has tensors of these names.
            let heads = self.of_layer("attention.head_count", layer).filter(|heads| *heads > 0);
            let (Some(heads), false) = (heads, self.architecture.latent) else { continue };
            let kv_heads = match self.get("attention.head_count_kv") {
                Some(_) => self.of_layer("attention.head_count_kv", layer),
                None => Some(heads),
            };
            // Of all layers, as of the first.
            let head =
                |key: &str| self.number(key).or_else(|| hidden.checked_div(self.of_layer("attention.head_count", 0)?));
            for (part, heads, of, keys) in [
                (
                    "attn_q.weight",
                    heads.checked_mul(gated),
                    "attention.key_length",
                    "attention.head_count times the length of a head",
                ),
                (
                    "attn_k.weight",
                    kv_heads,
                    "attention.key_length",
                    "attention.head_count_kv times the length of a head",
                ),
                (
                    "attn_v.weight",
                    kv_heads,
                    "attention.value_length",
                    "attention.head_count_kv times the length of a head's values",
                ),
            ] {
                hold(blk(part), 0, hidden, "embedding_length");
                if let Some(width) = heads.and_then(|heads| heads.checked_mul(head(of)?)) {
                    hold(blk(part), 1, width, keys);
                }
            }
        }
    }

    fn linear_widths(&self, hold: &mut dyn FnMut(&str, usize, u64, &str)) {
        let size = |key: &str| self.number(key);
        let [state, rank, groups] = ["ssm.state_size", "ssm.time_step_rank", "ssm.group_count"].map(size);
        let values = state.zip(rank).and_then(|(state, rank)| state.checked_mul(rank));
        let keys = state.zip(groups).and_then(|(state, groups)| state.checked_mul(groups)?.checked_mul(2));
        let channels = values.zip(keys).and_then(|(values, keys)| values.checked_add(keys));
        for (part, axis, expected, keys) in [
            ("ssm_conv1d.weight", 0, size("ssm.conv_kernel"), "ssm.conv_kernel"),
            ("ssm_conv1d.weight", 1, channels, "ssm.state_size times time_step_rank and twice group_count"),
            ("ssm_norm.weight", 0, state, "ssm.state_size"),
            ("ssm_dt.bias", 0, rank, "ssm.time_step_rank"),
            ("ssm_out.weight", 0, values, "ssm.state_size times time_step_rank"),
        ] {
            if let Some(expected) = expected {
                hold(part, axis, expected, keys);
            }
        }
    }
}
