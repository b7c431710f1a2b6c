//! The rows of the table.

use super::{Choice, OpCase, OpShape, OpValues};
use crate::backend::oracle::dequant;
use crate::op::{GateActivation, GgmlType, GroupScore, Groups, Pairing, Yarn};

/// Every weight type that a model stores, in ggml's order.
fn types() -> impl Iterator<Item = GgmlType> {
    GgmlType::ALL.iter().copied().filter(|ty| dequant::supports(*ty))
}

/// Columns for a type: `blocks` blocks, or as many times 32 where a block is one weight.
fn cols(ty: GgmlType, blocks: usize) -> usize {
    blocks * ty.block_len().max(32)
}

/// Every case. Shapes are small: the largest has about a million multiply-adds.
pub fn table() -> Vec<OpCase> {
    let mut cases = Vec::new();
    let mut all =
        |values: &[OpValues], shape: OpShape| cases.extend(values.iter().map(|&values| OpCase { shape, values }));
    const NORMAL: &[OpValues] = &[OpValues::Normal];
    const KINDS: &[OpValues] = &[OpValues::Normal, OpValues::Offset, OpValues::Outliers, OpValues::Small];
    const WITH_LARGE: &[OpValues] = &[OpValues::Normal, OpValues::Offset, OpValues::Small, OpValues::Large];

    for ty in types() {
        for (blocks, rows, tokens) in [(1, 1, 1), (2, 5, 3)] {
            for scale in [1.0, 25.3] {
                all(NORMAL, OpShape::Embed { ty, cols: cols(ty, blocks), rows, tokens, scale });
            }
        }
        // Blocks a row, rows, tokens.
        let shapes = [
            (1, 1, 1),
            (1, 33, 2),
            (2, 8, 7),
            (3, 65, 1),
            (5, 4, 1),
            (2, 67, 33),
            (1, 130, 64),
            (4, 36, 65),
            (8, 9, 4),
        ];
        for (blocks, rows, tokens) in shapes {
            all(NORMAL, OpShape::MatMul { ty, cols: cols(ty, blocks), rows, tokens });
        }
        for tokens in [1, 17] {
            all(&KINDS[1..], OpShape::MatMul { ty, cols: cols(ty, 3), rows: 40, tokens });
        }
        // Blocks a row, rows, heads, columns of a head beyond those, tokens, whether they follow, whether all read one head.
        let shapes = [
            (1, 1, 1, 0, 1, false, false),
            (2, 33, 4, 16, 1, true, false),
            (1, 64, 3, 2, 7, true, true),
            (1, 36, 5, 64, 33, false, true),
            (3, 20, 2, 8, 70, true, false),
        ];
        for (blocks, rows, heads, beyond, tokens, keep, shared) in shapes {
            let cols = cols(ty, blocks);
            let head_dim = cols + beyond;
            all(NORMAL, OpShape::HeadMatMul { ty, cols, rows, heads, head_dim, tokens, keep, shared });
        }
        // Blocks a row, rows, experts, tokens, chosen, one x per slot, which.
        let shapes = [
            (1, 1, 1, 1, 1, false, Choice::Random),
            (2, 33, 8, 1, 2, false, Choice::Random),
            (1, 64, 8, 7, 2, true, Choice::Random),
            (2, 36, 4, 33, 4, false, Choice::Random), // every expert, by every token
            (1, 65, 16, 40, 3, true, Choice::Same),   // most experts empty
            (1, 20, 60, 70, 8, false, Choice::Random),
            (1, 20, 64, 3, 33, true, Choice::Random), // more of them than any known model has
        ];
        for (blocks, rows, experts, tokens, k, per_slot, choice) in shapes {
            let cols = cols(ty, blocks);
            all(NORMAL, OpShape::ExpertMatMul { ty, cols, rows, experts, tokens, k, per_slot, choice });
        }
    }

    for (tokens, groups, n) in [(1, 1, 32), (1, 1, 2048), (3, 1, 256), (7, 8, 64), (65, 4, 128), (2, 3, 80)] {
        all(KINDS, OpShape::RmsNorm { tokens, groups, n, keep: 0 });
    }
    for (tokens, groups, n, keep) in [(1, 1, 32, 16), (5, 1, 512, 64), (66, 2, 96, 2)] {
        all(KINDS, OpShape::RmsNorm { tokens, groups, n, keep });
    }
    for (tokens, heads, head_dim, start, base) in [
        (1, 1, 64, 0, 1e6),
        (1, 4, 128, 4095, 1e6),
        (7, 8, 64, 0, 1e4),
        (33, 2, 80, 3, 1e7),
        (65, 3, 128, 100_000, 1e6),
    ] {
        let yarn =
            Yarn { context: 4096.0, beta_fast: 32.0, beta_slow: 1.0, ramp: 1.0, magnitude: 1.1386, between: false };
        for (pairing, scale, factors, yarn) in [
            (Pairing::Neox, 1.0, false, None),
            (Pairing::Norm, 1.0, false, None),
            (Pairing::Norm, 0.25, true, None),
            (Pairing::Neox, 0.25, false, Some(yarn)),
            (Pairing::Norm, 0.125, true, Some(yarn)),
            (Pairing::Neox, 0.03125, false, Some(Yarn { between: true, ..yarn })),
        ] {
            for (dims, first) in [(None, 0), (Some(head_dim / 2), 0), (Some(head_dim / 4), head_dim - head_dim / 4)] {
                all(
                    NORMAL,
                    OpShape::Rope { tokens, heads, head_dim, start, base, pairing, scale, factors, yarn, dims, first },
                );
            }
        }
    }

    // Query heads, KV heads, head size.
    for (heads, kv_heads, head_dim) in [(1, 1, 64), (4, 4, 80), (8, 2, 64), (8, 1, 128)] {
        // Tokens, the position of the first, spare rows of the cache.
        for (tokens, start, spare) in [(1, 0, 0), (1, 6, 3), (2, 130, 1), (7, 0, 5), (33, 9, 0), (65, 0, 63)] {
            for window in [None, Some(5)] {
                let scale = window.map(|_| 0.0625);
                all(NORMAL, OpShape::AttnScores { tokens, heads, kv_heads, head_dim, start, spare, scale, window });
                all(NORMAL, OpShape::AttnContext { tokens, heads, kv_heads, head_dim, start, spare, window });
            }
        }
    }
    // As latents are attended to: one KV head for all, whose keys are wider than its values.
    for (tokens, start, spare) in [(1, 40, 1), (17, 3, 0)] {
        let (heads, kv_heads, window) = (12, 1, None);
        let scale = Some(0.1);
        all(NORMAL, OpShape::AttnScores { tokens, heads, kv_heads, head_dim: 576, start, spare, scale, window });
        all(NORMAL, OpShape::AttnContext { tokens, heads, kv_heads, head_dim: 512, start, spare, window });
    }
    for (tokens, heads, start) in [(1, 1, 0), (1, 8, 300), (7, 4, 0), (33, 2, 9), (65, 3, 1), (2, 1, 1030)] {
        for window in [None, Some(1), Some(8)] {
            for sinks in [false, true] {
                all(WITH_LARGE, OpShape::AttnProbs { tokens, heads, start, window, sinks });
            }
        }
    }

    for (tokens, experts, k) in [
        (1, 2, 1),
        (1, 8, 2),
        (7, 8, 2),
        (33, 60, 4),
        (65, 128, 8),
        (3, 128, 8),
        (5, 512, 10),
        (2, 8, 8),
        (3, 64, 17),
        (2, 160, 64),
    ] {
        for sigmoid in [false, true] {
            all(WITH_LARGE, OpShape::RouterProbs { tokens, experts, sigmoid });
        }
        for ties in [false, true] {
            all(&[OpValues::Normal, OpValues::Nan], OpShape::RouterTopK { tokens, experts, k, ties, groups: None });
        }
        for (count, used) in [(4, 2), (2, 1), (8, 4)] {
            for by in [GroupScore::Max, GroupScore::TopTwo] {
                let groups = Groups { count, used, by };
                if experts / count >= 2 && experts.is_multiple_of(count) && k <= groups.left(experts) {
                    for ties in [false, true] {
                        let groups = Some(groups);
                        all(
                            &[OpValues::Normal, OpValues::Nan],
                            OpShape::RouterTopK { tokens, experts, k, ties, groups },
                        );
                    }
                }
            }
        }
        for renormalise in [true, false] {
            for scale in [1.0, 2.5] {
                all(NORMAL, OpShape::RouterWeights { tokens, experts, k, renormalise, softmax: false, scale });
            }
        }
        let scale = 1.0;
        all(WITH_LARGE, OpShape::RouterWeights { tokens, experts, k, renormalise: true, softmax: true, scale });
        for (cols, choice) in [(33, Choice::Random), (64, Choice::Same), (1, Choice::Random)] {
            all(KINDS, OpShape::ExpertBias { tokens, k, cols, experts, choice });
        }
    }
    for (tokens, k, hidden) in [(1, 1, 1), (1, 2, 256), (7, 8, 65), (33, 2, 64), (65, 10, 36), (3, 64, 40)] {
        all(KINDS, OpShape::Combine { tokens, k, hidden });
    }
    for (tokens, cols) in [(1, 1), (1, 256), (7, 33), (33, 768), (65, 129)] {
        all(KINDS, OpShape::Add { tokens, cols });
        all(KINDS, OpShape::Bias { tokens, cols });
        for activation in
            [GateActivation::Silu, GateActivation::GeluTanh, GateActivation::Clamped, GateActivation::Sigmoid]
        {
            all(WITH_LARGE, OpShape::SwiGlu { tokens, cols, activation });
        }
        all(WITH_LARGE, OpShape::SigmoidGate { tokens, cols });
        for beyond in [0, 1, 64] {
            all(NORMAL, OpShape::Store { tokens, cols, beyond, start: 0, capacity: tokens });
            all(NORMAL, OpShape::Store { tokens, cols, beyond, start: 5, capacity: tokens + 9 });
        }
        all(NORMAL, OpShape::Rows { tokens, cols, start: tokens - 1, rows: 1 });
        all(NORMAL, OpShape::Rows { tokens, cols, start: tokens / 2, rows: tokens - tokens / 2 });
    }
    linear_attention(&mut all);
    cases
}

