//! A stage's exact result under a contract: the float64 oracle's, on operands that are rounded as the contract says.
//!
//! Design:
//! - **The oracle stays as it is.** What a contract rounds before it is used (activations to int8 blocks, halves or bf16, K and V to the
//!   cache's format, weights to a format) is rounded here, by ggml's and IEEE's rules, and handed to [`evaluate`] in the operands' place.
//! - **Whoever sees the operands can repeat their rounding exactly**, so a contract of int8 activations has nearly the floor of f32, and not
//!   one that hides every fault below a step. What is left open is a code so near to the middle of two that the arithmetic of
//!   its scale decides; the floor has its step (`Emulation::ties`).
//! - **A contract that rounds nothing costs nothing**: the operands are not copied, and the result is [`evaluate`]'s.
//! - Rounded weights are made a few rows at a time, since a model's largest matrix may not fit twice.
//! - The roundings of results inside a stage, and of what it stores, depend on last bits that only the engine has; they are bounded by
//!   the floors.

use std::sync::Arc;

use super::linear::Decode;
use super::precision::{FORMATS, FloatFormat, Int8};
use super::rounding::LOOKED_UP;
use crate::backend::oracle::{dequant, evaluate};
use crate::backend::{Contract, KeptWeight, Precision};
use crate::error::Result;
use crate::op::{Data, GateActivation, GgmlType, HostTensor, Op, Site, Weight};

/// The oracle's result on operands that are rounded as `contract` says: [`evaluate`] itself where it rounds none.
///
/// # Errors
/// As [`evaluate`].
pub fn exact(op: &Op<'_, &HostTensor>, contract: &Contract) -> Result<HostTensor> {
    op.check(None::<Site>, |t| t.operand())?;
    Emulation::of(op, contract).evaluate(op)
}

/// ggml's shortest block of codes.
const RUN: usize = 32;

/// What a contract rounds of an operation's operands.
pub(crate) struct Emulation {
    /// In the order of [`Op::inputs`]; `None` is as given.
    operands: Vec<Option<Rounded>>,
    pub weights: Option<FloatFormat>,
    /// What an embedding's scale becomes.
    pub scale: Option<FloatFormat>,
    /// How many products in a row an engine sums in integers: where int8 activations meet a quantized weight, 32, since ggml's blocks of
    /// both are at least as long; otherwise 1.
    pub exact_run: usize,
    /// Offsets of codes are multiplied apart; see [`Contract::offsets_apart`].
    pub offsets_apart: bool,
}

/// An operand after rounding.
struct Rounded {
    values: HostTensor,
    /// Empty where every code is decided by nature: of floating-point formats.
    steps: Vec<f64>,
    /// Of Q8_1, for each block; see [`super::precision::Int8Row`].
    sums: Vec<f64>,
}

impl Emulation {
    /// Of nothing: operands and weights are as given.
    pub fn nothing() -> Self {
        Self { operands: vec![], weights: None, scale: None, exact_run: 1, offsets_apart: false }
    }

    /// Of operands that belong together.
    pub fn of(op: &Op<'_, &HostTensor>, contract: &Contract) -> Self {
        let weights = weight_format(contract).filter(|_| op.weight().is_some());
        let scale = FloatFormat::of(contract.inner).filter(|_| matches!(op, Op::Embed { .. }));
        let activations = |partner: Partner| resolve(contract.activations, partner);
        let operands = match *op {
            Op::MatMul { x, weight } => vec![round(x, weight.cols, activations(Partner::Weight(weight.ty)))],
            Op::ExpertMatMul { x, weight, .. } => {
                vec![round(x, weight.cols, activations(Partner::Weight(weight.ty))), None]
            }
            Op::HeadMatMul { x, weight, head_dim, .. } => {
                vec![round_heads(x, head_dim, weight.cols, activations(Partner::Weight(weight.ty)))]
            }
            Op::AttnScores { q, k, head_dim, .. } => {
                vec![
                    round(q, head_dim, activations(Partner::Cache(contract.cache))),
                    round(k, head_dim, contract.cache),
                ]
            }
            Op::AttnContext { probs, v, head_dim, .. } => {
                let p = round(probs, probs.cols(), activations(Partner::Cache(contract.cache)));
                vec![p, round(v, head_dim, contract.cache)]
            }
            Op::SwiGlu { gate, activation: GateActivation::GeluTanh, .. } => vec![looked_up(gate, contract.gelu), None],
            _ => vec![],
        };
        let is_int8 = operands.first().is_some_and(|x| x.as_ref().is_some_and(|x| !x.steps.is_empty()));
        let quantized = op.weight().is_some_and(|w| w.ty.block_len() >= RUN) && weights.is_none();
        let in_integers = is_int8 && quantized;
        let exact_run = if in_integers { RUN } else { 1 };
        Self { operands, weights, scale, exact_run, offsets_apart: in_integers && contract.offsets_apart }
    }

