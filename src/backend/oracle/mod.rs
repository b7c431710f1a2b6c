//! The judge: every operation in float64, written apart from the backends that it judges.
//!
//! Design:
//! - **Shares nothing with the other backends** but the operations' definitions and the types' block sizes. Its weights come
//!   from `dequant`, which reads the published layouts by index.
//! - **A plain function does the work**: [`evaluate`] takes any operation over host tensors (f32 or f64) and returns its f64
//!   result, so a stage is replayed on any side's inputs without a backend. [`OracleBackend`] is that function behind the trait.
//! - **Scalar, and parallel over rows only.** Every sum is a plain f64 sum; its rounding (2⁻⁵³) is nine orders of magnitude below
//!   what it judges. A weight row is dequantized once a call, into a buffer of one row, and meets all its tokens there; a
//!   small matrix that is asked for time and again keeps its values (`kept`).
//! - Angles, exponentials and roots are f64 as well: rope's frequencies are base^(−2i/D) in f64.
//!
//! One file a concern: `dequant` weights, `linear` matrix products, `pointwise` norms, rope, activations and moves,
//! `attention`, `linear_attention`, `routing`.

use std::borrow::Cow;
use std::cell::{Ref, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use super::{Backend, BackendInfo, Contract, HostTickets, Need, Ticket};
use crate::error::{Error, Result};
use crate::op::{At, Data, HostTensor, Op, OpKind, Site, Weight};

mod attention;
pub(crate) mod dequant;
mod grids;
mod kept;
mod linear;
mod linear_attention;
mod pointwise;
mod routing;

/// Computes `op` in float64. Ids come back as u32, everything else as f64. [`Op::Store`] returns the written cache and leaves
/// its operand alone.
///
/// # Errors
/// As [`Op::check`], or if the weight's type is unreadable.
pub fn evaluate(op: &Op<'_, &HostTensor>) -> Result<HostTensor> {
    op.check(None::<Site>, |t| t.operand())?;
    compute(op)
}

/// [`evaluate`] of operands that belong together.
fn compute(op: &Op<'_, &HostTensor>) -> Result<HostTensor> {
    Ok(match *op {
        Op::Embed { table, tokens, scale } => linear::embed(table, tokens, scale)?,
        Op::MatMul { x, weight } => linear::matmul(x, weight)?,
        Op::HeadMatMul { x, weight, head_dim, keep } => linear::head_matmul(x, weight, head_dim, keep)?,
        Op::ExpertMatMul { x, ids, weight } => linear::expert_matmul(x, ids, weight)?,
        Op::RmsNorm { x, weight, eps, keep } => pointwise::rms_norm(x, weight, eps as f64, keep)?,
        Op::Bias { x, weight } => pointwise::bias(x, weight)?,
        Op::ExpertBias { x, ids, weight } => pointwise::expert_bias(x, ids, weight)?,
        Op::Rope { x, start, head_dim, rotation } => pointwise::rope(x, start, head_dim, &rotation)?,
        Op::Add { a, b } => pointwise::add(a, b),
        Op::SwiGlu { gate, up, activation } => pointwise::gated(gate, up, activation),
        Op::SigmoidGate { x, gate } => pointwise::sigmoid_gate(x, gate),
        Op::Store { cache, x, start } => pointwise::store(cache, x, start),
        Op::Rows { x, start, rows } => pointwise::rows(x, start, rows),
        Op::AttnScores { q, k, start, head_dim, scale, window } => {
            attention::scores(q, k, start, head_dim, scale, window)
        }
        Op::AttnProbs { scores, start, window, sinks } => attention::probs(scores, start, window, sinks)?,
        Op::AttnContext { probs, v, start, head_dim, window } => attention::context(probs, v, start, head_dim, window),
        Op::RouterProbs { logits, sigmoid: false } => routing::probs(logits),
        Op::RouterProbs { logits, sigmoid: true } => routing::sigmoids(logits),
        Op::RouterTopK { probs, k, groups } => routing::topk(probs, k, groups),
        Op::RouterWeights { probs, ids, softmax: true, .. } => routing::softmax_of_chosen(probs, ids),
        Op::RouterWeights { probs, ids, renormalise, scale, .. } => routing::weights(probs, ids, renormalise, scale),
        Op::Combine { down, weights } => routing::combine(down, weights),
        Op::Conv { x, cache, weight, start } => linear_attention::conv(x, cache, weight, start)?,
        Op::L2Norm { x, first, heads, head_dim, eps } => {
            linear_attention::l2_norm(x, first, heads, head_dim, eps as f64)
        }
        Op::Decay { x, weight } => linear_attention::decay(x, weight)?,
        Op::DeltaRule { q, k, v, decay, beta, start, head_dim, tiled } => {
            linear_attention::delta_rule([q, k, v, decay, beta], start, head_dim, tiled)
        }
    })
}

/// The values of an operand as f64; copied only if they are not f64 already.
fn values(t: &HostTensor) -> Cow<'_, [f64]> {
    t.f64s()
}

