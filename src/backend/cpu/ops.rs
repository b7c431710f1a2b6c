//! Running one operation: its operands are checked, its result allocated, its rows spread over the threads.

use std::cell::Ref;
use std::sync::Arc;

use super::kernels::Kernels;
use super::matmul::{self, Job};
use super::tensor::{Unmade, room};
use super::{CpuBackend, CpuTensor, Pool, attention, delta, scalar, zeros};
use crate::op::{AngleKey, Data, GateActivation, Groups, HostTensor, Op, Rotation, Site, Weight};
use crate::quant;
use crate::{Error, Result};

/// Rotary angles of the last call: all layers of a forward pass ask for the same ones.
#[derive(Default)]
pub(super) struct AngleCache {
    /// The rotation, first position, positions.
    key: Option<(AngleKey, usize, usize)>,
    /// [positions, head_dim/2] of cosine and sine.
    angles: Vec<[f32; 2]>,
}

impl AngleCache {
    fn get(
        &mut self,
        pool: &Pool,
        head_dim: usize,
        rotation: &Rotation<&Arc<Weight>>,
        start: usize,
        positions: usize,
    ) -> &[[f32; 2]] {
        let key = Some((rotation.angle_key(head_dim), start, positions));
        if self.key != key {
            let frequencies = scalar::rope_frequencies(head_dim, rotation); // [D/2]
            self.angles.clear();
            self.angles.resize(positions * frequencies.len(), [0.0; 2]);
            let work = self.angles.len() * 512; // sin and cos in f64
            pool.for_chunks(work, &mut self.angles, frequencies.len(), |t, out| {
                scalar::rope_angles(start + t, &frequencies, rotation.magnitude(), out);
            });
            self.key = key;
        }
        &self.angles
    }
}

/// Runs `op`; `site` is for messages.
pub(super) fn run(backend: &mut CpuBackend, site: Site, op: &Op<'_, CpuTensor>) -> Result<CpuTensor> {
    for operand in op.inputs().into_iter().filter(|operand| !attention::goes_on(op, operand)) {
        make(backend, operand)?;
    }
    if let Op::Store { cache, .. } = op {
        // Who has not read the cache yet reads it as it is now.
        for waiting in backend.waiting.reading(cache) {
            make(backend, &waiting)?;
        }
    }
    let held: Vec<Ref<'_, HostTensor>> = op.inputs().into_iter().map(CpuTensor::values).collect();
    let mut operands = held.iter();
    let on_host: Op<'_, &HostTensor> = op.try_map(|_| Ok(&**operands.next().expect("one for each operand")))?;
    let shape = on_host.check(site, |t| t.operand())?;
    if let Op::Store { cache, x, start } = op {
        if cache.same(x) {
            return Err(Error::usage(format!("{site} (Store): x is the cache itself")));
        }
        drop(held);
        backend.states.written(cache, *start);
        backend.tickets.before_write(cache);
        let x = x.values();
        let n = shape[1];
        let mut cache_values = cache.values_mut();
        let rows = f32s_mut(&mut cache_values)[start * n..].chunks_exact_mut(n);
        rows.zip(f32s(&x).chunks_exact(x.cols())).for_each(|(row, x)| row.copy_from_slice(&x[..n]));
        return Ok(cache.clone());
    }
    if attention::waits(op) {
        drop(held);
        let waiting = CpuTensor::waiting(&shape, Unmade { site, op: op.keep() });
        backend.waiting.add(&waiting);
        return Ok(waiting);
    }
    let values = match on_host {
        Op::AttnContext { .. } if op.inputs()[0].waits() => {
            let mut out = room(&shape)?;
            attention::run(backend, op, &mut out);
            HostTensor::f32(&shape, out)
        }
        Op::DeltaRule { q, k, v, decay, beta, start, head_dim, tiled } => {
            let Op::DeltaRule { k: k_cache, v: v_cache, decay: decay_cache, beta: beta_cache, .. } = op else {
                unreachable!("the same operation")
            };
            let caches = [k_cache, v_cache, decay_cache, beta_cache].map(Clone::clone);
            let (key_heads, value_heads) = (q.cols() / head_dim, decay.cols());
            let sizes = delta::StateSizes { head_dim, key_heads, value_heads, tiled };
            let [q, k, decay, beta] = [q, k, decay, beta].map(f32s);
            let rows = delta::Rows { q, k, v: f32s(v), v_cols: v.cols(), decay, beta };
            let mut out = room(&shape)?;
            delta::run(&backend.pool, &mut backend.states, caches, &rows, start, sizes, &mut out)?;
            HostTensor::f32(&shape, out)
        }
        Op::RouterTopK { probs, groups, .. } => {
            HostTensor::u32(&shape, router_topk(&backend.pool, probs, groups, &shape))
        }
        _ => {
            let mut out = room(&shape)?;
            compute(backend, &on_host, &mut out)?;
            HostTensor::f32(&shape, out)
        }
    };
    Ok(CpuTensor::new(values))
}

