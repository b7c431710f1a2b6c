//! Running one operation: its operands are checked, its result allocated, its rows spread over the threads.

use std::cell::Ref;
use std::sync::Arc;

use super::kernels::Kernels;
use super::matmul::{self, Job};
use super::tensor::room;
use super::{CpuBackend, CpuTensor, Pool, delta, scalar, zeros};
use crate::op::{AngleKey, Data, GateActivation, Groups, HostTensor, Op, Rotation, Site, Weight, first_seen};
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
    let values = match on_host {
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

/// The f32 values of a tensor that [`Op::check`] found to be numbers: a [`CpuTensor`] holds no others.
fn f32s(t: &HostTensor) -> &[f32] {
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
            attn_scores(kernels, pool, q, k, [start, head_dim], scalar::attn_scale(head_dim, scale), window, out)
        }
        Op::AttnProbs { scores, start, window, sinks } => {
            let (rows, seen) = (scores.shape[1], scores.shape[2]);
            let scores = f32s(scores);
            let sinks: Option<Vec<f32>> = sinks.map(|sinks| sinks.f32s().collect()); // [heads]
            pool.for_chunks(out.len() * 16, out, seen, |i, out| {
                let position = start + i % rows;
                let visible = first_seen(position, window)..position + 1;
                let x = &scores[i * seen..][visible.clone()];
                out[..visible.start].fill(0.0);
                out[visible.end..].fill(0.0);
                match &sinks {
                    None => kernels.softmax(x, &mut out[visible]),
                    Some(sinks) => {
                        // The sink is the last score of the row; its share is dropped.
                        let x = [x, &[sinks[i / rows]]].concat();
                        let mut shares = vec![0.0; x.len()];
                        kernels.softmax(&x, &mut shares);
                        out[visible].copy_from_slice(&shares[..x.len() - 1]);
                    }
                }
            });
        }
        Op::AttnContext { probs, v, start, head_dim, window } => {
            attn_context(kernels, pool, probs, v, start, head_dim, window, out)
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

#[allow(clippy::too_many_arguments)] // two operands, what they are to each other, and the result
fn attn_scores(
    kernels: &Kernels,
    pool: &Pool,
    q: &HostTensor,
    k: &HostTensor,
    [start, head_dim]: [usize; 2],
    scale: f32,
    window: Option<usize>,
    out: &mut [f32],
) {
    let (rows, q_cols, k_cols) = (q.shape[0], q.cols(), k.cols());
    // Query rows to a task. Those that read one KV head go through its keys together, as many as a level takes at once where that leaves some
    // tasks.
    let chunk = if rows >= 32 { 32 } else { 8 };
    let (seen, group) = (start + rows, q_cols / k_cols);
    let (q, k) = (f32s(q), f32s(k));
    pool.for_chunks(out.len() * head_dim, out, chunk * seen, |i, out| {
        let first = i * chunk;
        let queries: Vec<(usize, usize)> =
            (first..first + out.len() / seen).map(|row| (row / rows, row % rows)).collect(); // (head, t)
        let mut out = out.chunks_exact_mut(seen);
        let mut products = Vec::new();
        for run in queries.chunk_by(|a, b| a.0 / group == b.0 / group) {
            let x: Vec<&[f32]> = run.iter().map(|(h, t)| &q[t * q_cols + h * head_dim..][..head_dim]).collect();
            // As many keys as the last of these sees; scores beyond one's own position are 0.
            let keys = run.iter().map(|(_, t)| start + t + 1).max().unwrap_or(0);
            products.resize(run.len() * keys, 0.0); // [run, keys]
            kernels.panel(&k[run[0].0 / group * head_dim..], k_cols, keys, &x, &mut products);
            // `out` comes last: a zip that ends would otherwise have taken the next run's first row.
            for (((_, t), products), out) in run.iter().zip(products.chunks_exact(keys)).zip(out.by_ref()) {
                let visible = first_seen(start + t, window)..start + t + 1;
                out[..visible.start].fill(0.0);
                out[visible.end..].fill(0.0);
                for (out, product) in out[visible.clone()].iter_mut().zip(&products[visible]) {
                    *out = product * scale;
                }
            }
        }
    });
}

/// Rows of queries whose values are read once for all of them.
const ROWS_TOGETHER: usize = 8;

#[allow(clippy::too_many_arguments)] // two operands, what they are to each other, and the result
fn attn_context(
    kernels: &Kernels,
    pool: &Pool,
    probs: &HostTensor,
    v: &HostTensor,
    start: usize,
    head_dim: usize,
    window: Option<usize>,
    out: &mut [f32],
) {
    let (heads, rows, seen, v_cols) = (probs.shape[0], probs.shape[1], probs.shape[2], v.cols());
    let group = heads / (v_cols / head_dim);
    let (probs, v) = (f32s(probs), f32s(v));
    // What a row of probabilities sees of the values from position `first` on.
    let seen_from = |first: usize, h: usize, t: usize| &probs[(h * rows + t) * seen..][first..start + t + 1];
    let of_head = |first: usize, head: usize| &v[first * v_cols + head / group * head_dim..];
    // Rows that go through the values together, where that leaves some tasks for each thread: they begin with the same one.
    let chunk = if window.is_none() && rows >= 4 * ROWS_TOGETHER * pool.threads() { ROWS_TOGETHER } else { 1 };
    if chunk == 1 {
        // Heads that read the same values go through them together, unless some threads would have none.
        let together = if rows * heads / group >= pool.threads() { group } else { 1 };
        return pool.for_chunks(probs.len() * head_dim, out, together * head_dim, |i, out| {
            let (t, head) = (i * together / heads, i * together % heads);
            let first = first_seen(start + t, window);
            let probs: Vec<&[f32]> = (head..head + together).map(|h| seen_from(first, h, t)).collect();
            kernels.attn_context(&probs, of_head(first, head), v_cols, out);
        });
    }
    pool.for_chunks(probs.len() * head_dim, out, chunk * heads * head_dim, |i, out| {
        let here = i * chunk..i * chunk + out.len() / (heads * head_dim);
        let mut results = vec![0.0; here.len() * group * head_dim]; // [rows, group, D]
        for head in (0..heads).step_by(group) {
            let of_row = |t: usize| (head..head + group).map(move |h| seen_from(0, h, t));
            let probs: Vec<&[f32]> = here.clone().flat_map(of_row).collect();
            kernels.attn_context(&probs, of_head(0, head), v_cols, &mut results);
            let rows = out.chunks_exact_mut(heads * head_dim).zip(results.chunks_exact(group * head_dim));
            rows.for_each(|(out, results)| out[head * head_dim..][..results.len()].copy_from_slice(results));
        }
    });
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
