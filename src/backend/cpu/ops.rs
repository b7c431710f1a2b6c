//! Running one operation: its operands are checked, its result allocated, its rows spread over the threads.

use super::kernels::Kernels;
use super::matmul::{self, Job};
use super::{CpuBackend, CpuTensor, Pool, scalar, zeros};
use crate::op::{HostTensor, Op, OpKind, Site, Weight};
use crate::quant;
use crate::{Error, Result};

/// Rotary angles of the last call: all layers of a forward pass ask for the same ones.
#[derive(Default)]
pub(super) struct AngleCache {
    /// Bits of the base, head_dim, first position, positions.
    key: Option<(u64, usize, usize, usize)>,
    /// [positions, head_dim/2] of cosine and sine.
    angles: Vec<[f32; 2]>,
}

impl AngleCache {
    fn get(&mut self, pool: &Pool, base: f64, head_dim: usize, start: usize, positions: usize) -> &[[f32; 2]] {
        let key = Some((base.to_bits(), head_dim, start, positions));
        if self.key != key {
            self.angles.clear();
            self.angles.resize(positions * head_dim / 2, [0.0; 2]);
            let work = self.angles.len() * 512; // powf, sin and cos in f64
            pool.for_chunks(work, &mut self.angles, head_dim / 2, |t, out| {
                scalar::rope_angles(start + t, head_dim, base, out);
            });
            self.key = key;
        }
        &self.angles
    }
}

/// What is being checked, for messages.
#[derive(Clone, Copy)]
struct At {
    site: Site,
    op: OpKind,
}

impl At {
    fn error(self, message: String) -> Error {
        Error::usage(format!("{} ({:?}): {message}", self.site, self.op))
    }

    fn shape(self, operand: &str, expected: impl std::fmt::Display, found: &[usize]) -> Error {
        self.error(format!("{operand} is {found:?} where {expected} was expected"))
    }

    /// The two axes of an operand.
    fn matrix(self, operand: &str, shape: &[usize]) -> Result<[usize; 2]> {
        shape.try_into().map_err(|_| self.shape(operand, "[rows, cols]", shape))
    }

    /// The three axes of an operand.
    fn cube(self, operand: &str, shape: &[usize]) -> Result<[usize; 3]> {
        shape.try_into().map_err(|_| self.shape(operand, "three axes", shape))
    }

    fn same(self, operand: &str, expected: &[usize], found: &[usize]) -> Result<()> {
        if expected == found { Ok(()) } else { Err(self.shape(operand, format!("{expected:?}"), found)) }
    }

    /// The number of heads in rows of `cols`.
    fn heads(self, operand: &str, shape: &[usize], cols: usize, head_dim: usize) -> Result<usize> {
        if head_dim > 0 && cols > 0 && cols.is_multiple_of(head_dim) {
            Ok(cols / head_dim)
        } else {
            Err(self.shape(operand, format!("[T, heads·{head_dim}]"), shape))
        }
    }

    /// How many query heads read one KV head.
    fn group(self, heads: usize, kv_heads: usize) -> Result<usize> {
        if heads.is_multiple_of(kv_heads) {
            Ok(heads / kv_heads)
        } else {
            Err(self.error(format!("{heads} query heads do not divide among {kv_heads} KV heads")))
        }
    }

    fn single(self, weight: &Weight) -> Result<()> {
        if weight.experts == 1 {
            Ok(())
        } else {
            Err(self.shape(&weight.name, "[cols, rows] of one expert", &weight.dims()))
        }
    }
}

