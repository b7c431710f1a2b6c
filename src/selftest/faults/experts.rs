//! The router, the experts, their sum, and the residuals.

use super::super::faulty::{FaultScope, HostOp, Mistake};
use super::super::shader::{Edit, Shader};
use super::matrices::{LANES_TAIL, TILE_TAIL, exchanged};
use super::{By, FAULT, Fault, FaultPlace, FaultySide};
use crate::diff::locate::PatternKind as P;
use crate::error::{Error, Result};
use crate::model::Ffn;
use crate::op::{HostTensor, Op, Stage};

pub static FAULTS: &[Fault] = &[
    Fault {
        name: "probs-over-chosen",
        what: "the softmax is over the chosen experts, the others get 0",
        by: By::Operation(|place| {
            let used = place.model.config.moe.as_ref().map_or(1, |moe| moe.used);
            Box::new(move |engine, op| only_largest(engine.run(op)?, used))
        }),
        subject: FaultySide::Cpu,
        stage: Stage::RouterProbs,
        layers: [2, 1],
        patterns: &[P::WholeTensor, P::Scattered],
        explained: &["router-softmax"],
        says: &["a softmax over the chosen experts instead of all"],
        ..FAULT
    },
    Fault {
        name: "not-renormalised",
        what: "the chosen experts' weights do not sum to 1",
        by: By::Shader(&[Shader {
            kernel: "router_weights",
            edits: &[("if p.renormalise != 0u {", "if p.renormalise == 0u {")],
        }]),
        stage: Stage::RouterWeights,
        layers: [1, 0],
        graded: true,
        patterns: &[P::WholeTensor, P::Scattered],
        explained: &["renormalisation"],
        says: &["weights that are not renormalised"],
        ..FAULT
    },
    Fault {
        name: "softmax-twice",
        what: "the chosen experts' weights are a softmax of their probabilities",
        by: By::Shader(&[Shader {
            kernel: "router_weights",
            edits: &[(
                "let value = probs[t * p.experts + min(e, p.experts - 1u)];",
                "let value = exp_f32(probs[t * p.experts + min(e, p.experts - 1u)]);",
            )],
        }]),
        stage: Stage::RouterWeights,
        layers: [3, 1],
        explained: &["renormalisation"],
        says: &["a softmax over the chosen experts' probabilities"],
        ..FAULT
    },
    Fault {
        name: "tie-order",
        what: "of equal experts the higher id is taken",
        by: By::Shader(&[Shader {
            kernel: "router_topk",
            edits: &[
                ("e > last_id);", "e < last_id);"),
                ("this_key > key) {", "this_key >= key) {"),
                ("other < mine)) {", "other > mine)) {"),
            ],
        }]),
        stage: Stage::RouterIds,
        layers: [2, 1],
        tied: true,
        patterns: EVERYWHERE,
        explained: &["router-ties"],
        says: &["ties to the higher expert id"],
        ..FAULT
    },
    Fault {
        name: "expert-offset",
        what: "one expert reads the weights of the next",
        by: By::Shader(&[
            Shader { kernel: "expert_matmul", edits: &[(EXPERT, NEXT_EXPERT)] },
            Shader { kernel: "expert_matmul_lanes", edits: &[(EXPERT, NEXT_EXPERT)] },
        ]),
        stage: Stage::ExpertGate,
        layers: [2, 1],
        scope: FaultScope::Expert,
        patterns: &[P::Expert],
        explained: &["expert-offset"],
        says: OF_ONE,
        ..FAULT
    },
    Fault {
        name: "expert-offset-decode",
        what: "one expert reads the weights of the next, in decoding",
        by: By::Shader(&[
            Shader { kernel: "expert_matvec", edits: &[(EXPERT, NEXT_EXPERT)] },
            Shader { kernel: "expert_matvec_lanes", edits: &[(EXPERT, NEXT_EXPERT)] },
        ]),
        stage: Stage::ExpertUp,
        layers: [0, 1],
        step: 1,
        scope: FaultScope::Expert,
        patterns: &[P::Expert],
        explained: &["expert-offset"],
        says: OF_ONE,
        ..FAULT
    },
    Fault {
        name: "nan-expert",
        what: "one expert's outputs are NaN",
        by: By::Shader(&[
            Shader { kernel: "expert_matmul", edits: &[NAN_EXPERT] },
            Shader { kernel: "expert_matmul_lanes", edits: &[NAN_EXPERT] },
        ]),
        stage: Stage::ExpertDown,
        layers: [1, 1],
        scope: FaultScope::Expert,
        patterns: &[P::Expert],
        explained: &["not-finite"],
        ..FAULT
    },
    Fault {
        name: "expert-once",
        what: "one expert reads the weights of the next, at one position",
        by: By::Shader(&[
            Shader { kernel: "expert_matmul", edits: &[(EXPERT, NEXT_EXPERT)] },
            Shader { kernel: "expert_matmul_lanes", edits: &[(EXPERT, NEXT_EXPERT)] },
        ]),
        stage: Stage::ExpertUp,
        layers: [3, 0],
        scope: FaultScope::ExpertOnce,
        patterns: &[P::Expert, P::Position, P::LastPosition],
        explained: &["expert-offset"],
        says: OF_ONE,
        ..FAULT
    },
    Fault {
        name: "down-k-tail",
        what: "the last pair of runs of an expert's product is left out, 16 columns here and 16 there",
        by: By::Shader(&[
            Shader { kernel: "expert_matmul", edits: &[TILE_TAIL] },
            Shader { kernel: "expert_matmul_lanes", edits: &[LANES_TAIL] },
        ]),
        stage: Stage::ExpertDown,
        layers: [1, 0],
        graded: true,
        patterns: EVERYWHERE,
        ..FAULT
    },
    Fault {
        name: "down-k-tail-decode",
        what: "the same in decoding",
        by: By::Shader(&[
            Shader {
                kernel: "expert_matvec",
                edits: &[("i < p.piece.pairs; i += LANES", "i + 1u < p.piece.pairs; i += LANES")],
            },
            Shader {
                kernel: "expert_matvec_lanes",
                edits: &[(
                    "let mine = activations(start + columns(n * PAIRS + pair,",
                    "if n * PAIRS + pair + 1u == p.piece.pairs {
                break;
            }
            let mine = activations(start + columns(n * PAIRS + pair,",
                )],
            },
        ]),
        stage: Stage::ExpertDown,
        layers: [3, 1],
        step: 2,
        patterns: EVERYWHERE,
        ..FAULT
    },
    Fault {
        name: "gate-up-swapped",
        what: "silu of up times gate",
        by: By::Shader(&[Shader {
            kernel: "swiglu",
            edits: &[("let g = gate[n];", "let g = up[n];"), ("g * sigmoid * up[n];", "g * sigmoid * gate[n];")],
        }]),
        stage: Stage::ExpertAct,
        layers: [0, 1],
        explained: &["gate-up"],
        says: &["gate and up swapped"],
        ..FAULT
    },
    Fault {
        name: "gate-reads-up",
        what: "the gate is computed with the weights of up",
        by: By::Operation(gate_reads_up),
        subject: FaultySide::Cpu,
        stage: Stage::ExpertGate,
        layers: [3, 0],
        explained: &["other-weight"],
        says: &["the product with blk.3.ffn_up_exps.weight", "the product with blk.0.ffn_up_exps.weight"],
        ..FAULT
    },
    Fault {
        name: "joint-up-first",
        what: "of a joint weight of gate and up, the second half is taken for gate's",
        by: By::Operation(gate_reads_up),
        subject: FaultySide::Cpu,
        stage: Stage::ExpertGate,
        models: &[12],
        layers: [0, 1],
        explained: &["other-weight"],
        says: &["the product with blk.1.ffn_gate_up_exps.weight (up)"],
        ..FAULT
    },
    Fault {
        name: "slots-reversed",
        what: "the experts are weighted in reverse order",
        by: By::Operation(|_| {
            Box::new(|engine, op| {
                let Op::Combine { down, weights } = op else { return Err(misplaced(op)) };
                let mut reversed = weights.to_f32();
                reversed.chunks_exact_mut(weights.cols()).for_each(|row| row.reverse());
                engine
                    .run(&Op::Combine { down: down.clone(), weights: HostTensor::f32(&weights.shape, reversed).into() })
            })
        }),
        subject: FaultySide::Cpu,
        stage: Stage::MoeOut,
        layers: [2, 0],
        explained: &["combine"],
        says: &["the weights in reverse order of the slots"],
        ..FAULT
    },
    Fault {
        name: "residual-dropped",
        what: "attention's output without the stream that it is added to",
        by: By::Shader(&[Shader { kernel: "add", edits: &[("y[n] = a[n] + b[n];", "y[n] = b[n];")] }]),
        stage: Stage::AttnResidual,
        layers: [2, 1],
        explained: &["residual"],
        says: &["the residual dropped"],
        ..FAULT
    },
    Fault {
        name: "branch-dropped",
        what: "the stream without the experts' output",
        by: By::Shader(&[Shader { kernel: "add", edits: &[("y[n] = a[n] + b[n];", "y[n] = a[n];")] }]),
        stage: Stage::LayerOut,
        layers: [3, 1],
        explained: &["residual"],
        says: &["only the residual"],
        ..FAULT
    },
    Fault {
        name: "scale-tensor-dropped",
        what: "a matrix's products without the scale that stands beside it",
        by: By::Shader(&[
            Shader { kernel: "matmul", edits: &[("x_row, id) * scale_of(0u);", "x_row, id);")] },
            Shader { kernel: "matmul_lanes", edits: &[("xs, lane) * scale_of(0u);", "xs, lane);")] },
        ]),
        stage: Stage::VProj,
        models: &[NVFP4],
        layers: [0, 1],
        explained: &["scale-tensor"],
        says: &["the weight's scale left out"],
        ..FAULT
    },
    Fault {
        name: "scale-tensor-of-next",
        what: "one expert's products with the scale of the next",
        by: By::Shader(&[
            Shader { kernel: "expert_matmul", edits: &[(SCALE, NEXT_SCALE)] },
            Shader { kernel: "expert_matmul_lanes", edits: &[(SCALE, NEXT_SCALE)] },
        ]),
        stage: Stage::ExpertUp,
        models: &[NVFP4],
        layers: [0, 1],
        scope: FaultScope::Expert,
        patterns: &[P::Expert],
        explained: &["scale-tensor"],
        says: &["the scale of expert e + 1"],
        ..FAULT
    },
    Fault {
        name: "scale-tensor-by-slot",
        what: "experts' products with the scales of the slots' numbers",
        by: By::Operation(|_| {
            Box::new(|engine, op| {
                let HostOp::ExpertMatMul { ref ids, weight, .. } = *op else { return Err(misplaced(op)) };
                let plain = weight.scaled(vec![])?;
                let k = ids.cols();
                let mut values = engine.run(&exchanged(op, &plain)?)?.to_f32();
                for (slot, row) in values.chunks_exact_mut(weight.rows).enumerate() {
                    let scale = weight.scale(slot % k).unwrap_or(1.0);
                    row.iter_mut().for_each(|y| *y *= scale);
                }
                Ok(HostTensor::f32(&[ids.shape[0], k, weight.rows], values))
            })
        }),
        subject: FaultySide::Cpu,
        stage: Stage::ExpertDown,
        models: &[NVFP4],
        layers: [0, 0],
        patterns: EVERYWHERE,
        explained: &["scale-tensor"],
        says: &["the scale of the slot's number"],
        ..FAULT
    },
];

/// The model of NVFP4 with scales.
const NVFP4: usize = 21;

/// The scale of an expert, and for one that of the expert after it.
const SCALE: &str = "scale_of(select(0u, expert, known))";
const NEXT_SCALE: &str = "scale_of(select(0u, select(expert, (expert + 1u) % p.experts, expert == {expert}u), known))";

/// Of one expert no rule is seen, but whose weights it has.
const OF_ONE: &[&str] = &["the weights of expert {e + 1} for those of expert {e}"];

/// Where an expert's rows begin, and the same for the expert after it.
const EXPERT: &str = "let base = select(0u, expert, known) * p.piece.rows;";
const NEXT_EXPERT: &str =
    "let base = select(0u, select(expert, (expert + 1u) % p.experts, expert == {expert}u), known) * p.piece.rows;";

/// In place of an expert's output, NaN.
const NAN_EXPERT: Edit = (
    "y[slot * p.piece.rows + row] = value;",
    "y[slot * p.piece.rows + row] = select(value, make_nan(p.piece.first & 0u), e.base == {expert}u * p.piece.rows);",
);

/// Of an error that is everywhere, or everywhere that it exceeds the floor.
const EVERYWHERE: &[P] = &[P::WholeTensor, P::Scattered];

/// Each row's `k` largest over their sum, 0 for the others.
fn only_largest(probs: HostTensor, k: usize) -> Result<HostTensor> {
    let mut values = probs.to_f32();
    for row in values.chunks_exact_mut(probs.cols()) {
        let mut sorted = row.to_vec();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let least = sorted[k - 1];
        let sum: f32 = row.iter().filter(|p| **p >= least).sum();
        row.iter_mut().for_each(|p| *p = if *p >= least { *p / sum } else { 0.0 });
    }
    Ok(HostTensor::f32(&probs.shape, values))
}

fn gate_reads_up(place: &FaultPlace<'_>) -> Mistake {
    let up = match &place.weights().ffn {
        Ffn::Moe(moe) => moe.up.clone(),
        Ffn::Dense { up, .. } => up.clone(),
    };
    Box::new(move |engine, op| engine.run(&exchanged(op, &up)?))
}

fn misplaced(op: &HostOp<'_>) -> Error {
    Error::usage(format!("{:?} is planted with a fault of another operation", op.kind()))
}
