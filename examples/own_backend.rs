//! An engine of one's own as a side: a plain f32 forward pass, plugged in and compared with the reference.
//!
//!     cargo run --release --example own_backend                       # agrees, exit code 0
//!     cargo run --release --example own_backend -- --rope-interleaved # a bug of many ports; found and named, exit code 1
//!
//! An engine implements one trait, [`Backend`], and of it one method that computes, `run`. What it promises of its arithmetic is its
//! [`Contract`]: the rounding floors that it is judged by follow from it.

use std::cell::RefCell;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;

use twinscope::Result;
use twinscope::backend::{
    AnyBackend, Backend, BackendInfo, Contract, Erased, HostTickets, OpenOptions, Order, Ticket, open,
};
use twinscope::diff::run::driver::{DiffOptions, Sides, diff};
use twinscope::model::Model;
use twinscope::op::{At, Data, GateActivation, HostTensor, Op, OpKind, Pairing, Rotation, Weight};
use twinscope::quant::dequantize;
use twinscope::report::text::{self, Style};

/// The engine. Its tensors are on the host; a real one's would be handles to device memory.
#[derive(Default)]
struct Engine {
    /// The planted bug: rotary embedding of neighbouring pairs (2i, 2i + 1), where the model wants (i, i + D/2).
    rope_interleaved: bool,
    tickets: HostTickets,
}

/// A KV cache is written in place, hence the cell.
type Tensor = Rc<RefCell<HostTensor>>;

fn tensor(shape: &[usize], values: Vec<f32>) -> Tensor {
    Rc::new(RefCell::new(HostTensor::f32(shape, values)))
}

/// Row `row` of `expert`, dequantized. [K]
fn weights(weight: &Weight, expert: usize, row: usize) -> Result<Vec<f32>> {
    let mut w = vec![0.0; weight.cols];
    dequantize(weight.ty, weight.row(expert, row), &mut w)?;
    Ok(w)
}

fn dot(x: &[f32], w: &[f32]) -> f32 {
    x.iter().zip(w).map(|(x, w)| x * w).sum()
}

fn softmax(x: &mut [f32]) {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    x.iter_mut().for_each(|x| *x = (*x - max).exp());
    let sum: f32 = x.iter().sum();
    x.iter_mut().for_each(|x| *x /= sum);
}

/// For each (row of x, expert): the products of that row with every row of that expert. `x` is rows of K; → rows × N.
fn products(weight: &Weight, x: &[f32], rows: &[(usize, usize)]) -> Result<Vec<f32>> {
    let mut y = vec![0.0; rows.len() * weight.rows];
    for expert in 0..weight.experts {
        for n in 0..weight.rows {
            let w = weights(weight, expert, n)?;
            for (i, (row, _)) in rows.iter().enumerate().filter(|(_, (_, e))| *e == expert) {
                y[i * weight.rows + n] = dot(&x[row * weight.cols..][..weight.cols], &w);
            }
        }
    }
    Ok(y)
}

impl Engine {
    /// Pair i of each head turns by (start + t) · base^(−2i/D).
    fn rope(
        &self,
        mut y: Vec<f32>,
        cols: usize,
        start: usize,
        head_dim: usize,
        rotation: &Rotation<&Arc<Weight>>,
    ) -> Vec<f32> {
        let pairing = if self.rope_interleaved { Pairing::Norm } else { rotation.pairing };
        let factors: Vec<f32> = rotation.factors.map_or(vec![1.0; head_dim / 2], |factors| factors.f32s().collect());
        for (t, row) in y.chunks_exact_mut(cols).enumerate() {
            for head in row.chunks_exact_mut(head_dim) {
                for (i, factor) in factors.iter().enumerate() {
                    let [a, b] = pairing.dims(i, head_dim / 2);
                    let frequency = rotation.base.powf(-2.0 * i as f64 / head_dim as f64) / f64::from(*factor);
                    let angle = (start + t) as f64 * rotation.scale * frequency;
                    let (sin, cos) = (angle.sin() as f32, angle.cos() as f32);
                    (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[a] * sin + head[b] * cos);
                }
            }
        }
        y
    }
}

impl Backend for Engine {
    type Tensor = Tensor;