/// Makes the values of a tensor that waits for somebody to ask for them.
pub(super) fn make(backend: &mut CpuBackend, tensor: &CpuTensor) -> Result<()> {
    let Some(Unmade { site, op }) = tensor.wait_over() else { return Ok(()) };
    let op = op.share();
    for operand in op.inputs() {
        make(backend, operand)?;
    }
    let held: Vec<Ref<'_, HostTensor>> = op.inputs().into_iter().map(CpuTensor::values).collect();
    let mut operands = held.iter();
    let on_host: Op<'_, &HostTensor> = op.try_map(|_| Ok(&**operands.next().expect("one for each operand")))?;
    let shape = on_host.check(site, |t| t.operand())?;
    let mut out = room(&shape)?;
    compute(backend, &on_host, &mut out)?;
    *tensor.values_mut() = HostTensor::f32(&shape, out);
    Ok(())
}

/// The f32 values of a tensor that [`Op::check`] found to be numbers: a [`CpuTensor`] holds no others.
pub(super) fn f32s(t: &HostTensor) -> &[f32] {
    match &t.data {
        Data::F32(v) => v,
        _ => unreachable!("a {} tensor among the numbers", t.dtype()),
    }
}

fn f32s_mut(t: &mut HostTensor) -> &mut [f32] {
    match &mut t.data {
        Data::F32(v) => v,
        other => unreachable!("{other:?} among the numbers"),
    }
}

