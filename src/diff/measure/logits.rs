//! How far apart two sets of logits are, as distributions over the next token.
//!
//! Design:
//! - The terms are those of llama.cpp's perplexity tool (`--kl-divergence`): KL divergence of the subject from the
//!   reference, its 99.9 % quantile (interpolated linearly between order statistics), "same top p", RMS Δp.
//! - Δp is the subject's probability of the *correct* next token minus the reference's. The correct token is the one that
//!   the text goes on with; where the text ends, there is none and the reference's top token stands in.
//! - Everything is in f64 after one log-sum-exp a side. The divergence is summed as Σ p·(d + e^(−d) − 1), d = ln p − ln q,
//!   equal to Σ p·d because both sides sum to 1; its terms are never negative, so divergences of 1e-15 are still right.

use rayon::prelude::*;

use crate::diff::measure::metrics::{Mismatch, NonFinite};
use crate::op::{HostTensor, unravel};

/// How many of the most probable tokens `top_k_overlap` looks at.
pub const TOP_K: usize = 10;

/// One position.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct LogitsAt {
    /// The position whose next token they are for.
    pub position: usize,
    /// KL(reference ‖ subject) in nats.
    pub kld: f64,
    /// The most probable token of each side; ties to the lower id.
    pub reference_top: u32,
    /// The subject's most probable token.
    pub subject_top: u32,
    /// Whose probability Δp is of.
    pub token: u32,
    /// Whether `token` is the text's next token rather than the reference's top one.
    pub token_is_next: bool,
    /// p_subject(token) − p_reference(token)
    pub delta_p: f64,
    /// Share of the reference's [`TOP_K`] most probable tokens (all, in a smaller vocabulary) among the subject's.
    pub top_k_overlap: f64,
    /// ln V of a side whose logits are all equal, of the reference and the subject: nothing that was computed reaches them.
    #[serde(skip)]
    pub uniform: [Option<f64>; 2],
}

/// All positions.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct LogitsComparison {
    /// Positions that were compared.
    pub positions: usize,
    /// Mean of the Kullback-Leibler divergence, nats.
    pub kld_mean: f64,
    /// Its 99.9th percentile.
    pub kld_p999: f64,
    /// Its maximum.
    pub kld_max: f64,
    /// Positions where both sides have the same most probable token.
    pub same_top: usize,
    /// The share of positions with the same most probable token.
    pub same_top_rate: f64,
    /// √(mean Δp²)
    pub rms_delta_p: f64,
    /// Mean over positions.
    pub top_k_overlap: f64,
    /// Each position.
    pub at: Vec<LogitsAt>,
}

/// Compares logits `[T, V]`. `next[t]` is the token that the text goes on with after row t, where it is known;
/// `first_position` is the position of row 0.
///
/// # Errors
/// A [`Mismatch`] when shapes or types differ, nothing is there, a value is not finite, or a token is not in the vocabulary.
pub fn compare_logits(
    reference: &HostTensor,
    subject: &HostTensor,
    next: &[Option<u32>],
    first_position: usize,
) -> Result<LogitsComparison, Mismatch> {
    if reference.shape != subject.shape {
        return Err(Mismatch::Shape { reference: reference.shape.clone(), subject: subject.shape.clone() });
    }
    if [reference, subject].iter().any(|x| x.dtype() == "u32") {
        return Err(Mismatch::Dtype { reference: reference.dtype(), subject: subject.dtype() });
    }
    let (t, v) = match reference.shape[..] {
        [t, v] if t > 0 && v > 0 => (t, v),
        _ => return Err(Mismatch::Nothing { shape: reference.shape.clone(), masked: 0 }),
    };
    let (a, b) = (reference.to_f64(), subject.to_f64());
    check_finite(&a, &b, &reference.shape)?;
    if let Some((row, token)) =
        next.iter().take(t).enumerate().find_map(|(i, n)| n.filter(|&n| n as usize >= v).map(|n| (i, n)))
    {
        return Err(Mismatch::NoSuchToken { position: first_position + row, token, vocabulary: v });
    }
    let at: Vec<LogitsAt> = (0..t)
        .into_par_iter()
        .map(|i| {
            let next = next.get(i).copied().flatten();
            position(first_position + i, &a[i * v..][..v], &b[i * v..][..v], next)
        })
        .collect();

    Ok(LogitsComparison::from_positions(at))
}

