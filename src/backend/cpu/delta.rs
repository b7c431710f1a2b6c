//! The gated delta rule, head by head, and the states that it leaves.
//!
//! Design:
//! - A call is a function of its operands, from position 0 on: that is what is judged, replayed and recorded.
//! - **The state that a call ends with is kept**, so that the next one, which begins where it ended, does not compute it again. It is the
//!   state of the same steps on the same rows, to the bit; once a row before it is written again, it is forgotten.

use super::{CpuTensor, Pool, scalar, zeros};
use crate::Result;

/// States by the caches that they are of.
#[derive(Default)]
pub(super) struct States(Vec<KeptState>);

/// The state before a position.
struct KeptState {
    /// Of keys, values, decays and betas.
    caches: [CpuTensor; 4],
    position: usize,
    sizes: StateSizes,
    /// [Hv, D, D]
    states: Vec<f32>,
}

/// What a call is besides its operands.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct StateSizes {
    pub head_dim: usize,
    pub key_heads: usize,
    pub value_heads: usize,
    pub tiled: bool,
}

impl States {
    /// Forgets what depends on rows of `cache` from `start` on, which are written.
    pub fn written(&mut self, cache: &CpuTensor, start: usize) {
        let holds = |kept: &KeptState| start >= kept.position || !kept.caches.iter().any(|own| own.same(cache));
        self.0.retain(|kept| holds(kept) && !kept.caches[0].is_last()); // nor of sequences that are done
    }

    /// The state before `position`, which is taken out.
    fn take(&mut self, caches: &[CpuTensor; 4], position: usize, sizes: StateSizes) -> Option<Vec<f32>> {
        let of = |kept: &KeptState| kept.caches.iter().zip(caches).all(|(own, other)| own.same(other));
        let at = self.0.iter().position(of)?;
        let kept = self.0.swap_remove(at);
        (kept.position == position && kept.sizes == sizes).then_some(kept.states)
    }

    fn keep(&mut self, caches: [CpuTensor; 4], position: usize, sizes: StateSizes, states: Vec<f32>) {
        self.0.retain(|kept| !kept.caches[0].is_last()); // of sequences that are done
        self.0.push(KeptState { caches, position, sizes, states });
    }
}

/// The rows of `q` and of the caches, as slices.
pub(super) struct Rows<'a> {
    /// [T, Hk·D]
    pub q: &'a [f32],
    /// [≥ S, Hk·D]
    pub k: &'a [f32],
    /// [≥ S, n ≥ Hv·D], of which the last columns are read.
    pub v: &'a [f32],
    pub v_cols: usize,
    /// [≥ S, Hv]
    pub decay: &'a [f32],
    /// [≥ S, Hv]
    pub beta: &'a [f32],
}

/// Sᵀq / √D of each value head at the positions from `start` on. `out` is [T, Hv·D].
pub(super) fn run(
    pool: &Pool,
    states: &mut States,
    caches: [CpuTensor; 4],
    rows: &Rows<'_>,
    start: usize,
    sizes: StateSizes,
    out: &mut [f32],
) -> Result<()> {
    let StateSizes { head_dim: d, key_heads, value_heads: heads, tiled } = sizes;
    let (key_cols, first, scale) = (key_heads * d, rows.v_cols - heads * d, scalar::attn_scale(d, None));
    let positions = rows.q.len() / key_cols;
    // The state before position `from`.
    let kept = states.take(&caches, start, sizes);
    let from = if kept.is_some() { start } else { 0 };
    // For each head its state, then its rows of the result.
    let (of_state, of_head) = (d * d, d * d + positions * d);
    let mut all = zeros(&[heads, of_head])?;
    for (all, kept) in all.chunks_exact_mut(of_head).zip(kept.iter().flat_map(|kept| kept.chunks_exact(of_state))) {
        all[..of_state].copy_from_slice(kept);
    }
    pool.for_chunks((start + positions - from) * heads * of_state * 4, &mut all, of_head, |head, all| {
        let key_head = if tiled { head % key_heads } else { head / (heads / key_heads) };
        let (state, out) = all.split_at_mut(of_state);
        let mut delta = vec![0.0; d];
        for s in from..start + positions {
            let k = &rows.k[s * key_cols + key_head * d..][..d];
            let v = &rows.v[s * rows.v_cols + first + head * d..][..d];
            let [decay, beta] = [rows.decay, rows.beta].map(|x| x[s * heads + head]);
            scalar::delta_step(state, decay.exp(), beta, k, v, &mut delta);
            if let Some(t) = s.checked_sub(start) {
                let out = &mut out[t * d..][..d];
                scalar::held(state, &rows.q[t * key_cols + key_head * d..][..d], out);
                out.iter_mut().for_each(|x| *x *= scale);
            }
        }
    });
    let mut ends = zeros(&[heads, d, d])?;
    for (head, (all, end)) in all.chunks_exact(of_head).zip(ends.chunks_exact_mut(of_state)).enumerate() {
        let (state, of_rows) = all.split_at(of_state);
        end.copy_from_slice(state);
        for (t, row) in of_rows.chunks_exact(d).enumerate() {
            out[(t * heads + head) * d..][..d].copy_from_slice(row);
        }
    }
    states.keep(caches, start + positions, sizes, ends);
    Ok(())
}