    /// Whether an operand is not as given.
    pub fn rounds(&self, operand: usize) -> bool {
        self.operands.get(operand).is_some_and(Option::is_some)
    }

    /// Whether everything is as given.
    pub fn is_nothing(&self) -> bool {
        let nothing = self.weights.is_none() && self.scale.is_none() && !self.offsets_apart;
        nothing && self.operands.iter().all(|o| o.is_none())
    }

    /// The operation over the rounded operands; its weight is as given.
    pub fn apply<'s>(&'s self, op: &'s Op<'s, &'s HostTensor>) -> Result<Op<'s, &'s HostTensor>> {
        let mut n = 0;
        op.try_map(|given| {
            n += 1;
            Ok(self.operands.get(n - 1).and_then(|o| o.as_ref()).map_or(*given, |o| &o.values))
        })
    }

    /// Rounds the values of a weight that is a vector.
    pub fn round_weight(&self, values: &mut Vec<f64>) {
        if let Some(format) = self.weights {
            *values = format.rounded(values);
        }
    }

    fn evaluate(&self, op: &Op<'_, &HostTensor>) -> Result<HostTensor> {
        let op = &self.apply(op)?;
        if let (Op::Embed { table, tokens, scale }, None, Some(format)) = (op, self.weights, self.scale) {
            return evaluate(&Op::Embed { table, tokens, scale: (format.round)(*scale) });
        }
        let Some(format) = self.weights else { return evaluate(op) };
        match *op {
            Op::RmsNorm { x, weight, eps, keep } => {
                let weight = &rounded_rows(weight, format, 0..1)?;
                evaluate(&Op::RmsNorm { x, weight, eps, keep })
            }
            Op::Bias { x, weight } => {
                let weight = &rounded_rows(weight, format, 0..1)?;
                evaluate(&Op::Bias { x, weight })
            }
            Op::ExpertBias { x, ids, weight } => {
                let weight = &rounded_rows(weight, format, 0..weight.rows)?;
                evaluate(&Op::ExpertBias { x, ids, weight })
            }
            Op::Conv { x, cache, weight, start } => {
                let weight = &rounded_rows(weight, format, 0..weight.rows)?;
                evaluate(&Op::Conv { x, cache, weight, start })
            }
            Op::Decay { x, weight } => {
                let weight = &rounded_rows(weight, format, 0..1)?;
                evaluate(&Op::Decay { x, weight })
            }
            Op::AttnProbs { scores, start, window, sinks: Some(sinks) } => {
                let sinks = Some(&rounded_rows(sinks, format, 0..1)?);
                evaluate(&Op::AttnProbs { scores, start, window, sinks })
            }
            Op::Embed { table, tokens, scale } => {
                let scale = self.scale.map_or(scale, |to| (to.round)(scale));
                let mut out = evaluate(&Op::Embed { table, tokens, scale: 1.0 })?;
                if let Data::F64(values) = &mut out.data {
                    *values = format.rounded(values).into_iter().map(|w| w * scale).collect();
                }
                debug_assert_eq!(out.shape, [tokens.len(), table.cols]);
                Ok(out)
            }
            Op::HeadMatMul { x, weight, head_dim, keep } => by_heads(x, weight, format, head_dim, keep),
            Op::MatMul { x, weight } => by_rows(weight, format, |weight| evaluate(&Op::MatMul { x, weight })),
            Op::ExpertMatMul { x, ids, weight } => {
                by_rows(weight, format, |weight| evaluate(&Op::ExpertMatMul { x, ids, weight }))
            }
            _ => evaluate(op),
        }
    }

    /// The values of an operand whose codes are undecided, ascending, each with its step.
    pub fn ties(&self, operand: usize) -> Vec<(usize, f64)> {
        let steps = self.undecided(operand).unwrap_or_default();
        steps.into_iter().enumerate().filter(|(_, step)| *step > 0.0).collect()
    }

    /// For each value of an operand its step if its code is undecided, 0 otherwise; `None` if all are decided.
    pub fn undecided(&self, operand: usize) -> Option<Vec<f64>> {
        let steps = &self.operands.get(operand)?.as_ref()?.steps;
        steps.iter().any(|step| *step > 0.0).then(|| steps.clone())
    }

    /// The size of an operand's blocks and what their sums, which are kept apart, are off by.
    pub fn sums(&self, operand: usize) -> Option<(usize, Vec<f64>)> {
        let rounded = self.operands.get(operand)?.as_ref()?;
        (!rounded.sums.is_empty()).then(|| (32, rounded.sums.clone()))
    }

    /// Makes a reader of weights one of rounded weights.
    pub fn round<'a>(&self, decode: &mut Decode<'a>) {
        let Some(format) = self.weights else { return };
        let given = std::mem::replace(decode, Box::new(|_, _, _, _| Ok(())));
        *decode = Box::new(move |expert, row, product, offset| {
            given(expert, row, product, offset)?;
            for (p, o) in product.iter_mut().zip(offset) {
                *p = (format.round)((*p - *o) as f32 as f64);
                *o = 0.0;
            }
            Ok(())
        });
    }
}

