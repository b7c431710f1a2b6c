//! Mistakes in adding up: terms left out or counted twice, lanes that are not summed. Of products, norms and softmaxes alike.

use super::case::{Evidence, Variant};
use super::indices::OF_COLUMNS;
use crate::error::Result;
use crate::formula::attention::{Context, Scores};
use crate::formula::linear::Linear;
use crate::formula::norm::Norm;
use crate::formula::softmax::{Form, Softmax};

/// What is added up, and how many of it there are at most.
struct Reduction {
    terms: usize,
    of: &'static str,
}

impl Reduction {
    fn of<'a>(case: &'a Evidence<'a>) -> Result<Option<Self>> {
        Ok(if let Some(linear) = case.stated::<Linear<'a>>()? {
            Some(Self { terms: linear.k, of: "terms of each sum" })
        } else if case.unseen {
            // Inside a segment each variant takes a run of the rest of it.
            None
        } else if let Some(norm) = case.stated::<Norm<'a>>()? {
            Some(Self { terms: norm.n, of: "squares" })
        } else if let Some(scores) = case.stated::<Scores<'a>>()? {
            Some(Self { terms: scores.sizes.head_dim, of: "terms of each score" })
        } else if let Some(context) = case.stated::<Context<'a>>()? {
            Some(Self { terms: context.sizes.keys, of: "keys" })
        } else {
            let softmax = case.stated::<Softmax<'a>>()?.filter(|s| s.form == Form::Softmax);
            softmax.map(|s| Self { terms: s.cols, of: "exponentials of the sum" })
        })
    }

    /// The stage with term i counted `times(i)`.
    fn counted<'a>(
        &self,
        case: &'a Evidence<'a>,
        what: impl Into<String>,
        times: impl Fn(usize) -> f64,
    ) -> Result<Option<Variant<'a>>> {
        let (what, times) = (what.into(), Some((0..self.terms).map(times).collect::<Vec<f64>>()));
        Ok(if let Some(mut linear) = case.stated::<Linear<'a>>()? {
            linear.times = times;
            Some(Variant::of(case, what, linear))
        } else if let Some(mut norm) = case.stated::<Norm<'a>>()? {
            norm.times = times;
            Some(Variant::of(case, what, norm))
        } else if let Some(mut scores) = case.stated::<Scores<'a>>()? {
            scores.times = times;
            Some(Variant::of(case, what, scores))
        } else if let Some(mut context) = case.stated::<Context<'a>>()? {
            context.times = times;
            Some(Variant::of(case, what, context))
        } else {
            case.changed(what, |s: &mut Softmax<'a>| s.times = times)?
        })
    }
}

/// What is said of terms that are left out: where the input is not seen, that it is 0 there gives the same.
fn left_out(case: &Evidence<'_>, what: String) -> String {
    if case.unseen { what + ", or zeros there in what they are made of" } else { what }
}

/// The end of every sum left out, in steps of 8 and 32, and of one at its end and where sums are short; or its start. Of norms, whose sum of
/// squares can be read off what came out, wherever it stopped.
pub fn skipped<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Some(reduction) = Reduction::of(case)? else { return Ok(vec![]) };
    let (k, of) = (reduction.terms, reduction.of);
    // Inside a segment each variant takes a run of the rest of it.
    let short = if case.unseen { 64 } else { 256 };
    let step = if k <= short {
        1
    } else if k <= 1024 {
        8
    } else {
        32
    };
    // Multiples of 8 first: those are what kernels leave.
    let mut ends: Vec<usize> = (step.max(8)..k).rev().filter(|s| s.is_multiple_of(step.max(8))).collect();
    ends.extend([k.saturating_sub(1), k.saturating_sub(2), k.saturating_sub(4)]);
    ends.extend((1..k).rev().filter(|_| step == 1));
    let mut starts = vec![1, 2, 4, 8, 16, 32, 64, 128, 256];
    starts.extend((1..k.min(64)).filter(|_| step == 1));
    if let Some([end, start]) = stopped(case)? {
        ends.push(end);
        starts.push(start);
    }
    let mut all = Vec::new();
    for summed in distinct(ends, k) {
        let what = format!("only the first {summed} of {k} {of}");
        all.extend(reduction.counted(case, left_out(case, what), |i| (i < summed) as u8 as f64)?);
    }
    for from in distinct(starts, k) {
        let what = format!("the {k} {of} without the first {from}");
        all.extend(reduction.counted(case, left_out(case, what), |i| (i >= from) as u8 as f64)?);
    }
    Ok(all)
}