/// Writes the result of an operation on operands that belong together into all of `out`.
fn compute(backend: &mut CpuBackend, op: &Op<'_, &HostTensor>, out: &mut [f32]) -> Result<()> {
    let (pool, kernels) = (&backend.pool, backend.kernels);
    match *op {
        Op::Embed { table, tokens, scale } => {
            for (out, &token) in out.chunks_exact_mut(table.cols).zip(tokens) {
                quant::dequantize(table.ty, table.row(0, token as usize), out)?;
                out.iter_mut().for_each(|x| *x *= scale as f32);
            }
        }
        Op::RmsNorm { x, weight, eps, keep } => rms_norm(kernels, pool, x, weight, eps, keep, out)?,
        Op::MatMul { x, weight } => {
            let rows = || (0..x.shape[0]).collect();
            matmul::run(kernels, pool, weight, f32s(x), &[Job { expert: 0, x: rows(), out: rows() }], out)?;
        }
        Op::HeadMatMul { x, weight, head_dim, keep } => head_matmul(kernels, pool, x, weight, head_dim, keep, out)?,
        Op::ExpertMatMul { x, ids, weight } => expert_matmul(kernels, pool, x, ids, weight, out)?,
        Op::Bias { x, weight } => {
            let bias: Vec<f32> = weight.f32s().collect(); // [N]
            let x = f32s(x);
            pool.for_chunks(out.len(), out, bias.len(), |t, out| {
                scalar::add(&x[t * bias.len()..][..bias.len()], &bias, out);
            });
        }
        Op::Rope { x, start, head_dim, rotation } => {
            let angles = backend.angles.get(pool, head_dim, &rotation, start, x.shape[0]); // [T, D/2]
            let (half, heads) = (rotation.turned(head_dim) / 2, x.cols() / head_dim);
            let x = f32s(x);
            pool.for_chunks(out.len() * 2, out, head_dim, |i, out| {
                scalar::rope(
                    &x[i * head_dim..][..head_dim],
                    rotation.pairing,
                    rotation.first,
                    &angles[i / heads * half..][..half],
                    out,
                );
            });
        }
        Op::AttnScores { q, k, start, head_dim, scale, window } => {
            let scale = scalar::attn_scale(head_dim, scale);
            attention::scores(kernels, pool, q, k, [start, head_dim], scale, window, out)
        }
        Op::AttnProbs { scores, start, window, sinks } => {
            attention::probs(kernels, pool, scores, start, window, sinks, out)
        }
        Op::AttnContext { probs, v, start, head_dim, window } => {
            attention::context(kernels, pool, probs, v, start, head_dim, window, out)
        }
        Op::Add { a, b } => zip(pool, a, b, 1, out, scalar::add),
        Op::SwiGlu { gate, up, activation } => zip(pool, gate, up, 16, out, |gate, up, out| match activation {
            GateActivation::Silu => kernels.swiglu(gate, up, out),
            GateActivation::GeluTanh => kernels.geglu(gate, up, out),
            GateActivation::Clamped => scalar::clamped(gate, up, out),
            GateActivation::Sigmoid => scalar::sigmoid_glu(gate, up, out),
        }),
        Op::SigmoidGate { x, gate } => {
            let (n, x, gate) = (x.cols(), f32s(x), f32s(gate));
            pool.for_chunks(out.len(), out, n, |t, out| scalar::sigmoid_gate(&x[t * n..][..n], gate[t], out));
        }
        Op::RouterProbs { logits, sigmoid } => {
            let experts = logits.cols();
            let logits = f32s(logits);
            pool.for_chunks(out.len() * 16, out, experts, |t, out| {
                let logits = &logits[t * experts..][..experts];
                if sigmoid { scalar::router_sigmoids(logits, out) } else { kernels.softmax(logits, out) }
            });
        }
        Op::RouterWeights { probs, ids, renormalise, softmax, scale } => {
            let rows = f32s(probs).chunks_exact(probs.cols()).zip(ids.ids().chunks_exact(ids.cols()));
            for (out, (probs, ids)) in out.chunks_exact_mut(ids.cols()).zip(rows) {
                match softmax {
                    true => scalar::softmax_of_chosen(probs, ids, out),
                    false => scalar::router_weights(probs, ids, renormalise, scale as f32, out),
                }
            }
        }
        Op::ExpertBias { x, ids, weight } => {
            let bias: Vec<f32> = weight.f32s().collect(); // [E, N]
            let (n, x, ids) = (weight.cols, f32s(x), ids.ids());
            pool.for_chunks(out.len(), out, n, |slot, out| {
                scalar::add(&x[slot * n..][..n], &bias[ids[slot] as usize * n..][..n], out);
            });
        }
        Op::Combine { down, weights } => {
            let (k, hidden) = (weights.cols(), down.cols());
            let (down, weights) = (f32s(down), f32s(weights));
            pool.for_chunks(down.len() * 2, out, hidden, |t, out| {
                scalar::combine(&down[t * k * hidden..][..k * hidden], &weights[t * k..][..k], out);
            });
        }
        Op::Conv { x, cache, weight, start } => {
            let (channels, kernel) = (weight.rows, weight.cols);
            let w: Vec<f32> = weight.f32s().collect(); // [C, L]
            let (x, cache) = (f32s(x), f32s(cache));
            pool.for_chunks(out.len() * (kernel + 8), out, channels, |t, out| {
                let last = start + t;
                let row = |position: usize| match position.checked_sub(start) {
                    Some(t) => &x[t * channels..][..channels],
                    None => &cache[position * channels..][..channels],
                };
                let rows: Vec<&[f32]> = ((last + 1).saturating_sub(kernel)..last + 1).map(row).collect();
                scalar::conv(&rows, &w, out);
            });
        }
        Op::L2Norm { x, first, heads, head_dim, eps } => {
            let (cols, x) = (x.cols(), f32s(x));
            pool.for_chunks(out.len() * 2, out, head_dim, |i, out| {
                scalar::l2_norm(&x[i / heads * cols + first + i % heads * head_dim..][..head_dim], eps, out);
            });
        }
        Op::Decay { x, weight } => {
            let w: Vec<f32> = weight.f32s().collect(); // [N]
            let x = f32s(x);
            pool.for_chunks(out.len() * 16, out, w.len(), |t, out| {
                scalar::decay(&x[t * w.len()..][..w.len()], &w, out)
            });
        }
        Op::Rows { x, start, .. } => out.copy_from_slice(&f32s(x)[start * x.cols()..][..out.len()]),
        Op::Store { .. } | Op::RouterTopK { .. } | Op::DeltaRule { .. } => unreachable!("`run` does these itself"),
    }
    Ok(())
}