/// What weights become under a contract: those that are kept as another number are rounded as that.
pub(crate) fn weight_format(contract: &Contract) -> Option<FloatFormat> {
    let format = FloatFormat::of(contract.weights)?;
    let round: fn(f64) -> f64 = match (contract.kept, format.precision) {
        (KeptWeight::Itself, _) => format.round,
        (KeptWeight::AboveOne, Precision::F16) => |w| above_one(w, FORMATS[0].round),
        (KeptWeight::AboveOne, _) => |w| above_one(w, FORMATS[1].round),
        (KeptWeight::Logarithm, Precision::F16) => |w| as_logarithm(w, FORMATS[0].round),
        (KeptWeight::Logarithm, _) => |w| as_logarithm(w, FORMATS[1].round),
    };
    Some(FloatFormat { round, ..format })
}

fn above_one(w: f64, round: fn(f64) -> f64) -> f64 {
    1.0 + round(w - 1.0)
}

/// −eᵃ of a rounded a; a number that is none stays.
fn as_logarithm(w: f64, round: fn(f64) -> f64) -> f64 {
    if w < 0.0 { -round((-w).ln()).exp() } else { w }
}

/// What activations are multiplied with.
#[derive(Clone, Copy)]
enum Partner {
    Weight(GgmlType),
    Cache(Precision),
}

/// What activations become, whatever they are paired with.
fn resolve(activations: Precision, partner: Partner) -> Precision {
    use GgmlType::*;
    match (activations, partner) {
        (Precision::VecDot, Partner::Weight(ty)) => match ty {
            F32 | F64 => Precision::F32,
            F16 => Precision::F16,
            BF16 => Precision::Bf16,
            Q4_1 | Q5_1 | Q8_1 => Precision::Q8_1,
            ty if ty.block_len() == 256 => Precision::Q8_K,
            _ => Precision::Q8_0,
        },
        (Precision::Q8_K_BesideBlocks, Partner::Weight(ty)) if ty.block_len() > 1 => Precision::Q8_K,
        (Precision::Q8_K_BesideBlocks, _) => Precision::F32,
        // The cache's own format, which for q8_0 is what it is paired with.
        (Precision::VecDot, Partner::Cache(cache)) => cache,
        (stated, _) => stated,
    }
}

/// What activations of this format are beside a weight of type `ty`.
pub fn used_with(activations: Precision, ty: GgmlType) -> Precision {
    resolve(activations, Partner::Weight(ty))
}

/// Arguments as a table of gelu has them; `None` where there is none.
fn looked_up(x: &HostTensor, to: Precision) -> Option<Rounded> {
    let format = FloatFormat::of(to)?;
    let within = |x: f64| if x.abs() < LOOKED_UP { (format.round)(x) } else { x };
    let values = x.to_f64().into_iter().map(within).collect();
    Some(Rounded { values: HostTensor::f64(&x.shape, values), steps: vec![], sums: vec![] })
}

/// A tensor whose rows of `cols` values are rounded; `None` where nothing is.
fn round(x: &HostTensor, cols: usize, to: Precision) -> Option<Rounded> {
    round_heads(x, cols, cols, to)
}