/// Runs `op`; `site` is for messages.
pub(super) fn run(backend: &mut CpuBackend, site: Site, op: &Op<'_, CpuTensor>) -> Result<CpuTensor> {
    let at = At { site, op: op.kind() };
    let (pool, kernels) = (&backend.pool, backend.kernels);
    match *op {
        Op::Embed { table, tokens } => embed(at, table, tokens),
        Op::RmsNorm { ref x, weight, eps } => rms_norm(at, kernels, pool, x, weight, eps),
        Op::MatMul { ref x, weight } => matmul(at, kernels, pool, x, weight),
        Op::Rope { ref x, start, head_dim, base } => rope(at, pool, &mut backend.angles, x, start, head_dim, base),
        Op::Store { ref cache, ref x, start } => store(at, cache, x, start),
        Op::AttnScores { ref q, ref k, start, head_dim } => attn_scores(at, kernels, pool, q, k, start, head_dim),
        Op::AttnProbs { ref scores, start } => attn_probs(at, kernels, pool, scores, start),
        Op::AttnContext { ref probs, ref v, start, head_dim } => {
            attn_context(at, kernels, pool, probs, v, start, head_dim)
        }
        Op::Add { ref a, ref b } => zip(at, pool, [("a", a), ("b", b)], 1, scalar::add),
        Op::RouterProbs { ref logits } => router_probs(at, kernels, pool, logits),
        Op::RouterTopK { ref probs, k } => router_topk(at, pool, probs, k),
        Op::RouterWeights { ref probs, ref ids, renormalise } => router_weights(at, probs, ids, renormalise),
        Op::ExpertMatMul { ref x, ref ids, weight } => expert_matmul(at, kernels, pool, x, ids, weight),
        Op::SwiGlu { ref gate, ref up } => {
            zip(at, pool, [("gate", gate), ("up", up)], 16, |gate, up, out| kernels.swiglu(gate, up, out))
        }
        Op::Combine { ref down, ref weights } => combine(at, pool, down, weights),
        Op::Rows { ref x, start, rows } => take_rows(at, x, start, rows),
    }
}

fn tensor(shape: &[usize], values: Vec<f32>) -> Result<CpuTensor> {
    Ok(CpuTensor::new(HostTensor::f32(shape, values)))
}

fn embed(at: At, table: &Weight, tokens: &[u32]) -> Result<CpuTensor> {
    at.single(table)?;
    let shape = [tokens.len(), table.cols];
    let mut out = zeros(&shape)?;
    for (out, &token) in out.chunks_exact_mut(table.cols.max(1)).zip(tokens) {
        if token as usize >= table.rows {
            return Err(at.error(format!("token {token} is not in {}, which has {} rows", table.name, table.rows)));
        }
        quant::dequantize(table.ty, table.row(0, token as usize), out)?;
    }
    tensor(&shape, out)
}

fn rms_norm(at: At, kernels: &Kernels, pool: &Pool, x: &CpuTensor, weight: &Weight, eps: f32) -> Result<CpuTensor> {
    let shape = x.shape();
    let [_, cols] = at.matrix("x", &shape)?;
    let n = weight.cols;
    if weight.rows != 1 || weight.experts != 1 || n == 0 {
        return Err(at.shape(&weight.name, "a vector", &weight.dims()));
    }
    if !cols.is_multiple_of(n) {
        return Err(at.shape("x", format!("[T, groups·{n}] for {}", weight.name), &shape));
    }
    let mut scale = zeros(&[n])?; // [n]
    quant::dequantize(weight.ty, weight.bytes(), &mut scale)?;
    let x = x.f32(at.site, "x")?;
    let x = &*x;
    let mut out = zeros(&shape)?;
    pool.for_chunks(out.len() * 2, &mut out, n, |i, out| kernels.rms_norm(&x[i * n..][..n], &scale, eps, out));
    tensor(&shape, out)
}

fn matmul(at: At, kernels: &Kernels, pool: &Pool, x: &CpuTensor, weight: &Weight) -> Result<CpuTensor> {
    at.single(weight)?;
    let shape = x.shape();
    let [rows, cols] = at.matrix("x", &shape)?;
    if cols != weight.cols {
        return Err(at.shape("x", format!("[T, {}] for {} {:?}", weight.cols, weight.name, weight.dims()), &shape));
    }
    let x = x.f32(at.site, "x")?;
    let job = Job { expert: 0, x: (0..rows).map(|t| &x[t * cols..][..cols]).collect(), out: (0..rows).collect() };
    let shape = [rows, weight.rows];
    let mut out = zeros(&shape)?;
    matmul::run(kernels, pool, weight, &[job], &mut out)?;
    tensor(&shape, out)
}