/// `[rows, cols]` of a tensor whose leading axes are all rows.
fn matrix(t: &HostTensor) -> (usize, usize) {
    let cols = t.cols();
    (t.len().checked_div(cols).unwrap_or(0), cols)
}

/// A handle to values in host memory. Clones share them, so that a cache is written in place.
#[derive(Clone)]
pub struct OracleTensor(Rc<RefCell<HostTensor>>);

impl OracleTensor {
    fn new(values: HostTensor) -> Self {
        Self(Rc::new(RefCell::new(values)))
    }
}

/// Float64 throughout; see the module.
#[derive(Default)]
pub struct OracleBackend {
    tickets: HostTickets,
}

impl OracleBackend {
    /// An oracle that holds nothing yet.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Backend for OracleBackend {
    type Tensor = OracleTensor;

    fn info(&self) -> BackendInfo {
        BackendInfo {
            backend: "oracle".into(),
            adapter: "CPU".into(),
            driver: "none".into(),
            software: false,
            contract: "f64 activations, f64 sums, first term to last".into(),
            tuning: None,
        }
    }

    fn contract(&self, _op: OpKind) -> Contract {
        Contract::f64()
    }

    fn unsupported(&self, needs: &[Need]) -> Vec<String> {
        needs
            .iter()
            .filter(|need| !dequant::supports(need.ty))
            .map(|need| format!("{}: the oracle does not read weights of type {}", need.name, need.ty))
            .collect()
    }

    fn prepare(&mut self, weights: &[Arc<Weight>], progress: &mut dyn FnMut(u64)) -> Result<()> {
        progress(weights.iter().map(|w| w.size() as u64).sum()); // they are read where they lie
        Ok(())
    }

    fn alloc(&mut self, shape: &[usize]) -> Result<OracleTensor> {
        let len = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
        let mut zeros = Vec::new();
        len.and_then(|n| zeros.try_reserve_exact(n).ok().map(|()| zeros.resize(n, 0.0)))
            .ok_or_else(|| Error::cannot_run(format!("the oracle has no memory for a tensor {shape:?}")))?;
        Ok(OracleTensor::new(HostTensor::f64(shape, zeros)))
    }

    fn upload(&mut self, values: &HostTensor) -> Result<OracleTensor> {
        Ok(OracleTensor::new(match values.data {
            Data::F32(_) => HostTensor::f64(&values.shape, values.to_f64()),
            _ => values.clone(),
        }))
    }

    fn shape(&self, tensor: &OracleTensor) -> Vec<usize> {
        tensor.0.borrow().shape.clone()
    }

    fn run(&mut self, At { site, .. }: At, op: &Op<'_, OracleTensor>) -> Result<OracleTensor> {
        let operands: Vec<Ref<'_, HostTensor>> = op.inputs().into_iter().map(|t| t.0.borrow()).collect();
        let mut next = operands.iter();
        let host = op.try_map(|_| Ok(&**next.next().expect("try_map visits what inputs lists")))?;
        host.check(site, |t| t.operand())?;
        if let Op::Store { cache, x, start } = op {
            // In place: `compute` would copy the whole cache.
            if Rc::ptr_eq(&cache.0, &x.0) {
                return Err(Error::usage(format!("{site} (Store): x is the cache itself")));
            }
            drop(operands);
            let rows = x.0.borrow();
            pointwise::write_rows(&mut cache.0.borrow_mut(), &rows, *start);
            return Ok(cache.clone());
        }
        compute(&host).map(OracleTensor::new)
    }

    fn fetch(&mut self, tensor: &OracleTensor) -> Result<Ticket> {
        Ok(self.tickets.put(tensor.0.borrow().clone()))
    }

    fn take(&mut self, ticket: Ticket) -> Result<HostTensor> {
        self.tickets.take(ticket)
    }

    fn sync(&mut self) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