    fn info(&self) -> BackendInfo {
        let (backend, adapter, driver) = ("own".into(), "a plain engine".into(), String::new());
        let contract = "f32 activations, f32 sums, first term to last".into();
        BackendInfo { backend, adapter, driver, software: false, contract, tuning: None }
    }
    fn contract(&self, _: OpKind) -> Contract {
        Contract::ieee_f32(Order::Sequential)
    }
    fn alloc(&mut self, shape: &[usize]) -> Result<Tensor> {
        Ok(tensor(shape, vec![0.0; shape.iter().product()]))
    }
    fn upload(&mut self, values: &HostTensor) -> Result<Tensor> {
        let ids = matches!(values.data, Data::U32(_));
        Ok(if ids { Rc::new(RefCell::new(values.clone())) } else { tensor(&values.shape, values.to_f32()) })
    }
    fn shape(&self, tensor: &Tensor) -> Vec<usize> {
        tensor.borrow().shape.clone()
    }
    fn fetch(&mut self, tensor: &Tensor) -> Result<Ticket> {
        Ok(self.tickets.put(tensor.borrow().clone()))
    }
    fn take(&mut self, ticket: Ticket) -> Result<HostTensor> {
        self.tickets.take(ticket)
    }

    fn run(&mut self, _at: At, op: &Op<'_, Tensor>) -> Result<Tensor> {
        // Values, shape and width of an operand.
        let v = |t: &Tensor| t.borrow().to_f32();
        let shape = |t: &Tensor| t.borrow().shape.clone();
        let cols = |t: &Tensor| t.borrow().cols();
        Ok(match op {
            Op::Embed { table, tokens, scale: 1.0 } => {
                let rows = tokens.iter().map(|t| weights(table, 0, *t as usize)).collect::<Result<Vec<_>>>()?;
                tensor(&[tokens.len(), table.cols], rows.concat())
            }
            Op::RmsNorm { x, weight, eps, keep: 0 } => {
                let w = weights(weight, 0, 0)?;
                let group = |x: &[f32]| {
                    let scale = 1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt();
                    x.iter().zip(&w).map(|(x, w)| x * scale * w).collect::<Vec<_>>()
                };
                tensor(&shape(x), v(x).chunks_exact(weight.cols).flat_map(group).collect())
            }
            Op::MatMul { x, weight } => {
                let (t, xs) = (shape(x)[0], v(x));
                let rows: Vec<(usize, usize)> = (0..t).map(|t| (t, 0)).collect();
                tensor(&[t, weight.rows], products(weight, &xs, &rows)?)
            }
            Op::ExpertMatMul { x, ids, weight } => {
                let (xs, ids) = (v(x), ids.borrow());
                let (t, k) = (ids.shape[0], ids.shape[1]);
                // The slots of a token share its row of x, [T, K], or have one each, [T, K, n].
                let per_row = if shape(x).len() == 3 { 1 } else { k };
                let rows = ids.ids().iter().enumerate().map(|(slot, id)| (slot / per_row, *id as usize));
                tensor(&[t, k, weight.rows], products(weight, &xs, &rows.collect::<Vec<_>>())?)
            }
            Op::Bias { x, weight } => {
                let bias = weights(weight, 0, 0)?;
                tensor(&shape(x), v(x).iter().zip(bias.iter().cycle()).map(|(x, b)| x + b).collect())
            }
            Op::Rope { x, start, head_dim, rotation } if rotation.yarn.is_none() && rotation.dims.is_none() => {
                tensor(&shape(x), self.rope(v(x), cols(x), *start, *head_dim, rotation))
            }
            Op::Store { cache, x, start } => {
                let (at, x) = (start * cols(x), v(x));
                if let Data::F32(cache) = &mut cache.borrow_mut().data {
                    cache[at..at + x.len()].copy_from_slice(&x);
                }
                cache.clone()
            }
            Op::Rows { x, start, rows } => {
                let n = cols(x);
                tensor(&[*rows, n], v(x)[start * n..(start + rows) * n].to_vec())
            }
            Op::AttnScores { q, k, start, head_dim: d, scale: None, window: None } => {
                let (t, heads, kv_heads) = (shape(q)[0], cols(q) / d, cols(k) / d);
                let (s, qs, ks) = (start + t, v(q), v(k));
                let score = |i: usize| {
                    let (h, t, s) = (i / s / t, i / s % t, i % s);
                    let (q, k) = ((t * heads + h) * d, (s * kv_heads + h / (heads / kv_heads)) * d);
                    if s > start + t { 0.0 } else { dot(&qs[q..q + d], &ks[k..k + d]) / (*d as f32).sqrt() }
                };
                tensor(&[heads, t, s], (0..heads * t * s).map(score).collect())
            }
            Op::AttnProbs { scores, start, window: None, sinks: None } => {
                let (t, s, mut y) = (shape(scores)[1], cols(scores), v(scores));
                for (row, y) in y.chunks_exact_mut(s).enumerate() {
                    let seen = start + row % t + 1;
                    softmax(&mut y[..seen]);
                    y[seen..].fill(0.0);
                }
                tensor(&shape(scores), y)
            }
            Op::AttnContext { probs, v: values, start: _, head_dim: d, window: None } => {
                let (dims, kv_heads, ps, vs) = (shape(probs), cols(values) / d, v(probs), v(values));
                let (heads, t, s) = (dims[0], dims[1], dims[2]);
                let sum = |i: usize| {
                    let (row, h, c) = (i / d / heads, i / d % heads, i % d);
                    let value = |s: usize| vs[(s * kv_heads + h / (heads / kv_heads)) * d + c];
                    (0..s).map(|key| ps[(h * t + row) * s + key] * value(key)).sum()
                };
                tensor(&[t, heads * d], (0..t * heads * d).map(sum).collect())
            }
            Op::Add { a, b } => tensor(&shape(a), v(a).iter().zip(v(b)).map(|(a, b)| a + b).collect()),
            Op::SwiGlu { gate, up, activation: GateActivation::Silu } => {
                let silu = |(g, u): (&f32, f32)| g / (1.0 + (-g).exp()) * u;
                tensor(&shape(gate), v(gate).iter().zip(v(up)).map(silu).collect())
            }
            Op::RouterProbs { logits, sigmoid: false } => {
                let mut y = v(logits);
                y.chunks_exact_mut(cols(logits)).for_each(softmax);
                tensor(&shape(logits), y)
            }
            Op::RouterTopK { probs, k, groups: None } => {
                let (t, mut ids) = (shape(probs)[0], Vec::new());
                for row in v(probs).chunks_exact(cols(probs)) {
                    let mut order: Vec<u32> = (0..row.len() as u32).collect();
                    order.sort_by(|a, b| row[*b as usize].total_cmp(&row[*a as usize])); // stable: ties to the lower id
                    ids.extend(&order[..*k]);
                }
                Rc::new(RefCell::new(HostTensor::u32(&[t, *k], ids)))
            }
            Op::RouterWeights { probs, ids, renormalise, softmax: false, scale: 1.0 } => {
                let (ps, experts, k, ids) = (v(probs), cols(probs), cols(ids), ids.borrow());
                let chosen = |(i, id): (usize, &u32)| ps[i / k * experts + *id as usize];
                let mut y: Vec<f32> = ids.ids().iter().enumerate().map(chosen).collect();
                for row in y.chunks_exact_mut(k).filter(|_| *renormalise) {
                    let sum: f32 = row.iter().sum();
                    row.iter_mut().for_each(|w| *w /= sum);
                }
                tensor(&ids.shape, y)
            }
            Op::Combine { down, weights } => {
                let (k, h, ds, ws) = (cols(weights), cols(down), v(down), v(weights));
                let t = shape(weights)[0];
                let sum = |i: usize| (0..k).map(|j| ws[i / h * k + j] * ds[(i / h * k + j) * h + i % h]).sum();
                tensor(&[t, h], (0..t * h).map(sum).collect())
            }
            // What only other families have: it is refused, never computed as something else.
            other => {
                return Err(twinscope::Error::CannotRun(format!(
                    "{:?}: not of the families that this engine runs",
                    other.kind()
                )));
            }
        })
    }
}

fn main() -> ExitCode {
    let rope_interleaved = std::env::args().any(|a| a == "--rope-interleaved");
    match compare(Engine { rope_interleaved, ..Default::default() }) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::from(e.exit_code())
        }
    }
}

/// Runs the bundled model on the engine and on the reference, prints the report, and says whether they agree.
fn compare(engine: Engine) -> Result<bool> {
    let model = Model::open(None)?;
    let tokens = model.tokenizer()?.encode("fn main() {\n    let x = 5;")?;
    let mut reference = open("cpu:scalar", OpenOptions::default())?;
    let mut subject: AnyBackend = Box::new(Erased(engine));
    let sides = Sides { reference: &mut reference, subject: &mut subject, judged: true };
    let comparison = diff(&model, sides, &DiffOptions::new(tokens))?;
    print!("{}", text::render(&comparison, Style { color: false, full: false }));
    Ok(comparison.agrees())
}
