//! Norms, projections and the head: sums over rows, and the weights that they read.

use super::super::faulty::{Engine, FaultScope, HostOp};
use super::super::shader::{Edit, Shader};
use super::{By, FAULT, Fault, FaultySide};
use crate::backend::oracle::dequant;
use crate::diff::locate::PatternKind as P;
use crate::diff::measure::metrics::Side;
use crate::error::{Error, Result};
use crate::op::{GgmlType, HostTensor, Op, Stage, Weight};
use std::rc::Rc;
use std::sync::Arc;

pub static FAULTS: &[Fault] = &[
    Fault {
        name: "sub-block-scale",
        what: "sub-block 3 of every Q4_K block has the scale and minimum of sub-block 4",
        by: By::Shader(&[Shader { kernel: "embed", edits: &[NEIGHBOUR] }]),
        stage: Stage::Embedding,
        patterns: &[P::ColumnBlock, P::SubBlock],
        explained: &["scale-one", "scale-neighbour"],
        says: &[
            "sub-block 3 of every block with the scale of the one after",
            "each sub-block with the scale of the one after",
        ],
        ..FAULT
    },
    Fault {
        name: "sub-block-scale-q",
        what: "the same where the columns are summed over",
        by: By::Shader(&[
            Shader { kernel: "matmul", edits: &[NEIGHBOUR] },
            Shader { kernel: "matmul_lanes", edits: &[NEIGHBOUR] },
        ]),
        stage: Stage::QProj,
        layers: [2, 1],
        graded: true,
        patterns: NOWHERE,
        explained: &["scale-one", "scale-neighbour"],
        says: &["sub-block 3 of every block with the scale of the one after"],
        ..FAULT
    },
    Fault {
        name: "eps",
        what: "a norm with eps 1e-5 where the file says 1e-6",
        by: By::Shader(&[Shader { kernel: "rms_norm", edits: &[("/ f32(p.n) + p.eps)", "/ f32(p.n) + 1e-5)")] }]),
        stage: Stage::AttnNorm,
        patterns: NOWHERE,
        explained: &["norm-eps"],
        says: &["the norm with eps 1e-5 for"],
        ..FAULT
    },
    Fault {
        name: "eps-large",
        what: "a norm with eps 1e-3 where the file says 1e-6",
        by: By::Shader(&[Shader { kernel: "rms_norm", edits: &[("/ f32(p.n) + p.eps)", "/ f32(p.n) + 1e-3)")] }]),
        stage: Stage::AttnNorm,
        graded: true,
        patterns: NOWHERE,
        explained: &["norm-eps"],
        says: &["the norm with eps 1e-3 for"],
        ..FAULT
    },
    Fault {
        name: "norm-lanes",
        what: "the sum of squares over 8 lanes of 64, as if a subgroup had 8",
        by: By::Shader(&[Shader {
            kernel: "rms_norm",
            edits: &[(
                "cells[lane] += cells[lane + step];",
                "cells[lane] += select(0.0, cells[lane + step], step < 8u);",
            )],
        }]),
        stage: Stage::FfnNorm,
        layers: [2, 1],
        explained: &["lanes"],
        says: &["only lanes 0–7 of 64 summed"],
        ..FAULT
    },
    Fault {
        name: "qk-norm-missing",
        what: "q without its per-head norm",
        by: By::Shader(&[Shader {
            kernel: "rms_norm",
            edits: &[("x[start + i] * scale * weight[i];", "x[start + i];")],
        }]),
        stage: Stage::QNorm,
        layers: [1, 1],
        explained: &["norm-missing"],
        says: &["no norm: the input itself"],
        ..FAULT
    },
    Fault {
        name: "k-tail",
        what: "the last 32 columns of a tiled matrix product are left out",
        by: By::Shader(&[
            Shader { kernel: "matmul", edits: &[TILE_TAIL] },
            Shader { kernel: "matmul_lanes", edits: &[LANES_TAIL] },
        ]),
        stage: Stage::RouterLogits,
        layers: [0, 0],
        explained: &["k-skipped"],
        says: &["only the first 224 of 256"],
        ..FAULT
    },
    Fault {
        name: "lanes",
        what: "some lanes of a matrix-vector product are not summed, in decoding",
        by: By::Shader(&[
            Shader {
                kernel: "matvec",
                edits: &[(
                    "sums[at] += sums[at + step];",
                    "sums[at] += select(vec4<f32>(), sums[at + step], step < 4u);",
                )],
            },
            Shader { kernel: "matvec_lanes", edits: &[("subgroupBroadcast(mine, 7u),", "vec4<f32>(),")] },
        ]),
        stage: Stage::RouterLogits,
        layers: [2, 1],
        step: 1,
        // Of a sum that all lanes share in one turn, the last lanes are its end.
        explained: &["lanes", "k-skipped"],
        says: &["only lanes 0–6 of 8", "only lanes 0–3 of ", "only the first 128 of 256"],
        ..FAULT
    },
    Fault {
        name: "row-tile",
        what: "the last tile of rows of the head is not written",
        by: By::Shader(&[
            Shader {
                kernel: "matmul",
                edits: &[("if r < p.piece.count &&", "if r < (p.piece.count - 1u) / TILE * TILE &&")],
            },
            Shader {
                kernel: "matmul_lanes",
                edits: &[(
                    "if row + 8u * j < p.piece.count &&",
                    "if row + 8u * j < (p.piece.count - 1u) / TILE * TILE &&",
                )],
            },
        ]),
        stage: Stage::Logits,
        patterns: &[P::LastPartialTile, P::ColumnBlock, P::ColumnRange],
        explained: &["zero"],
        ..FAULT
    },
    Fault {
        name: "last-position",
        what: "the last position of a tile is not written",
        by: By::Shader(&[
            Shader { kernel: "matmul", edits: &[("position < p.positions {", "position + 1u < p.positions {")] },
            Shader { kernel: "matmul_lanes", edits: &[("t + k < p.positions {", "t + k + 1u < p.positions {")] },
        ]),
        stage: Stage::VProj,
        layers: [3, 1],
        patterns: &[P::LastPosition],
        explained: &["zero"],
        ..FAULT
    },
    Fault {
        name: "f16-accumulation",
        what: "the sums of a matrix product are held as f16",
        by: By::Shader(&[
            Shader {
                kernel: "matmul",
                edits: &[
                    AS_F16,
                    (
                        "sum = sum + mat4x4<f32>(a, b, c, d);",
                        "sum = sum + mat4x4<f32>(a, b, c, d);
        sum = mat4x4<f32>(as_f16(sum[0]), as_f16(sum[1]), as_f16(sum[2]), as_f16(sum[3]));",
                    ),
                ],
            },
            Shader {
                kernel: "matmul_lanes",
                edits: &[
                    AS_F16,
                    (
                        "x3);
            sum = sum + mat4x4<f32>(a, b, c, d);",
                        "x3);
            sum = sum + mat4x4<f32>(a, b, c, d);
            sum = mat4x4<f32>(as_f16(sum[0]), as_f16(sum[1]), as_f16(sum[2]), as_f16(sum[3]));",
                    ),
                ],
            },
        ]),
        stage: Stage::RouterLogits,
        layers: [1, 0],
        graded: true,
        patterns: NOWHERE,
        explained: &["sum-precision"],
        says: &["f16 sums"],
        ..FAULT
    },
    Fault {
        name: "bf16-inputs",
        what: "activations rounded to bf16 before they are multiplied",
        by: By::Operation(|_| Box::new(|engine, op| with_x(engine, op, bf16))),
        subject: FaultySide::Cpu,
        stage: Stage::QProj,
        layers: [3, 1],
        graded: true,
        patterns: NOWHERE,
        explained: &["input-precision"],
        says: &["inputs rounded to bf16"],
        ..FAULT
    },
    Fault {
        name: "int8-activations",
        what: "activations as int8 with a scale for 256 of them",
        by: By::Operation(|_| Box::new(|engine, op| with_x(engine, op, int8))),
        subject: FaultySide::Cpu,
        stage: Stage::KProj,
        layers: [1, 0],
        graded: true,
        patterns: NOWHERE,
        explained: &["int8-activations"],
        says: &["inputs as int8 with one scale per 256"],
        ..FAULT
    },
    Fault {
        name: "int8-reference",
        what: "the reference's activations as int8, the GPU correct",
        by: By::Operation(|_| Box::new(|engine, op| with_x(engine, op, int8))),
        side: Side::Reference,
        stage: Stage::ExpertDown,
        layers: [1, 0],
        patterns: NOWHERE,
        explained: &["int8-activations"],
        says: &["inputs as int8 with one scale per 256"],
        ..FAULT
    },
    Fault {
        name: "quant-type",
        what: "Q4_K weights read as Q6_K",
        by: By::Operation(|_| Box::new(|engine, op| with_weight(engine, op, |w| reinterpreted(w, GgmlType::Q6_K)))),
        stage: Stage::ExpertDown,
        layers: [0, 0],
        patterns: &[P::WholeTensor, P::Scattered, P::ColumnRange, P::Experts, P::AllButExpert, P::ColumnResidue],
        explained: &["weight-type"],
        says: &["Q4_K weights read as Q6_K"],
        ..FAULT
    },
    Fault {
        name: "head-transposed",
        what: "the head's values read as a [hidden, vocabulary] matrix",
        by: By::Operation(|_| Box::new(|engine, op| with_weight(engine, op, transposed))),
        subject: FaultySide::Cpu,
        stage: Stage::Logits,
        explained: &["weight-transposed"],
        says: &["the weight transposed"],
        ..FAULT
    },
    Fault {
        name: "one-row",
        what: "bf16 activations at one position",
        by: By::Operation(|_| Box::new(|engine, op| with_x(engine, op, bf16))),
        subject: FaultySide::Cpu,
        stage: Stage::AttnOut,
        layers: [3, 0],
        scope: FaultScope::Row(4),
        patterns: &[P::Position],
        explained: &["input-precision"],
        says: &["inputs rounded to bf16"],
        ..FAULT
    },
];