/// What linear attention has besides the others' operations.
fn linear_attention(all: &mut impl FnMut(&[OpValues], OpShape)) {
    use OpValues::*;
    // Positions, the first of them, spare rows of the cache.
    for (tokens, start, spare) in [(1, 0, 0), (1, 2, 3), (7, 0, 5), (2, 130, 1), (65, 1, 0)] {
        // Of the lengths of a kernel, one is beyond all positions of a call.
        for (channels, kernel) in [(1, 4), (33, 1), (65, 3), (130, 4), (20, 70)] {
            all(&[Normal, Offset, Small, Large], OpShape::Conv { tokens, channels, kernel, start, spare });
        }
    }
    for (tokens, cols, first, heads, head_dim) in
        [(1, 16, 0, 1, 16), (3, 6, 0, 2, 3), (7, 260, 64, 3, 64), (2, 513, 256, 2, 128), (65, 70, 1, 4, 17)]
    {
        all(&[Normal, Offset, Outliers, Small, Large], OpShape::L2Norm { tokens, cols, first, heads, head_dim });
    }
    for (tokens, heads) in [(1, 1), (1, 32), (7, 33), (65, 6)] {
        // Of large numbers the exponentials end in both directions.
        all(&[Normal, Offset, Small, Large], OpShape::Decay { tokens, heads });
    }
    // Heads of keys and of values, their size.
    for (key_heads, heads, head_dim) in [(1, 1, 16), (2, 2, 20), (2, 6, 32), (1, 3, 128), (1, 1, 256)] {
        // Positions, the first of them, spare rows of the caches; fewer where the state is large.
        let calls: &[_] = if head_dim < 100 {
            &[(1, 0, 0), (1, 6, 3), (7, 0, 5), (33, 9, 0), (65, 0, 63)]
        } else {
            &[(1, 0, 2), (1, 4, 0), (5, 2, 3)]
        };
        for &(tokens, start, spare) in calls {
            for tiled in [false, true] {
                let shape = OpShape::DeltaRule { tokens, key_heads, heads, head_dim, start, spare, tiled };
                all(&[Normal, Offset, Small], shape);
            }
        }
    }
}

