//! Mistakes in attention: heads, masks, scales, cache rows, the softmax. [`Scores`], [`softmax`] and [`Context`] are the three stages
//! with their parts left open.

use std::borrow::Cow;

use super::case::{Case, Point, Variant};
use crate::backend::Contract;
use crate::error::Result;
use crate::formula::rounding::{TINY, exp_error, ulp};
use crate::formula::sum::{Terms, roundoff};
use crate::op::{Op, Stage};

/// Sizes of an attention stage.
#[derive(Clone, Copy)]
struct Sizes {
    heads: usize,
    kv_heads: usize,
    d: usize,
    /// T, S and the first position.
    t: usize,
    s: usize,
    start: usize,
}

impl Sizes {
    fn of(case: &Case<'_>) -> Option<Self> {
        let (start, d, cache) = match *case.scene.op {
            Op::AttnScores { start, head_dim, .. } | Op::AttnContext { start, head_dim, .. } => (start, head_dim, 1),
            Op::AttnProbs { start, .. } => (start, case.scene.config.head_dim, 0),
            _ => return None,
        };
        let shape = &case.scene.output.shape;
        let (heads, t) = match case.scene.op {
            Op::AttnContext { .. } => (shape[1] / d, shape[0]),
            _ => (shape[0], shape[1]),
        };
        let kv_heads = match cache {
            1 => case.shapes[1].last().copied().unwrap_or(0) / d,
            _ => case.scene.config.kv_heads,
        };
        (heads > 0 && kv_heads > 0).then_some(Self { heads, kv_heads, d, t, s: start + t, start })
    }
    /// Keys that row t sees.
    fn seen(self, t: usize) -> usize {
        self.start + t + 1
    }
    fn kv_head(self, head: usize) -> usize {
        head / (self.heads / self.kv_heads).max(1)
    }
}

type Map<'a> = Box<dyn Fn(usize) -> usize + 'a>;
/// The cache row that is read for a position; none reads zeros.
type CacheRow<'a> = Box<dyn Fn(usize) -> Option<usize> + 'a>;

/// q·k·scale for the keys seen.
pub(super) struct Scores<'a> {
    sizes: Sizes,
    q: Cow<'a, [f64]>,
    k: Cow<'a, [f64]>,
    scale: f64,
    seen: Map<'a>,
    kv_head: Map<'a>,
    row: CacheRow<'a>,
}

impl<'a> Scores<'a> {
    pub(super) fn stated(case: &'a Case<'a>) -> Option<Self> {
        let sizes = Sizes::of(case).filter(|_| matches!(case.scene.op, Op::AttnScores { .. }))?;
        Some(Self {
            sizes,
            q: case.inputs[0][..].into(),
            k: case.inputs[1][..].into(),
            scale: 1.0 / (sizes.d as f64).sqrt(),
            seen: Box::new(move |t| sizes.seen(t)),
            kv_head: Box::new(move |h| sizes.kv_head(h)),
            row: Box::new(Some),
        })
    }

    /// The floor is the stage's: the sum's bound times the scale, and the rounding of the scale and of the product with it.
    pub(super) fn variant(self, case: &'a Case<'a>, what: impl Into<String>) -> Variant<'a> {
        let Sizes { heads, kv_heads, d, t, s, .. } = self.sizes;
        let (contract, lambda) = (case.scene.contract, case.lambda);
        let u = roundoff(&contract);
        Variant::each(what, move |i| {
            let (head, token, position) = (i / s / t, i / s % t, i % s);
            let row = (self.row)(position).filter(|_| position < (self.seen)(token));
            let Some(row) = row else { return Point::exactly(0.0) };
            let q = &self.q[(token * heads + head) * d..][..d];
            let k = &self.k[(row * kv_heads + (self.kv_head)(head)) * d..][..d];
            let y = q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>() * self.scale;
            let sum = Terms::dot(q, k).bound(&contract, lambda) * self.scale.abs();
            Point::new(y, sum + (u + 2f64.powi(-24)) * y.abs() + (d + 1) as f64 * TINY)
        })
    }
}