/// Of an error that is everywhere, or everywhere that it exceeds the floor.
pub(super) const NOWHERE: &[P] = &[P::WholeTensor, P::Scattered];

/// The last pair of columns left out of a sum: in tiles, and where lanes have rows to themselves.
pub(super) const TILE_TAIL: Edit = ("i < p.piece.pairs; i++", "i + 1u < p.piece.pairs; i++");
pub(super) const LANES_TAIL: Edit = (
    "let at = columns(n * PAIRS + pair,",
    "if n * PAIRS + pair + 1u == p.piece.pairs {
                break;
            }
            let at = columns(n * PAIRS + pair,",
);

/// A function that rounds to f16, before the one that multiplies. In integers: a driver was seen to fold an unpack of a pack away.
const AS_F16: Edit = (
    "fn products(",
    "fn as_f16(v: vec4<f32>) -> vec4<f32> {
    let bits = bitcast<vec4<u32>>(v);
    return bitcast<vec4<f32>>((bits + 0xFFFu + ((bits >> vec4<u32>(13u)) & vec4<u32>(1u))) & vec4<u32>(0xFFFFE000u));
}
fn products(",
);

/// In Q4_K's WGSL: the scale and minimum of sub-block 4 for sub-block 3.
const NEIGHBOUR: Edit = (
    "let dm = s.dm * scale_min(s.words, (c >> 1u) * 2u + h);",
    "let j = (c >> 1u) * 2u + h;
    let dm = s.dm * scale_min(s.words, select(j, 4u, j == 3u));",
);