fn rms_norm(
    kernels: &Kernels,
    pool: &Pool,
    x: &HostTensor,
    weight: &Weight,
    eps: f32,
    keep: usize,
    out: &mut [f32],
) -> Result<()> {
    let n = weight.cols;
    let mut scale = zeros(&[n])?; // [n]
    quant::dequantize(weight.ty, &weight.bytes(), &mut scale)?;
    let (cols, x) = (x.cols(), f32s(x));
    if keep == 0 {
        pool.for_chunks(out.len() * 2, out, n, |i, out| kernels.rms_norm(&x[i * n..][..n], &scale, eps, out));
        return Ok(());
    }
    pool.for_chunks(out.len() * 2, out, cols, |t, out| {
        let (x, x_kept) = x[t * cols..][..cols].split_at(cols - keep);
        let (out, out_kept) = out.split_at_mut(cols - keep);
        x.chunks_exact(n).zip(out.chunks_exact_mut(n)).for_each(|(x, out)| kernels.rms_norm(x, &scale, eps, out));
        out_kept.copy_from_slice(x_kept);
    });
    Ok(())
}

fn head_matmul(
    kernels: &Kernels,
    pool: &Pool,
    x: &HostTensor,
    weight: &Weight,
    head_dim: usize,
    keep: bool,
    out: &mut [f32],
) -> Result<()> {
    let (k, n, heads) = (weight.cols, weight.rows, weight.experts);
    let (rows, cols, x) = (x.shape[0], x.cols(), f32s(x));
    let of_x = cols / head_dim; // heads, or 1
    let kept = if keep { head_dim - k } else { 0 };
    let head = |row: usize, h: usize| &x[row * cols + h % of_x * head_dim..][..head_dim];
    let read: Vec<f32> = (0..rows * of_x).flat_map(|i| &head(i / of_x, i % of_x)[..k]).copied().collect(); // [T, of_x, K]
    let jobs: Vec<Job> = (0..heads)
        .map(|h| Job {
            expert: h,
            x: (0..rows).map(|t| t * of_x + h % of_x).collect(),
            out: (0..rows).map(|t| t * heads + h).collect(),
        })
        .collect();
    if kept == 0 {
        return matmul::run(kernels, pool, weight, &read, &jobs, out);
    }
    let mut products = zeros(&[rows, heads, n])?;
    matmul::run(kernels, pool, weight, &read, &jobs, &mut products)?;
    pool.for_chunks(out.len(), out, n + kept, |i, out| {
        out[..n].copy_from_slice(&products[i * n..][..n]);
        out[n..].copy_from_slice(&head(i / heads, i % heads)[k..]);
    });
    Ok(())
}

fn expert_matmul(
    kernels: &Kernels,
    pool: &Pool,
    x: &HostTensor,
    ids: &HostTensor,
    weight: &Weight,
    out: &mut [f32],
) -> Result<()> {
    // [T, n] is shared by the slots of a token, [T, K, n] has a row for each.
    let slots_per_row = if x.shape.len() == 2 { ids.cols() } else { 1 };
    let mut jobs: Vec<Job> = (0..weight.experts).map(|expert| Job { expert, x: Vec::new(), out: Vec::new() }).collect();
    for (slot, &id) in ids.ids().iter().enumerate() {
        jobs[id as usize].x.push(slot / slots_per_row);
        jobs[id as usize].out.push(slot);
    }
    jobs.retain(|job| !job.x.is_empty());
    matmul::run(kernels, pool, weight, f32s(x), &jobs, out)
}

/// An operation on two tensors of one shape, element by element; `cost` is what an element takes, in multiplications.
fn zip(
    pool: &Pool,
    a: &HostTensor,
    b: &HostTensor,
    cost: usize,
    out: &mut [f32],
    f: impl Fn(&[f32], &[f32], &mut [f32]) + Sync,
) {
    const CHUNK: usize = 1024;
    let (a, b) = (f32s(a), f32s(b));
    pool.for_chunks(out.len() * cost, out, CHUNK, |i, out| {
        f(&a[i * CHUNK..][..out.len()], &b[i * CHUNK..][..out.len()], out);
    });
}

/// [T, K].
fn router_topk(pool: &Pool, probs: &HostTensor, groups: Option<Groups>, shape: &[usize]) -> Vec<u32> {
    let (experts, k) = (probs.cols(), shape[1]);
    let probs = f32s(probs);
    let mut out = vec![0; shape[0] * k];
    pool.for_chunks(probs.len() * 64, &mut out, k, |t, out| {
        scalar::router_topk(&probs[t * experts..][..experts], groups, out);
    });
    out
}