fn expert_matmul(
    at: At,
    kernels: &Kernels,
    pool: &Pool,
    x: &CpuTensor,
    ids: &CpuTensor,
    weight: &Weight,
) -> Result<CpuTensor> {
    let [tokens, slots] = at.matrix("ids", &ids.shape())?;
    let shape = x.shape();
    let shared = shape == [tokens, weight.cols];
    if !shared && shape != [tokens, slots, weight.cols] {
        let n = weight.cols;
        let expected = format!("[{tokens}, {n}] or [{tokens}, {slots}, {n}] for {} {:?}", weight.name, weight.dims());
        return Err(at.shape("x", expected, &shape));
    }
    let x = x.f32(at.site, "x")?;
    let mut jobs: Vec<Job<'_>> =
        (0..weight.experts).map(|expert| Job { expert, x: Vec::new(), out: Vec::new() }).collect();
    for (out, &id) in ids.ids(at.site, "ids")?.iter().enumerate() {
        let job = jobs.get_mut(id as usize).ok_or_else(|| {
            at.error(format!(
                "expert {id} for token {}, slot {}, but {} has {} experts",
                out / slots,
                out % slots,
                weight.name,
                weight.experts
            ))
        })?;
        job.x.push(&x[if shared { out / slots } else { out } * weight.cols..][..weight.cols]);
        job.out.push(out);
    }
    jobs.retain(|job| !job.x.is_empty());
    let shape = [tokens, slots, weight.rows];
    let mut out = zeros(&shape)?;
    matmul::run(kernels, pool, weight, &jobs, &mut out)?;
    tensor(&shape, out)
}

fn rope(
    at: At,
    pool: &Pool,
    angles: &mut AngleCache,
    x: &CpuTensor,
    start: usize,
    head_dim: usize,
    base: f64,
) -> Result<CpuTensor> {
    let shape = x.shape();
    let [rows, cols] = at.matrix("x", &shape)?;
    let heads = at.heads("x", &shape, cols, head_dim)?;
    if !head_dim.is_multiple_of(2) {
        return Err(at.error(format!("head_dim is {head_dim} where an even number was expected")));
    }
    let half = head_dim / 2;
    let angles = angles.get(pool, base, head_dim, start, rows); // [T, D/2]
    let x = x.f32(at.site, "x")?;
    let x = &*x;
    let mut out = zeros(&shape)?;
    pool.for_chunks(out.len() * 2, &mut out, head_dim, |i, out| {
        scalar::rope(&x[i * head_dim..][..head_dim], &angles[i / heads * half..][..half], out);
    });
    tensor(&shape, out)
}

fn store(at: At, cache: &CpuTensor, x: &CpuTensor, start: usize) -> Result<CpuTensor> {
    let shape = x.shape();
    let [rows, cols] = at.matrix("x", &shape)?;
    let [capacity, width] = at.matrix("cache", &cache.shape())?;
    if cols != width {
        return Err(at.shape("x", format!("[T, {width}]"), &shape));
    }
    if start.checked_add(rows).is_none_or(|end| end > capacity) {
        return Err(at.error(format!("{rows} rows from position {start} do not fit a cache of {capacity}")));
    }
    if cache.same(x) {
        return Err(at.error("x is the cache itself".into()));
    }
    cache.f32_mut(at.site, "cache")?[start * width..][..rows * width].copy_from_slice(&x.f32(at.site, "x")?);
    Ok(cache.clone())
}

