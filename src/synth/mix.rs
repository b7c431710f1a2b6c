//! Which type each tensor gets: llama.cpp's mixes (`llama_tensor_get_type` in `llama-quant.cpp`), without an importance matrix.

use super::ModelShape;
use crate::op::GgmlType::{self, *};

/// A way to choose types: a llama.cpp file type, or one type for every matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mix {
    pub name: &'static str,
    /// `general.file_type`, llama.cpp's `llama_ftype`.
    pub file_type: u32,
    /// The type of a tensor that no rule raises or lowers.
    base: GgmlType,
    /// No rules: every matrix gets the base type.
    pure: bool,
}

/// What a tensor is for: the rules go by that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    TokenEmbd,
    Output,
    AttnQ,
    AttnK,
    AttnV,
    AttnOutput,
    /// A matrix for each head.
    Heads,
    FfnGate,
    FfnUp,
    FfnDown,
    /// A norm's weights; always F32.
    Norm,
    /// A bias; always F32.
    Bias,
    /// Sinks of attention; always F32.
    Sinks,
    /// `rope_freqs`; always F32.
    RopeFreqs,
    /// `ffn_gate_inp`; always F32.
    Router,
    /// The convolution's weights; always F32.
    Conv,
    /// `ssm_a`; always F32.
    Decay,
    /// What a weight's products are multiplied by; always F32.
    Scale,
}

const fn mix(name: &'static str, file_type: u32, base: GgmlType) -> Mix {
    Mix { name, file_type, base, pure: false }
}

/// llama.cpp's mixes for the types that need no importance matrix.
pub static MIXES: &[Mix] = &[
    mix("F32", 0, F32),
    mix("F16", 1, F16),
    mix("BF16", 32, BF16),
    mix("Q4_0", 2, Q4_0),
    mix("Q4_1", 3, Q4_1),
    mix("Q5_0", 8, Q5_0),
    mix("Q5_1", 9, Q5_1),
    mix("Q8_0", 7, Q8_0),
    mix("Q2_K", 10, Q2_K),
    mix("Q3_K_S", 11, Q3_K),
    mix("Q3_K_M", 12, Q3_K),
    mix("Q3_K_L", 13, Q3_K),
    mix("Q4_K_S", 14, Q4_K),
    mix("Q4_K_M", 15, Q4_K),
    mix("Q5_K_S", 16, Q5_K),
    mix("Q5_K_M", 17, Q5_K),
    mix("Q6_K", 18, Q6_K),
    mix("IQ4_NL", 25, IQ4_NL),
    mix("IQ4_XS", 30, IQ4_XS),
    mix("TQ1_0", 36, TQ1_0),
    mix("TQ2_0", 37, TQ2_0),
    mix("MXFP4_MOE", 38, MXFP4),
    mix("Q1_0", 40, Q1_0),
    mix("Q2_0", 41, Q2_0),
];

impl Mix {
    /// The mix called `name`, in any case; MXFP4 is MXFP4_MOE.
    pub fn from_name(name: &str) -> Option<Self> {
        let name = if name.eq_ignore_ascii_case("MXFP4") { "MXFP4_MOE" } else { name };
        MIXES.iter().copied().find(|m| m.name.eq_ignore_ascii_case(name))
    }

    /// Every matrix of type `ty`; `None` if weights are never of that type.
    pub fn pure(ty: GgmlType) -> Option<Self> {
        let file_type = match ty {
            IQ2_XXS => 19,
            IQ2_XS => 20,
            IQ3_XXS => 23,
            IQ1_S => 24,
            IQ3_S => 26,
            IQ2_S => 28,
            IQ1_M => 31,
            NVFP4 => 39,
            // Of a type's mixes, the first has the fewest other types.
            _ => MIXES.iter().find(|m| m.base == ty)?.file_type,
        };
        Some(Self { name: ty.name(), file_type, base: ty, pure: true })
    }

