//! Emulation and floors against engines that are simulated here, over the table of operations and every named contract: operands are rounded
//! in f32 as ggml's code does it, sums are taken in f32, and inner values and results are rounded by the `half` crate.
//!
//! Nothing here is shared with what is tested but the oracle's reading of weights.

use half::{bf16, f16};

use crate::backend::cases;
use crate::backend::contract::{named, names};
use crate::backend::oracle::dequant;
use crate::backend::{Contract, Precision};
use crate::formula::exact::exact;
use crate::formula::floor::floor_of;
use crate::op::{GateActivation, GgmlType, HostTensor, Op, OpKind, Pairing, Rotation, Weight, first_seen};

fn to(format: Precision, x: f32) -> f32 {
    match format {
        Precision::F16 => f16::from_f32(x).to_f32(),
        Precision::Bf16 => bf16::from_f32(x).to_f32(),
        _ => x,
    }
}

/// A block of int8 activations: `quantize_row_q8_0_ref`, `quantize_row_q8_1_ref`, `quantize_row_q8_K_ref`.
struct Block {
    codes: Vec<f32>,
    d: f32,
    /// Q8_1's sum.
    s: f32,
}

fn quantized(format: Precision, x: &[f32]) -> Block {
    let amax = x.iter().fold(0f32, |m, x| m.max(x.abs()));
    if format == Precision::Q8_K {
        let Some(max) = x.iter().copied().find(|x| x.abs() == amax).filter(|_| amax > 0.0) else {
            return Block { codes: vec![0.0; x.len()], d: 0.0, s: 0.0 };
        };
        let iscale = -127f32 / max;
        let codes = x.iter().map(|x| (iscale * x).round_ties_even().min(127.0)).collect();
        return Block { codes, d: 1.0 / iscale, s: 0.0 };
    }
    let d = amax / 127.0;
    let id = if d > 0.0 { 1.0 / d } else { 0.0 };
    let codes: Vec<f32> = x.iter().map(|x| (x * id).round()).collect();
    let s = f16::from_f32(d * codes.iter().sum::<f32>()).to_f32();
    let half = matches!(format, Precision::Q8_0 | Precision::Q8_1);
    Block { codes, d: if half { f16::from_f32(d).to_f32() } else { d }, s }
}

fn block_of(format: Precision) -> Option<usize> {
    match format {
        Precision::Q8_0 | Precision::Q8_1 => Some(32),
        Precision::Q8_K => Some(256),
        Precision::Int8 { block } => Some(block as usize),
        _ => None,
    }
}

/// A row after the round trip, and Q8_1's sums.
fn round_trip(format: Precision, x: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let Some(block) = block_of(format) else { return (x.iter().map(|x| to(format, *x)).collect(), vec![]) };
    let blocks: Vec<Block> = x.chunks(block).map(|x| quantized(format, x)).collect();
    let values = blocks.iter().flat_map(|b| b.codes.iter().map(|c| c * b.d)).collect();
    (values, blocks.iter().map(|b| b.s).collect())
}

/// ggml's `type_traits_cpu[ty].vec_dot_type`, row by row of that table.
fn vec_dot(ty: GgmlType) -> Precision {
    use GgmlType::*;
    match ty {
        F32 => Precision::F32,
        F16 => Precision::F16,
        BF16 => Precision::Bf16,
        Q4_1 | Q5_1 => Precision::Q8_1,
        Q4_0 | Q5_0 | Q8_0 | IQ4_NL | MXFP4 | NVFP4 | Q1_0 | Q2_0 => Precision::Q8_0,
        _ => Precision::Q8_K,
    }
}

/// The same sum exactly and in f32.
#[derive(Clone, Copy, Default)]
struct Both {
    exact: f64,
    f32: f32,
}

fn dot(a: &[f32], b: &[f32], accumulator: Precision) -> Both {
    let mut sum = Both::default();
    for (a, b) in a.iter().zip(b) {
        sum.exact += *a as f64 * *b as f64;
        sum.f32 = to(accumulator, sum.f32 + a * b);
    }
    sum
}

