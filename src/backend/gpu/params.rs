//! The parameters of the kernels, as their shaders declare them: each struct here is the `Params` of a file in `shaders/`, member for
//! member, and [`Piece`] is the one of `shaders/lib/weight.wgsl`. `tests/shaders.rs` holds names, types and offsets against the WGSL.

use std::mem::offset_of;

use bytemuck::{Pod, Zeroable};

/// Parameters that a kernel takes as immediates, or a number among them.
pub trait Params: Pod {
    /// In order; empty for a number.
    const MEMBERS: &'static [Member];
}

/// A member of a struct of parameters.
#[derive(Debug)]
pub struct Member {
    /// As in the shader.
    pub name: &'static str,
    /// In WGSL and in Rust: `u32`, `f32`, or the name of a struct.
    pub ty: &'static str,
    /// In bytes.
    pub offset: usize,
    /// Those of the struct that it is, if it is one.
    pub members: &'static [Member],
}

impl Params for u32 {
    const MEMBERS: &'static [Member] = &[];
}
impl Params for f32 {
    const MEMBERS: &'static [Member] = &[];
}

macro_rules! params {
    ($($(#[$doc:meta])* $name:ident { $($member:ident: $ty:ident),* })*) => {$(
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Pod, Zeroable)]
        pub struct $name { $(pub $member: $ty),* }

        impl Params for $name {
            const MEMBERS: &'static [Member] = &[$(Member {
                name: stringify!($member),
                ty: stringify!($ty),
                offset: offset_of!($name, $member),
                members: <$ty as Params>::MEMBERS,
            }),*];
        }
    )*};
}

params! {
    /// The piece of a matrix that a kernel reads.
    Piece { pairs: u32, stride: u32, tail: u32, rows: u32, first: u32, count: u32, scales: u32 }

    AddNorm { n: u32, groups: u32, eps: f32 }
    AttnContext { quads: u32, heads: u32, kv_heads: u32, start: u32, seen: u32, window: u32 }
    /// Of `attn_probs` and `attn_probs_sinks`.
    AttnProbs { start: u32, seen: u32, window: u32 }
    /// Of `attn_scores` and `attention`.
    AttnScores { quads: u32, heads: u32, kv_heads: u32, start: u32, seen: u32, window: u32, scale: f32 }
    Bias { n: u32, cols: u32 }
    /// Of `combine` and `combine_add`.
    Combine { n: u32, cols: u32, k: u32 }
    CombineAddNorm { n: u32, groups: u32, cols: u32, k: u32, eps: f32 }
    Conv { n: u32, channels: u32, kernel: u32, stride: u32, first: u32, count: u32, start: u32 }
    Copy { words: u32, y_cols: u32, x_cols: u32, y_row: u32, x_row: u32, shared_by: u32, from_: u32, to: u32 }
    Decay { n: u32, cols: u32 }
    DeltaRule { quads: u32, heads: u32, key_heads: u32, tiled: u32, kept: u32, start: u32, seen: u32, v_cols: u32, v_first: u32, scale: f32 }
    /// Of `add`, `swiglu`, `geglu`, `clamped_swish` and `sigmoid_glu`.
    Elementwise { n: u32 }
    Embed { piece: Piece, cols: u32, scale: f32 }
    ExpertBias { n: u32, cols: u32, stride: u32, first: u32, count: u32, experts: u32 }
    ExpertMatmul { piece: Piece, experts: u32, shared_by: u32, slots: u32, first_tile: u32 }
    ExpertMatvec { piece: Piece, experts: u32, shared_by: u32 }
    ExpertPlan { slots: u32, experts: u32, tiles: u32 }
    /// Of `head_matmul` and `head_matvec`.
    HeadMatmul { piece: Piece, experts: u32, first: u32, row: u32, head: u32, width: u32, positions: u32 }
    L2Norm { n: u32, groups: u32, heads: u32, cols: u32, first: u32, eps: f32 }
    Matmul { piece: Piece, positions: u32 }
    Matvec { piece: Piece }
    NormRope { n: u32, groups: u32, heads: u32, start: u32, eps: f32 }
    NormRopes { n: u32, groups: u32, heads: u32, kv_heads: u32, start: u32, eps: f32 }
    ProbeFma { rounds: u32, x: f32, y: f32 }
    ProbeRead { reads: u32 }
    RmsNorm { n: u32, groups: u32, in_row: u32, row: u32, eps: f32 }
    Rope { pairs: u32, heads: u32, half_dim: u32, turned: u32, first: u32, start: u32, neighbours: u32 }
    Router { experts: u32, k: u32, renormalise: u32, scale: f32 }
    RouterProbs { experts: u32 }
    RouterSigmoids { n: u32 }
    RouterSoftmax { positions: u32, experts: u32, k: u32 }
    RouterTopK { experts: u32, k: u32 }
    RouterTopKGroups { experts: u32, k: u32, groups: u32, used: u32, two: u32 }
    RouterWeights { positions: u32, experts: u32, k: u32, renormalise: u32, scale: f32 }
    SigmoidGate { n: u32, cols: u32 }
}