/// A tensor of heads of `head_dim` values, of which the first `cols` are rounded, as a row.
fn round_heads(x: &HostTensor, head_dim: usize, cols: usize, to: Precision) -> Option<Rounded> {
    let values = |values: Vec<f64>| HostTensor::f64(&x.shape, values);
    if let Some(format) = FloatFormat::of(to) {
        let mut all = x.to_f64();
        for head in all.chunks_mut(head_dim.max(1)) {
            let read = head.len().min(cols);
            let rounded = format.rounded(&head[..read]);
            head[..read].copy_from_slice(&rounded);
        }
        return Some(Rounded { values: values(all), steps: vec![], sums: vec![] });
    }
    let int8 = Int8::of(to)?;
    let mut all = Rounded { values: values(vec![0.0; x.len()]), steps: Vec::with_capacity(x.len()), sums: vec![] };
    let Data::F64(rounded) = &mut all.values.data else { unreachable!("made above") };
    rounded.clear();
    for head in x.to_f64().chunks(head_dim.max(1)) {
        let (read, kept) = head.split_at(cols.min(head.len()));
        let row = int8.row(read);
        rounded.extend(row.values);
        rounded.extend(kept);
        all.steps.extend(row.steps);
        all.steps.extend(kept.iter().map(|_| 0.0));
        if to == Precision::Q8_1 {
            all.sums.extend(row.sums);
        }
    }
    Some(all)
}

/// Values of rounded weights that are held at once.
const HELD: usize = 1 << 24;

/// Rows of every expert of a weight, rounded, as f32.
fn rounded_rows(weight: &Weight, format: FloatFormat, rows: std::ops::Range<usize>) -> Result<Arc<Weight>> {
    let mut bytes = Vec::with_capacity(weight.experts * rows.len() * weight.cols * 4);
    let mut values = vec![0.0; weight.cols];
    for expert in 0..weight.experts {
        for row in rows.clone() {
            dequant::row(weight.ty, weight.row(expert, row), &mut values)?;
            bytes.extend(values.iter().flat_map(|w| ((format.round)(*w) as f32).to_le_bytes()));
        }
    }
    let dims = [weight.cols, rows.len(), weight.experts];
    Weight::from_vec(&weight.name, GgmlType::F32, dims, bytes)?.scaled(weight.scales.clone())
}

/// A product by heads with a rounded weight.
fn by_heads(x: &HostTensor, weight: &Weight, format: FloatFormat, head_dim: usize, keep: bool) -> Result<HostTensor> {
    let (tokens, heads, k) = (x.shape[0], weight.experts, weight.cols);
    let product = by_rows(weight, format, |weight| {
        let part = evaluate(&Op::HeadMatMul { x, weight, head_dim, keep: false })?;
        Ok(HostTensor::f64(&[tokens, heads, weight.rows], part.to_f64()))
    })?;
    let (products, values) = (product.to_f64(), x.to_f64());
    let of_row = x.cols() / head_dim;
    let mut out = Vec::with_capacity(products.len());
    for (slot, sums) in products.chunks(weight.rows.max(1)).enumerate() {
        out.extend(sums);
        if keep {
            let head = slot / heads * of_row + if of_row == 1 { 0 } else { slot % heads };
            out.extend(&values[head * head_dim..][k..head_dim]);
        }
    }
    Ok(HostTensor::f64(&[tokens, out.len() / tokens.max(1)], out))
}

/// A product with a weight, [.., N], from products with a few of its rows at a time.
fn by_rows(
    weight: &Weight,
    format: FloatFormat,
    product: impl Fn(&Arc<Weight>) -> Result<HostTensor>,
) -> Result<HostTensor> {
    let step = (HELD / (weight.cols * weight.experts).max(1)).clamp(1, weight.rows.max(1));
    let mut whole: Option<HostTensor> = None;
    for first in (0..weight.rows).step_by(step) {
        let rows = first..(first + step).min(weight.rows);
        let part = product(&rounded_rows(weight, format, rows.clone())?)?;
        let mut shape = part.shape.clone();
        *shape.last_mut().expect("a product has an axis of rows") = weight.rows;
        let whole = whole.get_or_insert_with(|| HostTensor::f64(&shape, vec![0.0; shape.iter().product()]));
        let (Data::F64(out), Data::F64(part)) = (&mut whole.data, &part.data) else {
            unreachable!("the oracle's numbers are f64")
        };
        for (out, part) in out.chunks_exact_mut(weight.rows).zip(part.chunks_exact(rows.len())) {
            out[rows.clone()].copy_from_slice(part);
        }
    }
    match whole {
        Some(whole) => Ok(whole),
        None => product(&rounded_rows(weight, format, 0..0)?),
    }
}