    /// The type of the tensor with this role in this layer, were its rows of any length.
    pub(super) fn choose(&self, role: Role, layer: u32, shape: &ModelShape) -> GgmlType {
        if matches!(
            role,
            Role::Norm
                | Role::Bias
                | Role::Sinks
                | Role::RopeFreqs
                | Role::Router
                | Role::Conv
                | Role::Decay
                | Role::Scale
        ) {
            return F32;
        }
        if self.pure || matches!(self.base, F32 | F16 | BF16) {
            return self.base;
        }
        let n = shape.layers;
        let early = layer < n / 8;
        let more_bits = early || layer >= 7 * n / 8 || (layer - n / 8) % 3 == 2;
        let shared_heads = shape.heads / shape.kv_heads >= 4;
        let moe = shape.moe();
        // llama.cpp's rule for Mixtral, which goes by the number of experts alone.
        let eight = moe.is_some_and(|m| m.experts == 8);
        if role == Role::Output || role == Role::TokenEmbd && shape.tied {
            return if matches!(self.base, MXFP4 | Q8_0) { Q8_0 } else { Q6_K };
        }
        if self.base == MXFP4 {
            // llama.cpp goes by the number of matrices in a tensor, whatever they are for.
            let several = match role {
                Role::FfnGate | Role::FfnUp | Role::FfnDown => moe.is_some_and(|m| m.experts > 1),
                Role::Heads => shape.heads > 1,
                _ => false,
            };
            return if several { MXFP4 } else { Q8_0 };
        }
        match (role, self.name) {
            (Role::TokenEmbd, "TQ1_0" | "TQ2_0" | "Q2_0") => Q4_K,
            (Role::AttnV | Role::AttnK, _) if eight => Q8_0,
            (Role::AttnV, "Q2_K") => [Q3_K, Q4_K][shared_heads as usize],
            (Role::AttnV, "Q3_K_M") => [Q4_K, Q5_K][(layer < 2) as usize],
            (Role::AttnV, "IQ4_NL" | "IQ4_XS") if shared_heads => Q5_K,
            (Role::AttnV, "Q4_K_S") if layer < 4 => Q5_K,
            (Role::FfnDown, "Q2_K") => Q3_K,
            (Role::FfnDown, "Q3_K_M") => [Q4_K, Q5_K][(layer < n / 16) as usize],
            (Role::FfnDown, "IQ4_NL" | "IQ4_XS" | "Q4_K_S") if early => Q5_K,
            (Role::AttnV | Role::FfnDown, "Q3_K_L") => Q5_K,
            (Role::AttnV | Role::FfnDown, "Q4_K_M" | "Q5_K_M") if more_bits => Q6_K,
            (Role::AttnOutput, "Q2_K" | "Q3_K_S" | "Q3_K_M" | "Q4_K_S" | "Q4_K_M" | "IQ4_NL" | "IQ4_XS") if eight => {
                Q5_K
            }
            (Role::AttnOutput, "Q2_K") => Q3_K,
            (Role::AttnOutput, "Q3_K_M") => Q4_K,
            (Role::AttnOutput, "Q3_K_L") if !eight => Q5_K,
            _ => self.base,
        }
    }
}

/// The type that rows of `cols` weights get when they are not whole blocks of `ty`: llama.cpp's substitutes, and F16 where it
/// has none that fits.
pub(super) fn fitting(ty: GgmlType, cols: u64) -> GgmlType {
    let fits = |ty: GgmlType| cols.is_multiple_of(ty.block_len() as u64);
    if fits(ty) {
        return ty;
    }
    let substitute = match ty {
        IQ1_S | IQ1_M | IQ2_XXS | IQ2_XS | IQ2_S | IQ3_XXS | IQ3_S | IQ4_XS => IQ4_NL,
        Q2_K | Q3_K | TQ1_0 | TQ2_0 | Q2_0 => Q4_0,
        Q4_K => Q5_0,
        Q5_K => Q5_1,
        Q6_K => Q8_0,
        _ => F16,
    };
    if fits(substitute) { substitute } else { F16 }
}