/// Cases for the benchmark: the shapes of Qwen3-30B-A3B (hidden 2048, experts of 768, 32 heads of 128 over 4), for one token and
/// for a chunk of a prompt, in the types that its files use.
pub fn bench_table() -> Vec<OpCase> {
    use GgmlType::*;
    let mut shapes = Vec::new();
    for tokens in [1, 64] {
        for ty in [Q4_K, Q5_K, Q6_K, Q8_0, F16] {
            shapes.push(OpShape::MatMul { ty, cols: 2048, rows: 4096, tokens });
        }
        for (ty, cols, rows, per_slot) in [(Q4_K, 2048, 768, false), (Q4_K, 768, 2048, true), (Q6_K, 768, 2048, true)] {
            let (experts, k, choice) = (32, 8, Choice::Random);
            shapes.push(OpShape::ExpertMatMul { ty, cols, rows, experts, tokens, k, per_slot, choice });
        }
        let (heads, kv_heads, head_dim, start, spare) = (32, 4, 128, 448, 0);
        shapes.extend([
            OpShape::RmsNorm { tokens, groups: 1, n: 2048, keep: 0 },
            OpShape::neox(tokens, heads, head_dim, start, 1e6),
            OpShape::AttnScores { tokens, heads, kv_heads, head_dim, start, spare, scale: None, window: None },
            OpShape::AttnProbs { tokens, heads, start, window: None, sinks: false },
            OpShape::AttnContext { tokens, heads, kv_heads, head_dim, start, spare, window: None },
            OpShape::RouterProbs { tokens, experts: 128, sigmoid: false },
            OpShape::RouterTopK { tokens, experts: 128, k: 8, ties: false, groups: None },
            OpShape::SwiGlu { tokens, cols: 8 * 768, activation: GateActivation::Silu },
            OpShape::Combine { tokens, k: 8, hidden: 2048 },
            OpShape::Add { tokens, cols: 2048 },
        ]);
    }
    shapes.into_iter().map(|shape| OpCase { shape, values: OpValues::Normal }).collect()
}