/// Σ p·v over the keys seen.
pub(super) struct Context<'a> {
    sizes: Sizes,
    p: Cow<'a, [f64]>,
    v: Cow<'a, [f64]>,
    seen: Map<'a>,
    kv_head: Map<'a>,
    /// Whose probabilities a head uses.
    head: Map<'a>,
    row: CacheRow<'a>,
}

impl<'a> Context<'a> {
    pub(super) fn stated(case: &'a Case<'a>) -> Option<Self> {
        let sizes = Sizes::of(case).filter(|_| matches!(case.scene.op, Op::AttnContext { .. }))?;
        Some(Self {
            sizes,
            p: case.inputs[0][..].into(),
            v: case.inputs[1][..].into(),
            seen: Box::new(move |t| sizes.seen(t)),
            kv_head: Box::new(move |h| sizes.kv_head(h)),
            head: Box::new(|h| h),
            row: Box::new(Some),
        })
    }

    pub(super) fn variant(self, case: &'a Case<'a>, what: impl Into<String>) -> Variant<'a> {
        let Sizes { heads, kv_heads, d, t, s, .. } = self.sizes;
        let (contract, lambda) = (case.scene.contract, case.lambda);
        Variant::each(what, move |i| {
            let (token, head, column) = (i / d / heads, i / d % heads, i % d);
            let seen = (self.seen)(token).min(s);
            let p = &self.p[((self.head)(head) * t + token) * s..][..seen];
            let kv_head = (self.kv_head)(head);
            let value = |position: usize| {
                (self.row)(position).map_or(0.0, |row| self.v[(row * kv_heads + kv_head) * d + column])
            };
            let v: Vec<f64> = (0..seen).map(value).collect();
            let flushed = TINY * (seen as f64 + v.iter().map(|v| v.abs()).sum::<f64>());
            let y = p.iter().zip(&v).map(|(p, v)| p * v).sum();
            Point::new(y, Terms::dot(p, &v).bound(&contract, lambda) + flushed)
        })
    }
}

/// The softmax of `x`, with the stage's floor: what exp does to each term and to the sum, the sum's own bound, the division.
pub(super) fn softmax(x: &[f64], contract: &Contract, lambda: f64) -> Vec<Point> {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let e: Vec<f64> = x.iter().map(|x| (x - max).exp()).collect();
    let total: f64 = e.iter().sum();
    let error = |x: f64| exp_error(max - x, contract);
    let in_sum: f64 = x.iter().zip(&e).map(|(x, e)| if *e == 0.0 { 0.0 } else { e / total * error(*x) }).sum();
    let sum = Terms::one_sign(e.iter().map(|e| e / total)).bound(contract, lambda) + x.len() as f64 * TINY;
    let shared = in_sum + sum + contract.div_ulp * ulp(contract);
    let point = |(x, e): (&f64, &f64)| {
        let p = e / total;
        Point::new(p, if p == 0.0 { TINY } else { p * (error(*x) + shared) + TINY })
    };
    x.iter().zip(&e).map(point).collect()
}

/// A softmax stage: `row(scores of the row, keys seen)` gives the row's points, those beyond are 0.
pub(super) fn probs<'a>(
    case: &'a Case<'a>,
    what: impl Into<String>,
    row: impl Fn(&[f64], usize) -> Vec<Point> + 'a,
) -> Vec<Variant<'a>> {
    let Some(sizes) = Sizes::of(case).filter(|_| matches!(case.scene.op, Op::AttnProbs { .. })) else { return vec![] };
    let (s, t) = (sizes.s, sizes.t);
    let variant = Variant::rows(what, s, move |i| {
        let mut points = row(&case.inputs[0][i * s..][..s], sizes.seen(i % t));
        points.resize(s, Point::exactly(0.0));
        points
    });
    vec![variant]
}

/// Both stages that read the cache, with something changed.
fn changed<'a>(
    case: &'a Case<'a>,
    what: &str,
    scores: impl FnOnce(&mut Scores<'a>),
    context: impl FnOnce(&mut Context<'a>),
) -> Vec<Variant<'a>> {
    if let Some(mut stage) = Scores::stated(case) {
        scores(&mut stage);
        vec![stage.variant(case, what)]
    } else if let Some(mut stage) = Context::stated(case) {
        context(&mut stage);
        vec![stage.variant(case, what)]
    } else {
        vec![]
    }
}