/// The operation over x as `f` changes each of its rows.
pub(super) fn with_x(engine: &mut Engine<'_>, op: &HostOp<'_>, f: fn(&mut [f32])) -> Result<HostTensor> {
    let change = |x: &Rc<HostTensor>| {
        let mut values = x.to_f32();
        values.chunks_exact_mut(x.cols()).for_each(f);
        Rc::new(HostTensor::f32(&x.shape, values))
    };
    let op = match *op {
        Op::MatMul { ref x, weight } => Op::MatMul { x: change(x), weight },
        Op::ExpertMatMul { ref x, ref ids, weight } => Op::ExpertMatMul { x: change(x), ids: ids.clone(), weight },
        _ => return Err(not_a_product(op)),
    };
    engine.run(&op)
}

/// The operation with the weight that `f` makes of its own.
pub(super) fn with_weight(
    engine: &mut Engine<'_>,
    op: &HostOp<'_>,
    f: fn(&Weight) -> Result<Arc<Weight>>,
) -> Result<HostTensor> {
    let made = f(op.weight().ok_or_else(|| not_a_product(op))?)?;
    engine.run(&exchanged(op, &made)?)
}

/// The operation with another weight.
pub(super) fn exchanged<'w>(op: &HostOp<'w>, weight: &'w Arc<Weight>) -> Result<HostOp<'w>> {
    match op {
        Op::MatMul { x, .. } => Ok(Op::MatMul { x: x.clone(), weight }),
        Op::ExpertMatMul { x, ids, .. } => Ok(Op::ExpertMatMul { x: x.clone(), ids: ids.clone(), weight }),
        _ => Err(not_a_product(op)),
    }
}

fn not_a_product(op: &HostOp<'_>) -> Error {
    Error::usage(format!("{:?} is planted with a fault of matrix products", op.kind()))
}

/// Rounded to the nearest bf16, ties to even.
fn bf16(x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x = half::bf16::from_f32(*x).to_f32());
}

/// Rounded to 127ths of the largest of each 256.
fn int8(x: &mut [f32]) {
    for block in x.chunks_mut(256) {
        let step = block.iter().fold(0f32, |m, x| m.max(x.abs())) / 127.0;
        if step > 0.0 {
            block.iter_mut().for_each(|x| *x = (*x / step).round() * step);
        }
    }
}

/// The same bytes as rows of another type, each as long as that type has it; zeros where the bytes end.
fn reinterpreted(weight: &Weight, ty: GgmlType) -> Result<Arc<Weight>> {
    let row = ty.row_bytes(weight.cols).ok_or_else(|| Error::usage(format!("{}: no rows of {ty}", weight.name)))?;
    let mut bytes = weight.bytes().to_vec();
    bytes.resize(row * weight.rows * weight.experts, 0);
    Weight::from_vec(&weight.name, ty, [weight.cols, weight.rows, weight.experts], bytes)
}

/// Weight [N, K] with the values that its flat list has as [K, N].
fn transposed(weight: &Weight) -> Result<Arc<Weight>> {
    let (rows, cols) = (weight.rows, weight.cols);
    let mut flat = vec![0.0; rows * cols];
    dequant::row(weight.ty, &weight.bytes(), &mut flat)?;
    let bytes = (0..rows * cols).flat_map(|i| (flat[i % cols * rows + i / cols] as f32).to_le_bytes()).collect();
    Weight::from_vec(&weight.name, GgmlType::F32, [cols, rows, 1], bytes)
}