/// A dot product as `ggml_vec_dot_q6_K_q8_K` and the ternary ones take it on x86: each of eight f32 sums has, of each block of 256, the unsigned codes of
/// every eighth group of four, less the offset times the activations of 32 others.
fn in_lanes(weight: &Weight, expert: usize, row: usize, x: &[f32]) -> f32 {
    let offset = if weight.ty == GgmlType::Q6_K { 32.0 } else { 1.0 };
    let mut blocks = vec![[0f64; 8]; weight.cols / 256];
    dequant::parts(weight.ty, weight.row(expert, row), |i, part| {
        let (x, within) = (x[i] as f64, i % 256);
        blocks[i / 256][within % 32 / 4] += part.step * (part.code + offset) * x;
        blocks[i / 256][within / 32] -= part.step * offset * x;
    })
    .unwrap();
    let mut sums = [0f32; 8];
    for block in blocks {
        sums.iter_mut().zip(block).for_each(|(sum, lane)| *sum = (*sum as f64 + lane) as f32);
    }
    let [a, b, c, d] = std::array::from_fn(|i| sums[i + 4] + sums[i]);
    (a + c) + (b + d)
}

/// A row of a weight: rounded values, and its offsets where they are kept apart.
fn weights(weight: &Weight, expert: usize, row: usize, format: Precision) -> (Vec<f32>, Vec<f32>) {
    let (mut values, mut offsets) = (vec![0.0; weight.cols], vec![0.0; weight.cols]);
    dequant::each(weight.ty, weight.row(expert, row), |i, term| {
        values[i] = to(format, (term.product - term.offset) as f32);
        offsets[i] = term.offset as f32;
    })
    .unwrap();
    (values, offsets)
}