fn attn_scores(
    at: At,
    kernels: &Kernels,
    pool: &Pool,
    q: &CpuTensor,
    k: &CpuTensor,
    start: usize,
    head_dim: usize,
) -> Result<CpuTensor> {
    /// Query rows to a task. Those that read one KV head go through its keys together.
    const CHUNK: usize = 8;
    let (q_shape, k_shape) = (q.shape(), k.shape());
    let ([rows, q_cols], [capacity, k_cols]) = (at.matrix("q", &q_shape)?, at.matrix("k", &k_shape)?);
    let heads = at.heads("q", &q_shape, q_cols, head_dim)?;
    let group = at.group(heads, at.heads("k", &k_shape, k_cols, head_dim)?)?;
    let seen = seen(at, "k", start, rows, capacity)?;
    let (q, k) = (q.f32(at.site, "q")?, k.f32(at.site, "k")?);
    let (q, k) = (&*q, &*k);
    let scale = scalar::attn_scale(head_dim);
    let shape = [heads, rows, seen];
    let mut out = zeros(&shape)?;
    pool.for_chunks(out.len() * head_dim, &mut out, CHUNK * seen, |i, out| {
        let first = i * CHUNK;
        let queries: Vec<(usize, usize)> =
            (first..first + out.len() / seen).map(|row| (row / rows, row % rows)).collect(); // (head, t)
        let mut out = out.chunks_exact_mut(seen);
        let mut products = Vec::new();
        for run in queries.chunk_by(|a, b| a.0 / group == b.0 / group) {
            let x: Vec<&[f32]> = run.iter().map(|(h, t)| &q[t * q_cols + h * head_dim..][..head_dim]).collect();
            // As many keys as the last of these sees; the others' scores beyond their own position stay 0.
            let keys = run.iter().map(|(_, t)| start + t + 1).max().unwrap_or(0);
            products.resize(run.len() * keys, 0.0); // [run, keys]
            kernels.panel(&k[run[0].0 / group * head_dim..], k_cols, keys, &x, &mut products);
            // `out` comes last: a zip that ends would otherwise have taken the next run's first row.
            for (((_, t), products), out) in run.iter().zip(products.chunks_exact(keys)).zip(out.by_ref()) {
                for (out, product) in out.iter_mut().zip(&products[..start + t + 1]) {
                    *out = product * scale;
                }
            }
        }
    });
    tensor(&shape, out)
}

/// S = start + T, if a cache of `capacity` holds as many positions.
fn seen(at: At, operand: &str, start: usize, rows: usize, capacity: usize) -> Result<usize> {
    start.checked_add(rows).filter(|seen| *seen <= capacity).ok_or_else(|| {
        at.error(format!("{operand} holds {capacity} positions where {rows} from position {start} are asked for"))
    })
}

fn attn_probs(at: At, kernels: &Kernels, pool: &Pool, scores: &CpuTensor, start: usize) -> Result<CpuTensor> {
    let shape = scores.shape();
    let [_, rows, seen] = at.cube("scores", &shape)?;
    if start.checked_add(rows) != Some(seen) {
        return Err(at.shape("scores", format!("[heads, {rows}, {start} + {rows}]"), &shape));
    }
    let scores = scores.f32(at.site, "scores")?;
    let scores = &*scores;
    let mut out = zeros(&shape)?;
    pool.for_chunks(out.len() * 16, &mut out, seen, |i, out| {
        let visible = start + i % rows + 1;
        kernels.softmax(&scores[i * seen..][..visible], &mut out[..visible]);
    });
    tensor(&shape, out)
}

fn attn_context(
    at: At,
    kernels: &Kernels,
    pool: &Pool,
    probs: &CpuTensor,
    v: &CpuTensor,
    start: usize,
    head_dim: usize,
) -> Result<CpuTensor> {
    let (p_shape, v_shape) = (probs.shape(), v.shape());
    let ([heads, rows, seen_p], [capacity, v_cols]) = (at.cube("probs", &p_shape)?, at.matrix("v", &v_shape)?);
    let group = at.group(heads, at.heads("v", &v_shape, v_cols, head_dim)?)?;
    if seen(at, "v", start, rows, capacity)? != seen_p {
        return Err(at.shape("probs", format!("[heads, {rows}, {start} + {rows}]"), &p_shape));
    }
    let (probs, v) = (probs.f32(at.site, "probs")?, v.f32(at.site, "v")?);
    let (probs, v) = (&*probs, &*v);
    let shape = [rows, heads * head_dim];
    let mut out = zeros(&shape)?;
    pool.for_chunks(probs.len() * head_dim, &mut out, head_dim, |i, out| {
        let (t, h) = (i / heads, i % heads);
        let probs = &probs[(h * rows + t) * seen_p..][..start + t + 1];
        kernels.attn_context(probs, &v[h / group * head_dim..], v_cols, out);
    });
    tensor(&shape, out)
}