impl LogitsComparison {
    /// What is to be said of sides whose logits are all equal.
    pub fn uniform(&self) -> Vec<String> {
        let of = |(n, side): (usize, &str)| {
            let ln_v = self.at.iter().find_map(|at| at.uniform[n])?;
            let positions = self.at.iter().filter(|at| at.uniform[n].is_some()).count();
            Some(format!(
                "the {side}'s logits are all equal at {positions} of {} positions: every token has the logarithm −{ln_v:.4}, which is −ln V, and \
                 nothing that the model computes is in them",
                self.positions
            ))
        };
        ["reference", "subject"].into_iter().enumerate().filter_map(of).collect()
    }

    /// Aggregates positions.
    ///
    /// # Panics
    /// If there are none.
    pub fn from_positions(at: Vec<LogitsAt>) -> Self {
        let t = at.len();
        assert!(t > 0, "logits of at least one position");
        let mean = |f: fn(&LogitsAt) -> f64| at.iter().map(f).sum::<f64>() / t as f64;
        let mut klds: Vec<f64> = at.iter().map(|p| p.kld).collect();
        klds.sort_unstable_by(f64::total_cmp);
        let same_top = at.iter().filter(|p| p.reference_top == p.subject_top).count();
        Self {
            positions: t,
            kld_mean: mean(|p| p.kld),
            kld_p999: quantile(&klds, 0.999),
            kld_max: klds[t - 1],
            same_top,
            same_top_rate: same_top as f64 / t as f64,
            rms_delta_p: mean(|p| p.delta_p * p.delta_p).sqrt(),
            top_k_overlap: mean(|p| p.top_k_overlap),
            at,
        }
    }
}

fn check_finite(a: &[f64], b: &[f64], shape: &[usize]) -> Result<(), Mismatch> {
    let count = |x: &[f64]| NonFinite {
        nan: x.iter().filter(|x| x.is_nan()).count(),
        inf: x.iter().filter(|x| x.is_infinite()).count(),
        first: x.iter().position(|x| !x.is_finite()).map(|i| unravel(i, shape)),
    };
    let (reference, subject) = (count(a), count(b));
    if reference.any() || subject.any() {
        return Err(Mismatch::NonFinite { reference, subject });
    }
    Ok(())
}

fn position(position: usize, a: &[f64], b: &[f64], next: Option<u32>) -> LogitsAt {
    let (za, zb) = (LogSumExp::of(a), LogSumExp::of(b));
    let kld = a.iter().zip(b).map(|(&x, &y)| kl_term(za.log_prob(x), zb.log_prob(y))).sum();
    let (top_a, top_b) = (top(a, TOP_K), top(b, TOP_K));
    let token = next.unwrap_or(top_a[0]);
    let i = token as usize;
    let uniform = |x: &[f64]| (x.len() > 1 && x.iter().all(|value| *value == x[0])).then(|| (x.len() as f64).ln());
    LogitsAt {
        position,
        kld,
        reference_top: top_a[0],
        subject_top: top_b[0],
        token,
        token_is_next: next.is_some(),
        delta_p: zb.log_prob(b[i]).exp() - za.log_prob(a[i]).exp(),
        top_k_overlap: top_a.iter().filter(|id| top_b.contains(id)).count() as f64 / top_a.len() as f64,
        uniform: [uniform(a), uniform(b)],
    }
}

/// ln Σ e^x as max + ln Σ e^(x − max), kept in two parts: their sum would round the small one away.
struct LogSumExp {
    max: f64,
    rest: f64,
}

impl LogSumExp {
    /// `x` is not empty.
    fn of(x: &[f64]) -> Self {
        let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        Self { max, rest: x.iter().map(|x| (x - max).exp()).sum::<f64>().ln() }
    }
    /// ln of the probability that goes with logit `x`.
    fn log_prob(&self, x: f64) -> f64 {
        (x - self.max) - self.rest
    }
}

/// p·d + q − p with p = e^ln_p, q = e^ln_q, d = ln p − ln q: the part of one token in the divergence, never negative.
fn kl_term(ln_p: f64, ln_q: f64) -> f64 {
    let (p, d) = (ln_p.exp(), ln_p - ln_q);
    // For close p and q the sum cancels and e^(−d) − 1 does not; for distant ones e^(−d) may overflow and q cannot.
    if d.abs() < 1.0 { p * (d + (-d).exp_m1()) } else { p * d + (ln_q.exp() - p) }
}

/// Ids of the `k` largest, descending, ties to the lower id.
fn top(x: &[f64], k: usize) -> Vec<u32> {
    let mut best: Vec<u32> = Vec::with_capacity(k + 1);
    for (i, &value) in x.iter().enumerate() {
        if best.len() == k && value <= x[best[k - 1] as usize] {
            continue;
        }
        let at = best.partition_point(|&j| x[j as usize] >= value);
        best.insert(at, i as u32);
        best.truncate(k);
    }
    best
}