/// Another KV head than h / (heads / kv_heads).
pub fn kv_head<'a>(case: &'a Case<'a>) -> Result<Vec<Variant<'a>>> {
    let Some(sizes) = Sizes::of(case) else { return Ok(vec![]) };
    let kv = sizes.kv_heads;
    type Other = fn(usize, Sizes) -> usize;
    let maps: [(&str, Other); 6] = [
        ("KV head h mod kv_heads for query head h", |h, s| h % s.kv_heads),
        ("KV head 0 for every query head", |_, _| 0),
        ("the last KV head for every query head", |_, s| s.kv_heads - 1),
        ("the next KV head", |h, s| (s.kv_head(h) + 1) % s.kv_heads),
        ("KV head h, up to the last, for query head h", |h, s| h.min(s.kv_heads - 1)),
        ("KV head h / kv_heads for query head h", |h, s| (h / s.kv_heads).min(s.kv_heads - 1)),
    ];
    let mut all = Vec::new();
    if kv > 1 {
        for (what, map) in maps {
            let map = move || -> Map<'a> { Box::new(move |h| map(h, sizes)) };
            all.extend(changed(case, what, |s| s.kv_head = map(), |c| c.kv_head = map()));
        }
    }
    for (what, map) in [
        ("the probabilities of the next head", (|h, s| (h + 1) % s.heads) as Other),
        ("the probabilities of head 0 in every head", |_, _| 0),
        ("the probabilities of the heads in reverse", |h, s| s.heads - 1 - h),
    ] {
        if let Some(mut stage) = Context::stated(case) {
            stage.head = Box::new(move |h| map(h, sizes));
            all.push(stage.variant(case, what));
        }
    }
    Ok(all)
}

/// Keys that are seen but should not be, and the other way round.
pub fn mask<'a>(case: &'a Case<'a>) -> Result<Vec<Variant<'a>>> {
    let Some(sizes) = Sizes::of(case) else { return Ok(vec![]) };
    let (contract, lambda) = (case.scene.contract, case.lambda);
    let mut all = Vec::new();
    let whole = sizes.s as isize;
    let start = sizes.start as isize;
    let mut offsets = vec![
        (1, "a mask that lets one later key through".to_string()),
        (-1, "a mask that hides a position's own key".into()),
    ];
    offsets.push((whole, "no mask: every key seen".into()));
    for off in [2, -2, 3, -3] {
        offsets.push((off, format!("a mask off by {off:+} keys")));
    }
    if start > 0 {
        offsets.push((-start, "a mask that counts positions from this call's first".into()));
    }
    for (off, what) in offsets {
        let seen = move |t: usize| (sizes.seen(t) as isize + off).clamp(0, whole) as usize;
        all.extend(changed(case, &what, |s| s.seen = Box::new(seen), |c| c.seen = Box::new(seen)));
        all.extend(probs(case, what, move |row, own| {
            let t = own - 1 - sizes.start;
            softmax(&row[..seen(t)], &contract, lambda)
        }));
    }
    all.extend(probs(case, "a mask that hides the first key", move |row, own| {
        let mut points = vec![Point::exactly(0.0)];
        points.extend(softmax(&row[1..own], &contract, lambda));
        points
    }));
    all.extend(probs(
        case,
        "a softmax over the scores of masked keys as well, which are 0, dropped afterwards",
        move |row, own| {
            let mut points = softmax(row, &contract, lambda);
            points.truncate(own);
            points
        },
    ));
    Ok(all)
}