/// An operation on two tensors of one shape, element by element; `cost` is what an element takes, in multiplications.
fn zip(
    at: At,
    pool: &Pool,
    [(a_name, a), (b_name, b)]: [(&str, &CpuTensor); 2],
    cost: usize,
    f: impl Fn(&[f32], &[f32], &mut [f32]) + Sync,
) -> Result<CpuTensor> {
    const CHUNK: usize = 1024;
    let shape = a.shape();
    at.same(b_name, &shape, &b.shape())?;
    let (a, b) = (a.f32(at.site, a_name)?, b.f32(at.site, b_name)?);
    let (a, b) = (&*a, &*b);
    let mut out = zeros(&shape)?;
    pool.for_chunks(out.len() * cost, &mut out, CHUNK, |i, out| {
        f(&a[i * CHUNK..][..out.len()], &b[i * CHUNK..][..out.len()], out);
    });
    tensor(&shape, out)
}

fn router_probs(at: At, kernels: &Kernels, pool: &Pool, logits: &CpuTensor) -> Result<CpuTensor> {
    let shape = logits.shape();
    let [_, experts] = at.matrix("logits", &shape)?;
    let logits = logits.f32(at.site, "logits")?;
    let logits = &*logits;
    let mut out = zeros(&shape)?;
    pool.for_chunks(out.len() * 16, &mut out, experts, |t, out| {
        kernels.softmax(&logits[t * experts..][..experts], out)
    });
    tensor(&shape, out)
}

fn router_topk(at: At, pool: &Pool, probs: &CpuTensor, k: usize) -> Result<CpuTensor> {
    let shape = probs.shape();
    let [tokens, experts] = at.matrix("probs", &shape)?;
    if k == 0 || k > experts {
        return Err(at.error(format!("{k} of {experts} experts asked for")));
    }
    let probs = probs.f32(at.site, "probs")?;
    let probs = &*probs;
    let mut out = vec![0; tokens * k];
    pool.for_chunks(probs.len() * 64, &mut out, k, |t, out| {
        scalar::router_topk(&probs[t * experts..][..experts], out);
    });
    Ok(CpuTensor::new(HostTensor::u32(&[tokens, k], out)))
}

fn router_weights(at: At, probs: &CpuTensor, ids: &CpuTensor, renormalise: bool) -> Result<CpuTensor> {
    let (p_shape, shape) = (probs.shape(), ids.shape());
    let ([tokens, experts], [id_rows, k]) = (at.matrix("probs", &p_shape)?, at.matrix("ids", &shape)?);
    at.same("ids", &[tokens, k], &[id_rows, k])?;
    let (probs, ids) = (probs.f32(at.site, "probs")?, ids.ids(at.site, "ids")?);
    if let Some(id) = ids.iter().find(|id| **id as usize >= experts) {
        return Err(at.error(format!("expert {id} of {experts}")));
    }
    let mut out = zeros(&shape)?;
    for (t, out) in out.chunks_exact_mut(k.max(1)).enumerate() {
        scalar::router_weights(&probs[t * experts..][..experts], &ids[t * k..][..k], renormalise, out);
    }
    tensor(&shape, out)
}

fn combine(at: At, pool: &Pool, down: &CpuTensor, weights: &CpuTensor) -> Result<CpuTensor> {
    let shape = down.shape();
    let [tokens, k, hidden] = at.cube("down", &shape)?;
    at.same("weights", &[tokens, k], &weights.shape())?;
    let (down, weights) = (down.f32(at.site, "down")?, weights.f32(at.site, "weights")?);
    let (down, weights) = (&*down, &*weights);
    let shape = [tokens, hidden];
    let mut out = zeros(&shape)?;
    pool.for_chunks(down.len() * 2, &mut out, hidden, |t, out| {
        scalar::combine(&down[t * k * hidden..][..k * hidden], &weights[t * k..][..k], out);
    });
    tensor(&shape, out)
}

fn take_rows(at: At, x: &CpuTensor, start: usize, rows: usize) -> Result<CpuTensor> {
    let shape = x.shape();
    let [have, cols] = at.matrix("x", &shape)?;
    if start.checked_add(rows).is_none_or(|end| end > have) {
        return Err(at.error(format!("rows {start}..{} of {have}", start.saturating_add(rows))));
    }
    let values = x.f32(at.site, "x")?[start * cols..][..rows * cols].to_vec();
    tensor(&[rows, cols], values)
}