/// Each once, in order, of those from 1 to `k` − 1.
fn distinct(mut all: Vec<usize>, k: usize) -> Vec<usize> {
    let mut seen = vec![false; k];
    all.retain(|n| *n > 0 && *n < k && !std::mem::replace(&mut seen[*n], true));
    all
}

/// How many squares of a norm the output says were added up, if they are the first, and how many are missing, if they are the last: by the
/// wrong element whose error is the clearest.
fn stopped(case: &Evidence<'_>) -> Result<Option<[usize; 2]>> {
    let Some(norm) = case.stated::<Norm<'_>>()?.filter(|_| !case.unseen) else { return Ok(None) };
    let n = norm.n;
    let clear = |i: &&usize| {
        let (y, exact) = (case.output[**i], case.exact[**i]);
        y.is_finite() && y != 0.0 && exact != 0.0 && norm.group_of(**i).is_some()
    };
    let largest = |a: &&usize, b: &&usize| case.exact[**a].abs().total_cmp(&case.exact[**b].abs());
    let Some(&i) = case.wrong.iter().filter(clear).max_by(largest) else { return Ok(None) };
    // y is to the right value as the root of the right mean of squares is to that of the wrong one.
    let Some(begin) = norm.group_of(i) else { return Ok(None) };
    let squares: Vec<f64> = norm.x[begin..][..n].iter().map(|x| x * x).collect();
    let all: f64 = squares.iter().sum();
    let summed = (all + norm.divisor * norm.eps) * (case.exact[i] / case.output[i]).powi(2) - norm.divisor * norm.eps;
    let nearest = |reversed: bool| {
        let mut sum = 0.0;
        let mut best = (f64::INFINITY, 0);
        for at in 0..n {
            sum += squares[if reversed { n - 1 - at } else { at }];
            let off: f64 = (sum - summed).abs();
            if off < best.0 {
                best = (off, at + 1);
            }
        }
        best.1
    };
    Ok(Some([nearest(false), n - nearest(true)]))
}

/// The end of every sum counted twice.
pub fn twice<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Some(reduction) = Reduction::of(case)? else { return Ok(vec![]) };
    let (k, of) = (reduction.terms, reduction.of);
    let mut all = Vec::new();
    for last in [1, 2, 4, 8, 16, 32, 64, 128, 256].into_iter().filter(|l| *l < k) {
        let what = format!("the last {last} of {k} {of} counted twice");
        all.extend(reduction.counted(case, what, |i| if i + last >= k { 2.0 } else { 1.0 })?);
    }
    Ok(all)
}

/// Lanes, as a reduction written for another subgroup size leaves them: of every `lanes`, which each take turns over runs of `run`
/// terms, only the first `summed` are added up.
pub fn lanes<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Some(reduction) = Reduction::of(case)? else { return Ok(vec![]) };
    let k = reduction.terms;
    let mut all = Vec::new();
    for run in [1, 2, 4, 8, 16, 32, 64] {
        for lanes in [64, 32, 16, 8, 128, 256, 4] {
            // A lane without terms is no lane, and one turn of runs is a range.
            if lanes * run > k {
                continue;
            }
            let terms = if run == 1 { String::new() } else { format!(", of {run} terms at a time,") };
            let halves = std::iter::successors(Some(lanes / 2), |n| (*n > 1).then_some(n / 2));
            for summed in halves.chain([lanes - 1]) {
                let what = format!("only lanes 0–{} of {lanes}{terms} summed", summed - 1);
                all.extend(reduction.counted(case, what, |i| (i / run % lanes < summed) as u8 as f64)?);
            }
            let what = format!("only the odd half of {lanes} lanes{terms} summed");
            all.extend(reduction.counted(case, what, |i| (i / run % 2) as f64)?);
        }
    }
    for lanes in [4, 8, 16, 32, 64] {
        let run = k / lanes;
        if run > 64 {
            for summed in std::iter::successors(Some(lanes / 2), |n| (*n > 1).then_some(n / 2)) {
                let what = format!("only lanes 0–{} of {lanes}, of {run} terms each, summed", summed - 1);
                all.extend(reduction.counted(case, what, |i| (i / run < summed) as u8 as f64)?);
            }
        }
    }
    // Whatever adds up lanes adds up those of more than a row.
    Ok(all.into_iter().map(|variant| variant.in_runs(OF_COLUMNS)).collect())
}