/// Results in f64 from the rounded operands, and as an engine stores them; `None` for operations that move values.
fn simulated(op: &Op<'_, &HostTensor>, c: &Contract) -> Option<(Vec<f64>, Vec<f32>)> {
    let mut all: (Vec<f64>, Vec<f32>) = Default::default();
    let mut put = |exact: f64, value: f32| {
        all.0.push(exact);
        all.1.push(to(c.output, value));
    };
    let inner = |x: f32| to(c.inner, x);
    let x: Vec<Vec<f32>> = op.inputs().iter().map(|t| t.to_f32()).collect();
    // Of each slot the first of its columns, the expert, and the columns that follow as they are.
    type Slot = (usize, usize, std::ops::Range<usize>);
    let mut product = |weight: &Weight, slots: &mut dyn Iterator<Item = Slot>| {
        let format = match c.activations {
            Precision::VecDot => vec_dot(weight.ty),
            Precision::Q8_K_BesideBlocks if weight.ty.block_len() > 1 => Precision::Q8_K,
            Precision::Q8_K_BesideBlocks => Precision::F32,
            stated => stated,
        };
        for (begin, expert, kept) in slots {
            let given = &x[0];
            let (x, sums) = round_trip(format, &given[begin..][..weight.cols]);
            for row in 0..weight.rows {
                let (w, offsets) = weights(weight, expert, row, c.weights);
                let mut y = dot(&x, &w, c.accumulator);
                if c.offsets_apart && matches!(weight.ty, GgmlType::Q6_K | GgmlType::TQ1_0 | GgmlType::TQ2_0) {
                    y.f32 = in_lanes(weight, expert, row, &x);
                }
                if format == Precision::Q8_1 && weight.ty != GgmlType::Q2_K && c.weights == Precision::F32 {
                    // The minimum meets the block's sum, not its codes.
                    for (block, s) in sums.iter().enumerate() {
                        let codes: f64 = x[block * 32..].iter().take(32).map(|x| *x as f64).sum();
                        y.f32 += (offsets[block * 32] as f64 * (codes - *s as f64)) as f32;
                    }
                }
                let scale = weight.scale(expert).unwrap_or(1.0);
                put(y.exact * scale as f64, y.f32 * scale);
            }
            given[kept].iter().for_each(|x| put(*x as f64, *x));
        }
    };
    // With sinks, what the exponentials are taken of is a value of its own.
    let softmax = |x: &[f32], sinks: bool| -> (Vec<f64>, Vec<f32>) {
        let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let e: Vec<f32> = x.iter().map(|x| if sinks { inner(x - max) } else { x - max }.exp()).collect();
        let sum = if c.accumulator == Precision::F64 {
            (1.0 / e.iter().map(|e| *e as f64).sum::<f64>()) as f32
        } else {
            1.0 / e.iter().sum::<f32>()
        };
        let exact: Vec<f64> = x.iter().map(|x| (*x as f64 - max as f64).exp()).collect();
        let total: f64 = exact.iter().sum();
        (exact.iter().map(|e| e / total).collect(), e.iter().map(|e| e * sum).collect())
    };
    match *op {
        Op::Embed { table, tokens, scale } => {
            for token in tokens {
                let (w, _) = weights(table, 0, *token as usize, c.weights);
                w.iter().for_each(|w| put(*w as f64 * scale, w * scale as f32));
            }
        }
        Op::MatMul { x, weight } => product(weight, &mut (0..x.shape[0]).map(|t| (t * weight.cols, 0, 0..0))),
        Op::ExpertMatMul { x, ids, weight } => {
            let per_slot = x.shape.len() == 3;
            let slots = ids.ids().iter().enumerate();
            let row = |slot: usize| if per_slot { slot } else { slot / ids.cols() };
            let slots = slots.map(|(slot, id)| (row(slot) * weight.cols, *id as usize, 0..0));
            product(weight, &mut { slots });
        }
        Op::HeadMatMul { x, weight, head_dim, keep } => {
            let (k, heads) = (weight.cols, weight.experts);
            let slot = |slot: usize| {
                let head = if x.cols() == head_dim { slot / heads } else { slot };
                let kept = head * head_dim + k..(head + 1) * head_dim;
                (head * head_dim, slot % heads, if keep { kept } else { 0..0 })
            };
            product(weight, &mut (0..x.shape[0] * heads).map(slot));
        }
        Op::RmsNorm { x: operand, weight, eps, keep } => {
            let (w, _) = weights(weight, 0, 0, c.weights);
            let end = operand.cols() - keep;
            let groups = x[0].chunks(operand.cols()).flat_map(|row| {
                let kept = (!row[end..].is_empty()).then_some((&row[end..], true));
                row[..end].chunks(w.len()).map(|group| (group, false)).chain(kept)
            });
            for (x, kept) in groups {
                if kept {
                    x.iter().for_each(|x| put(*x as f64, *x));
                    continue;
                }
                let wide: f64 = x.iter().map(|x| (x * x) as f64).sum();
                let sum = if c.accumulator == Precision::F64 { wide as f32 } else { x.iter().map(|x| x * x).sum() };
                let scale = 1.0 / (sum / w.len() as f32 + eps).sqrt();
                let square = x.iter().map(|x| *x as f64 * *x as f64).sum::<f64>() / w.len() as f64;
                let exact = 1.0 / (square + eps as f64).sqrt();
                x.iter().zip(&w).for_each(|(x, w)| put(*x as f64 * exact * *w as f64, inner(x * scale) * w));
            }
        }
        Op::Bias { weight, .. } => {
            let (b, _) = weights(weight, 0, 0, c.weights);
            for x in x[0].chunks(b.len()) {
                x.iter().zip(&b).for_each(|(x, b)| put(*x as f64 + *b as f64, x + b));
            }
        }
        Op::Rope { x: operand, start, head_dim, rotation } => {
            let (turned, Rotation { base, .. }) = (rotation.turned(head_dim), rotation);
            let half = turned / 2;
            let (scales, magnitude) = (rotation.scales(head_dim), rotation.magnitude());
            let factors: Vec<f32> = rotation.factors.map_or(vec![1.0; half], |factors| factors.f32s().collect());
            for (t, row) in x[0].chunks(operand.cols()).enumerate() {
                let position = (start + t) as f64;
                let theta_scale = (base as f32).powf(-2.0 / turned as f32);
                let mut theta = position as f32;
                let mut turns = vec![];
                for (i, &factor) in factors.iter().enumerate() {
                    let scale = scales[i];
                    let exact = position * scale * base.powf(-2.0 * i as f64 / turned as f64) / factor as f64;
                    let angle = match c.angles {
                        Precision::F64 => (exact, 0.0),
                        // ggml's way and PyTorch's.
                        _ if t % 2 == 0 => (0.0, scale as f32 * (theta / factor)),
                        _ => {
                            let plain = 1.0 / (base as f32).powf(2.0 * i as f32 / turned as f32);
                            (0.0, position as f32 * (plain / factor * scale as f32))
                        }
                    };
                    theta *= theta_scale;
                    let (sin, cos) = match angle {
                        (wide, 0.0) if c.angles == Precision::F64 => (wide.sin() as f32, wide.cos() as f32),
                        (_, narrow) => (narrow.sin(), narrow.cos()),
                    };
                    let stretched = |x: f32| x * magnitude as f32;
                    turns.push((exact, inner(stretched(sin)), inner(stretched(cos))));
                }
                for head in row.chunks(head_dim) {
                    for i in 0..head_dim {
                        let Some(within) = i.checked_sub(rotation.first).filter(|within| *within < turned) else {
                            put(head[i] as f64, head[i]);
                            continue;
                        };
                        let (pair, partner) = match rotation.pairing {
                            Pairing::Neox => (within % half, if within < half { i + half } else { i - half }),
                            Pairing::Norm => (within / 2, rotation.first + (within ^ 1)),
                        };
                        let (exact, sin, cos) = turns[pair];
                        let (x, other) = (head[i], if i < partner { -head[partner] } else { head[partner] });
                        let wide = (x as f64 * exact.cos() + other as f64 * exact.sin()) * magnitude;
                        put(wide, inner(x * cos) + inner(other * sin));
                    }
                }
            }
        }
        Op::AttnScores { q, k, start, head_dim, scale, window } => {
            let scale = scale.unwrap_or(1.0 / (head_dim as f64).sqrt());
            let format = if c.activations == Precision::VecDot { c.cache } else { c.activations };
            let rounded =
                |x: &[f32], format| -> Vec<f32> { x.chunks(head_dim).flat_map(|x| round_trip(format, x).0).collect() };
            let (qs, ks) = (rounded(&x[0], format), rounded(&x[1], c.cache));
            let (heads, group, t) = (q.cols() / head_dim, q.cols() / k.cols(), q.shape[0]);
            for i in 0..heads * t {
                let (head, token) = (i / t, i % t);
                for position in 0..start + t {
                    if position > start + token || position < first_seen(start + token, window) {
                        put(0.0, 0.0);
                        continue;
                    }
                    let k = &ks[position * k.cols() + head / group * head_dim..][..head_dim];
                    let y = dot(&qs[token * q.cols() + head * head_dim..][..head_dim], k, c.accumulator);
                    put(y.exact * scale, inner(y.f32) * scale as f32);
                }
            }
        }
        Op::AttnContext { probs, v, start, head_dim, window } => {
            let (heads, t, s) = (probs.shape[0], probs.shape[1], probs.cols());
            let format = if c.activations == Precision::VecDot { c.cache } else { c.activations };
            let ps: Vec<f32> = x[0].chunks(s).flat_map(|p| round_trip(format, p).0).collect();
            let vs: Vec<f32> = x[1].chunks(head_dim).flat_map(|v| round_trip(c.cache, v).0).collect();
            let group = heads * head_dim / v.cols();
            for (token, head) in (0..t).flat_map(|t| (0..heads).map(move |head| (t, head))) {
                let from = first_seen(start + token, window);
                let p = &ps[(head * t + token) * s..][from..start + token + 1];
                for i in 0..head_dim {
                    let column: Vec<f32> =
                        (from..from + p.len()).map(|n| vs[n * v.cols() + head / group * head_dim + i]).collect();
                    let y = dot(p, &column, c.accumulator);
                    put(y.exact, y.f32);
                }
            }
        }
        Op::ExpertBias { x: operand, ids, weight } => {
            for (x, id) in x[0].chunks(operand.cols()).zip(ids.ids()) {
                let (b, _) = weights(weight, 0, *id as usize, c.weights);
                x.iter().zip(&b).for_each(|(x, b)| put(*x as f64 + *b as f64, x + b));
            }
        }
        Op::AttnProbs { scores, start, window, sinks } => {
            let (t, s) = (scores.shape[1], scores.cols());
            let sinks = sinks.map(|sinks| weights(sinks, 0, 0, c.weights).0);
            for (i, row) in x[0].chunks(s).enumerate() {
                let from = first_seen(start + i % t, window);
                (0..from).for_each(|_| put(0.0, 0.0));
                let mut entries = row[from..start + i % t + 1].to_vec();
                let keys = entries.len();
                entries.extend(sinks.as_ref().map(|sinks| sinks[i / t]));
                let (wide, narrow) = softmax(&entries, sinks.is_some());
                wide.into_iter().zip(narrow).take(keys).for_each(|(w, n)| put(w, n));
                (start + i % t + 1..s).for_each(|_| put(0.0, 0.0));
            }
        }
        Op::RouterProbs { sigmoid: true, .. } => {
            let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
            x[0].iter().for_each(|x| put(1.0 / (1.0 + (-*x as f64).exp()), sigmoid(*x)));
        }
        Op::RouterProbs { logits, .. } => {
            for row in x[0].chunks(logits.cols()) {
                let (wide, narrow) = softmax(row, false);
                wide.into_iter().zip(narrow).for_each(|(w, n)| put(w, n));
            }
        }
        Op::RouterWeights { probs, ids, renormalise, softmax: of_chosen, scale } => {
            for (row, ids) in x[0].chunks(probs.cols()).zip(ids.ids().chunks(ids.cols())) {
                let p: Vec<f32> = ids.iter().map(|id| row[*id as usize]).collect();
                if of_chosen {
                    let (wide, narrow) = softmax(&p, false);
                    wide.into_iter().zip(narrow).for_each(|(w, n)| put(w, n));
                    continue;
                }
                let (wide, narrow) =
                    if renormalise { (p.iter().map(|p| *p as f64).sum(), p.iter().sum()) } else { (1.0, 1.0) };
                p.iter().for_each(|p| put(*p as f64 / wide * scale, inner(p / narrow) * scale as f32));
            }
        }
        Op::Add { .. } => x[0].iter().zip(&x[1]).for_each(|(a, b)| put(*a as f64 + *b as f64, a + b)),
        Op::SwiGlu { activation: GateActivation::GeluTanh, .. } => {
            // ggml looks gelu up by its argument as f16, and has f16 in the table.
            let looked_up = |x: f32, g: f32| if g.abs() < 10.0 { to(c.gelu, x) } else { x };
            for (i, (given, u)) in x[0].iter().zip(&x[1]).enumerate() {
                let g = &looked_up(*given, *given);
                let z = |g: f64| (2.0 / std::f64::consts::PI).sqrt() * (g + 0.044715 * g * g * g);
                let wide = *g as f64 / (1.0 + (-2.0 * z(*g as f64)).exp()) * *u as f64;
                let narrow = 0.797_884_6 * (g + 0.044_715 * g * g * g);
                // By tanh, as most engines do, and by a sigmoid.
                let gelu = if i % 2 == 0 { 0.5 * g * (1.0 + narrow.tanh()) } else { g / (1.0 + (-2.0 * narrow).exp()) };
                put(wide, inner(looked_up(gelu, *given)) * u);
            }
        }
        Op::SwiGlu { activation: GateActivation::Clamped, .. } => {
            for (g, u) in x[0].iter().zip(&x[1]) {
                let (g, u) = (g.min(7.0), u.clamp(-7.0, 7.0));
                let wide = g as f64 / (1.0 + (-1.702 * g as f64).exp()) * (1.0 + u as f64);
                // Each step is a tensor of its own in PyTorch.
                let sigmoid = inner(1.0 / (1.0 + (-inner(1.702 * g)).exp()));
                put(wide, inner(g * sigmoid) * inner(1.0 + u));
            }
        }
        Op::SwiGlu { activation: GateActivation::Sigmoid, .. } => {
            for (g, u) in x[0].iter().zip(&x[1]) {
                put(*u as f64 / (1.0 + (-*g as f64).exp()), inner(1.0 / (1.0 + (-g).exp())) * u);
            }
        }
        Op::SwiGlu { .. } => {
            for (g, u) in x[0].iter().zip(&x[1]) {
                let wide = *g as f64 / (1.0 + (-*g as f64).exp()) * *u as f64;
                put(wide, inner(g / (1.0 + (-g).exp())) * u);
            }
        }
        Op::SigmoidGate { x: gated, .. } => {
            for (row, g) in x[0].chunks(gated.cols()).zip(&x[1]) {
                let sigmoid = inner(1.0 / (1.0 + (-g).exp()));
                row.iter().for_each(|x| put(*x as f64 / (1.0 + (-*g as f64).exp()), x * sigmoid));
            }
        }
        Op::Combine { down, weights } => {
            let (k, hidden) = (weights.cols(), down.cols());
            for (t, w) in x[1].chunks(k).enumerate() {
                for i in 0..hidden {
                    let d = |slot: usize| x[0][(t * k + slot) * hidden + i];
                    let wide = (0..k).map(|slot| d(slot) as f64 * w[slot] as f64).sum();
                    let add = |sum: f32, slot: usize| to(c.accumulator, sum + inner(d(slot) * w[slot]));
                    put(wide, (0..k).fold(0.0, add));
                }
            }
        }
        Op::Conv { weight, start, .. } => {
            for (i, _) in x[0].iter().enumerate() {
                let (t, channel) = (i / weight.rows, i % weight.rows);
                let (w, _) = weights(weight, 0, channel, c.weights);
                let read = |j: usize| match (start + t + j + 1).checked_sub(weight.cols) {
                    Some(position) if position >= start => x[0][(position - start) * weight.rows + channel],
                    Some(position) => x[1][position * weight.rows + channel],
                    None => 0.0,
                };
                let sum = dot(&(0..weight.cols).map(read).collect::<Vec<f32>>(), &w, c.accumulator);
                put(sum.exact / (1.0 + (-sum.exact).exp()), sum.f32 / (1.0 + (-sum.f32).exp()));
            }
        }
        Op::L2Norm { x: all, first, heads, head_dim, eps } => {
            for row in x[0].chunks(all.cols()) {
                for head in row[first..][..heads * head_dim].chunks(head_dim) {
                    let squares = dot(head, head, Precision::F32);
                    let (wide, narrow) = ((squares.exact + eps as f64).sqrt(), (squares.f32 + eps).sqrt());
                    head.iter().for_each(|x| put(*x as f64 / wide, x / narrow));
                }
            }
        }
        Op::Decay { weight, .. } => {
            let (w, _) = weights(weight, 0, 0, c.weights);
            for (x, w) in x[0].iter().zip(w.iter().cycle()) {
                // As ggml has it, without ln_1p.
                let narrow = if *x > 20.0 { *x } else { (1.0 + x.exp()).ln() };
                put(((*x as f64).exp().ln_1p()) * *w as f64, narrow * w);
            }
        }
        Op::DeltaRule { .. } => {
            let exact = crate::backend::oracle::evaluate(op).unwrap().to_f64();
            exact.into_iter().zip(super::linear_attention::in_chunks(op)).for_each(|(wide, narrow)| put(wide, narrow));
        }
        Op::RouterTopK { .. } | Op::Store { .. } | Op::Rows { .. } => return None,
    }
    Some(all)
}