/// Another scale than 1/√D.
pub fn scale<'a>(case: &'a Case<'a>) -> Result<Vec<Variant<'a>>> {
    let Some(sizes) = Sizes::of(case) else { return Ok(vec![]) };
    let (contract, lambda) = (case.scene.contract, case.lambda);
    let d = sizes.d as f64;
    let config = case.scene.config;
    let hidden_per_head = config.hidden as f64 / config.heads.max(1) as f64;
    let scales = [
        ("no scale 1/√D", 1.0),
        ("the scale 1/√D applied twice", 1.0 / d),
        ("√D for 1/√D", d.sqrt()),
        ("the scale 1/√(hidden/heads)", 1.0 / hidden_per_head.sqrt()),
        ("the scale 1/√hidden", 1.0 / (config.hidden as f64).sqrt()),
        ("the scale 1/√(D/2)", 1.0 / (d / 2.0).sqrt()),
        ("the scale 1/√(2D)", 1.0 / (d * 2.0).sqrt()),
    ];
    let mut all = Vec::new();
    for (what, scale) in scales {
        if let Some(stage) = Scores::stated(case).filter(|s| s.scale != scale) {
            all.push(Scores { scale, ..stage }.variant(case, what));
        }
    }
    for (what, factor) in [
        ("scores scaled by 1/√D once more", 1.0 / d.sqrt()),
        ("scores with their scale taken back, times √D", d.sqrt()),
        ("2^x for e^x", 2f64.ln()),
    ] {
        all.extend(probs(case, what, move |row, own| {
            let scaled: Vec<f64> = row[..own].iter().map(|x| x * factor).collect();
            // The product is one more rounding of the exponent.
            let u = roundoff(&contract);
            let max = scaled.iter().fold(0f64, |m, x| m.max(x.abs()));
            softmax(&scaled, &contract, lambda)
                .iter()
                .map(|p| Point::new(p.value, p.floor + 2.0 * u * max * p.value))
                .collect()
        }));
    }
    Ok(all)
}

/// A cache that does not hold what was stored.
pub fn cache<'a>(case: &'a Case<'a>) -> Result<Vec<Variant<'a>>> {
    /// Single rows tried.
    const ROWS: usize = 64;
    let Some(sizes) = Sizes::of(case).filter(|_| !matches!(case.scene.op, Op::AttnProbs { .. })) else {
        return Ok(vec![]);
    };
    let (s, t, start) = (sizes.s, sizes.t, sizes.start);
    let mut all = Vec::new();
    type Row = fn(usize, Sizes) -> Option<usize>;
    let mut whole: Vec<(&str, Row)> = vec![
        ("a cache written one row late", |p, _| p.checked_sub(1)),
        ("a cache written one row early", |p, s| Some(p + 1).filter(|p| *p < s.s)),
        ("the cache's first row for every position", |_, _| Some(0)),
    ];
    if start > 0 {
        whole.push(("a cache to which this call's rows were not written", |p, s| Some(p).filter(|p| *p < s.start)));
        whole.push(("a cache that this call overwrote from row 0", |p, s| {
            if p < s.t { Some(s.start + p) } else { Some(p).filter(|p| *p < s.start) }
        }));
        whole.push(("this call's rows written one row late", |p, s| match p {
            p if p < s.start => Some(p),
            p if p == s.start => None,
            p => Some(p - 1),
        }));
        whole.push(("this call's rows written one row early", |p, s| {
            if p + 1 < s.start { Some(p) } else { Some(p + 1).filter(|p| *p < s.s) }
        }));
        whole.push(("a cache whose last row is still that of the position before", |p, s| Some(p.min(s.s - 2))));
    }
    for (what, row) in whole {
        let row = move || -> CacheRow<'a> { Box::new(move |p| row(p, sizes)) };
        all.extend(changed(case, what, |s| s.row = row(), |c| c.row = row()));
    }
    // Scores say which keys are wrong; a context does not, so all rows are tried, or the first and the latest.
    let mut rows: Vec<usize> = match case.is_attention_matrix() {
        true => case.wrong.iter().map(|i| i % s).collect(),
        false => (0..s).collect(),
    };
    rows.sort_unstable();
    rows.dedup();
    if rows.len() > ROWS {
        rows.drain(ROWS / 4..rows.len() - ROWS * 3 / 4);
    }
    for p in rows {
        let mut one = |what: String, other: Option<usize>| {
            let row = move || -> CacheRow<'a> { Box::new(move |at| if at == p { other } else { Some(at) }) };
            all.extend(changed(case, &what, |s| s.row = row(), |c| c.row = row()));
        };
        one(format!("a cache whose row {p} is empty"), None);
        if p > 0 {
            one(format!("a cache whose row {p} holds row {}", p - 1), Some(p - 1));
        }
        if p + 1 < s {
            one(format!("a cache whose row {p} holds row {}", p + 1), Some(p + 1));
        }
        if p >= t && p >= start && start > 0 {
            one(format!("a cache whose row {p} holds row {}", p - t), Some(p - t));
        }
    }
    Ok(all)
}

