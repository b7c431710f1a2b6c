//! What an engine of which nobody says anything may be doing.

use super::{Contract, Precision, named};
use crate::op::OpKind;

/// The contracts that an engine may compute `op` under, from the tightest to the weakest, each with what it says: the first that
/// explains every error of a stage is the least that must be assumed of the engine.
///
/// All are f32 sums in any order. The first is f32 throughout; then operands in halves and in bf16, int8 activations, caches,
/// results in halves and bf16, and what occurs together.
pub fn candidates(op: OpKind) -> Vec<(String, Contract)> {
    use Precision::*;
    let f32 = *named("f32").expect("f32 is a contract").get(op);
    let mut all = vec![f32];
    match op {
        OpKind::MatMul | OpKind::HeadMatMul | OpKind::ExpertMatMul => {
            for weights in [F32, F16] {
                all.push(Contract { activations: F16, weights, ..f32 });
            }
            for weights in [F32, Bf16] {
                all.push(Contract { activations: Bf16, weights, ..f32 });
            }
            let int8 = [
                Q8_K,
                Q8_0,
                Q8_1,
                VecDot,
                Q8_K_BesideBlocks,
                Int8 { block: 32 },
                Int8 { block: 128 },
                Int8 { block: 256 },
            ];
            all.extend(int8.map(|activations| Contract { activations, ..f32 }));
            all.push(Contract { activations: VecDot, offsets_apart: true, ..f32 });
        }
        OpKind::Rope => all.extend([F64, F16, Bf16].map(|angles| Contract { angles, ..f32 })),
        OpKind::Embed => all.extend([F16, Bf16].map(|weights| Contract { weights, ..f32 })),
        OpKind::AttnScores | OpKind::AttnContext => {
            for cache in [F16, Bf16, Q8_0] {
                all.push(Contract { cache, ..f32 });
                all.push(Contract { cache, activations: VecDot, ..f32 });
            }
        }
        _ => {}
    }
    for engine in ["transformers-f16", "transformers-bf16"] {
        let engine = *named(engine).expect("an engine").get(op);
        if engine != f32 {
            // Results alone, then what the engine does inside as well.
            all.push(Contract { output: engine.output, ..f32 });
            all.push(engine);
        }
    }
    if op == OpKind::AttnContext {
        // Flash attention that holds its sum in halves.
        all.push(Contract { cache: F16, accumulator: F16, ..f32 });
    }
    let mut distinct: Vec<Contract> = Vec::new();
    all.into_iter().for_each(|c| {
        if !distinct.contains(&c) {
            distinct.push(c);
        }
    });
    distinct.into_iter().map(|c| (c.to_string(), c)).collect()
}