/// Over the table: what is emulated is what the simulation makes of the rounded operands, up to codes that are undecided; and no engine that
/// computes under the contract leaves its floor.
#[test]
fn emulation_and_floors_are_those_of_a_simulated_engine() {
    let mut wrong = Vec::new();
    // What is simulated is f32 at the widest.
    let narrow = names().iter().filter(|name| !["oracle", "transformers-f64"].contains(name));
    for name in narrow.chain(&["llama.cpp-cpu+kv=q8_0", "llama.cpp-cpu+fa"]) {
        let contract = named(name).unwrap();
        let (mut elements, mut undecided) = (0, 0);
        let mut largest = std::collections::BTreeMap::<OpKind, f64>::new();
        for (n, case) in cases::table().into_iter().enumerate().filter(|(_, case)| case.work() <= 30_000) {
            let (operands, c) = (case.build(n as u64).unwrap(), contract.get(case.kind()));
            let op = operands.op();
            let Some((simulated, stored)) = simulated(&op, c) else { continue };
            let exact = exact(&op, c).unwrap();
            let floor = floor_of(&op, c, &exact).unwrap();
            for (i, y) in exact.to_f64().into_iter().enumerate() {
                // Beyond the range of a format there is nothing to compare.
                if !y.is_finite() || !simulated[i].is_finite() || !stored[i].is_finite() {
                    continue;
                }
                let off = (simulated[i] - y).abs();
                elements += 1;
                undecided += (off > 1e-9 * floor[i].max(y.abs())) as usize;
                let ratio = |error: f64| if error == 0.0 { 0.0 } else { error / floor[i] };
                let found = ratio(stored[i] as f64 - y).abs().max(ratio(off));
                let largest = largest.entry(case.kind()).or_default();
                *largest = largest.max(found);
                if (found.is_nan() || found > 1.0) && wrong.len() < 40 {
                    wrong
                        .push(format!("{name}: {case} [{i}]: {found:.3} × floor, exact {y:e}, stored {:e}", stored[i]));
                }
            }
        }
        println!("{name}: {undecided} of {elements} elements have undecided codes; largest ratios {largest:.3?}");
        assert!(undecided * 100 < elements, "{name}: {undecided} of {elements} elements are emulated otherwise");
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Small codes meet activations that are alike in a lane: what the lanes sum up is many times what the signed products are.
#[test]
fn offsets_that_are_kept_apart_round_as_such() {
    let (rows, blocks) = (4, 8);
    let code = |i: usize| 31 + i.wrapping_mul(0x9e37_79b9) / 65536 % 3;
    let mut bytes = Vec::new();
    for first in (0..rows * blocks).map(|block| block * 256) {
        let at = |half: usize, run: usize, l: usize| code(first + half * 128 + run * 32 + l) as u8;
        for (half, pair, l) in (0..2).flat_map(|h| (0..2).flat_map(move |p| (0..32).map(move |l| (h, p, l)))) {
            bytes.push((at(half, pair, l) % 16) | ((at(half, pair + 2, l) % 16) << 4));
        }
        for (half, l) in (0..2).flat_map(|h| (0..32).map(move |l| (h, l))) {
            bytes.push((0..4).fold(0, |bits, run| bits | ((at(half, run, l) / 16) << (2 * run))));
        }
        bytes.extend([1u8; 16]);
        bytes.extend(f16::from_f32(0.01).to_le_bytes());
    }
    let weight = Weight::from_vec("w", GgmlType::Q6_K, [256 * blocks, rows, 1], bytes).unwrap();
    let x: Vec<f32> = (0..256 * blocks).map(|i| if i / 4 % 2 == 0 { 1.0 } else { -1.0 + i as f32 / 1e4 }).collect();
    let operand = HostTensor::f32(&[1, x.len()], x.clone());
    let op = Op::MatMul { x: &operand, weight: &weight };
    let contract = *named("llama.cpp-cpu").unwrap().get(OpKind::MatMul);
    let (x, _) = round_trip(Precision::Q8_K, &x);
    let exact = exact(&op, &contract).unwrap();
    let worst = |contract: &Contract| {
        let floor = floor_of(&op, contract, &exact).unwrap();
        let each = exact.to_f64().into_iter().zip(floor).enumerate();
        each.map(|(row, (y, floor))| (in_lanes(&weight, 0, row, &x) as f64 - y).abs() / floor).fold(0.0, f64::max)
    };
    let (apart, in_codes) = (worst(&contract), worst(&Contract { offsets_apart: false, ..contract }));
    println!("{apart:.3} × floor with offsets apart, {in_codes:.3} with them in the codes");
    assert!(apart < 1.0 && in_codes > 1.0, "{apart}, {in_codes}");
}