/// The `q` quantile of ascending values, interpolated between the two nearest.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q * (sorted.len() - 1) as f64;
    let i = at as usize;
    let upper = sorted[(i + 1).min(sorted.len() - 1)];
    sorted[i] + (upper - sorted[i]) * (at - i as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows<const V: usize>(rows: &[[f64; V]]) -> HostTensor {
        HostTensor::f64(&[rows.len(), V], rows.concat())
    }

    #[test]
    fn divergence_by_hand() {
        // p = (1/4, 3/4), q = (1/2, 1/2); adding a constant to logits changes nothing.
        let a = rows(&[[0.0, 3f64.ln()]]);
        let b = rows(&[[100.0, 100.0]]);
        let c = compare_logits(&a, &b, &[], 4).unwrap();
        let expected = 0.25 * 0.5f64.ln() + 0.75 * 1.5f64.ln();
        assert!((c.kld_mean - expected).abs() < 1e-15, "{} {expected}", c.kld_mean);
        let at = &c.at[0];
        assert_eq!((at.position, at.reference_top, at.subject_top, at.token), (4, 1, 0, 1));
        assert!(!at.token_is_next && (at.delta_p + 0.25).abs() < 1e-15);
        assert_eq!((c.same_top, c.top_k_overlap), (0, 1.0));
    }

    #[test]
    fn tiny_divergences_do_not_drown_and_are_never_negative() {
        let a: Vec<f64> = (0..1000).map(|i| ((i * 7919) % 1000) as f64 / 100.0).collect();
        for eps in [1e-4, 1e-6, 1e-8] {
            let b: Vec<f64> = a.iter().enumerate().map(|(i, x)| x + if i % 2 == 0 { eps } else { -eps }).collect();
            let c = compare_logits(&HostTensor::f64(&[1, 1000], a.clone()), &HostTensor::f64(&[1, 1000], b), &[], 0);
            // To second order KL = var_p(δ)/2, and δ = ±eps has variance close to eps² here.
            let ratio = c.unwrap().kld_mean / (eps * eps / 2.0);
            assert!((0.9..1.001).contains(&ratio), "eps {eps}: {ratio}");
        }
    }

    #[test]
    fn extreme_logits_stay_finite() {
        let a = rows(&[[1e38, -1e38, 0.0]]);
        let b = rows(&[[-1e38, 1e38, 0.0]]);
        let c = compare_logits(&a, &b, &[], 0).unwrap();
        assert!(c.kld_mean.is_finite() && c.kld_mean > 1e37);
        assert_eq!(compare_logits(&a, &a, &[], 0).unwrap().kld_mean, 0.0);
    }

    #[test]
    fn delta_p_is_of_the_next_token_where_there_is_one() {
        let a = rows(&[[0.0, 0.0], [0.0, 0.0]]);
        let b = rows(&[[0.0, 3f64.ln()], [0.0, 3f64.ln()]]);
        let c = compare_logits(&a, &b, &[Some(1), None], 0).unwrap();
        assert!((c.at[0].delta_p - 0.25).abs() < 1e-15 && c.at[0].token_is_next);
        assert_eq!((c.at[1].token, c.at[1].token_is_next), (0, false), "ties go to the lower id");
        assert!((c.at[1].delta_p + 0.25).abs() < 1e-15);
        assert!((c.rms_delta_p - 0.25).abs() < 1e-15);
    }

    #[test]
    fn quantiles_interpolate() {
        assert_eq!(quantile(&[1.0], 0.999), 1.0);
        assert_eq!(quantile(&[0.0, 10.0], 0.25), 2.5);
        assert_eq!(top(&[1.0, 5.0, 5.0, 0.0, 7.0], 3), [4, 1, 2]);
    }

    #[test]
    fn impossible_comparisons() {
        let a = rows(&[[0.0, 1.0]]);
        let nan = rows(&[[0.0, f64::NAN]]);
        assert!(matches!(compare_logits(&a, &rows(&[[0.0]]), &[], 0), Err(Mismatch::Shape { .. })));
        let Err(Mismatch::NonFinite { subject, .. }) = compare_logits(&a, &nan, &[], 0) else { panic!() };
        assert_eq!(subject.first, Some(vec![0, 1]));
        let Err(Mismatch::NoSuchToken { position: 3, token: 2, .. }) = compare_logits(&a, &a, &[Some(2)], 3) else {
            panic!()
        };
        let none = HostTensor::f32(&[0, 2], vec![]);
        assert!(matches!(compare_logits(&none, &none, &[], 0), Err(Mismatch::Nothing { .. })));
    }
}