/// Another tensor for q, k or v.
pub fn other_operand<'a>(case: &'a Case<'a>) -> Result<Vec<Variant<'a>>> {
    let mut all = Vec::new();
    let earlier = |stage: Stage| case.scene.earlier.get(stage);
    for (stage, what) in [(Stage::QNorm, "q before rope"), (Stage::QProj, "q before its norm and rope")] {
        if let (Some(scores), Some(q)) = (Scores::stated(case), earlier(stage)) {
            let q = q.to_f64();
            if q.len() == scores.q.len() {
                all.push(Scores { q: q.into(), ..scores }.variant(case, what));
            }
        }
    }
    // This call's rows are the whole cache only in the first call.
    if case.scene.start == 0 {
        for (stage, what) in [
            (Stage::KNorm, "k before rope"),
            (Stage::VProj, "v in the keys' place"),
            (Stage::KProj, "k before its norm and rope"),
            (Stage::KRope, "k after rope"),
        ] {
            let Some(rows) = earlier(stage) else { continue };
            if let Some(scores) = Scores::stated(case).filter(|_| stage != Stage::KRope) {
                all.push(Scores { k: rows.to_f64().into(), ..scores }.variant(case, what));
            }
            if let Some(context) = Context::stated(case).filter(|_| stage != Stage::VProj) {
                all.push(
                    Context { v: rows.to_f64().into(), ..context }
                        .variant(case, format!("{what} in the values' place")),
                );
            }
        }
    }
    Ok(all)
}

/// Scores or context of these operands.
pub(super) fn with_operands<'a>(case: &'a Case<'a>, what: String, [first, second]: [Vec<f64>; 2]) -> Vec<Variant<'a>> {
    if let Some(scores) = Scores::stated(case) {
        vec![Scores { q: first.into(), k: second.into(), ..scores }.variant(case, what)]
    } else if let Some(context) = Context::stated(case) {
        vec![Context { p: first.into(), v: second.into(), ..context }.variant(case, what)]
    } else {
        vec![]
    }
}

pub fn softmax_kind<'a>(case: &'a Case<'a>) -> Result<Vec<Variant<'a>>> {
    let (contract, lambda) = (case.scene.contract, case.lambda);
    let mut all = Vec::new();
    all.extend(probs(case, "a softmax without its division by the sum", move |row, own| {
        let x = &row[..own];
        let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let e = |x: &f64| Point::new((x - max).exp(), exp_error(max - x, &contract) * (x - max).exp() + TINY);
        x.iter().map(e).collect()
    }));
    all.extend(probs(case, "no softmax: the scores themselves", |row, own| {
        row[..own].iter().map(|x| Point::exactly(*x)).collect()
    }));
    all.extend(probs(case, "a softmax that does not subtract the largest score, overflowing", move |row, own| {
        overflowing(&row[..own], &contract, lambda)
    }));
    all.extend(probs(case, "equal weights for every key seen", move |_, own| {
        vec![Point::new(1.0 / own as f64, 2.0 * contract.div_ulp * ulp(&contract) / own as f64); own]
    }));
    Ok(all)
}

/// exp(x)/Σexp(x) in f32's range: ∞/∞ where an exponential overflows, 0/0 where all vanish.
pub(super) fn overflowing(x: &[f64], contract: &Contract, lambda: f64) -> Vec<Point> {
    let largest = f32::MAX as f64;
    let e: Vec<f64> = x.iter().map(|x| if x.exp() > largest { f64::INFINITY } else { x.exp() }).collect();
    let sum: f64 = e.iter().sum();
    let sum = if sum > largest {
        f64::INFINITY
    } else if sum < TINY {
        0.0
    } else {
        sum
    };
    let usual = softmax(x, contract, lambda);
    e.iter().zip(usual).map(|(e, usual)| Point::new(e / sum, usual.floor)).collect()
}
