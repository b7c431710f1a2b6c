//! Softmax: of a row of attention scores over the keys that it sees, and of a router's logits over all experts, or their sigmoids.

use std::ops::Range;

use super::exact::Emulation;
use super::precision::FloatFormat;
use super::rounding::{TINY, division, exp_error, half_step, roundoff};
use super::routing::largest;
use super::sum::{Terms, confidence};
use super::{Bounded, ByRow, Formula, Values, as_given, by_row};
use crate::backend::Contract;
use crate::error::Result;
use crate::op::{HostTensor, Op};

/// Which entries a row sees.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Seen {
    All,
    /// Of row t: from the `from`-th up to the `to + t`-th.
    Causal {
        from: usize,
        to: isize,
    },
    /// Of those before the `to + t`-th, the last `width`.
    Window {
        width: usize,
        to: isize,
    },
}

impl Seen {
    /// Row t of a call whose first position is `start` sees itself and what is before it.
    pub fn causal(start: usize) -> Self {
        Self::Causal { from: 0, to: start as isize + 1 }
    }

    /// The same, with a window the last so many of them.
    pub fn stated(start: usize, window: Option<usize>) -> Self {
        window.map_or(Self::causal(start), |width| Self::Window { width, to: start as isize + 1 })
    }

    /// Of `all` entries, those that row t sees.
    pub fn of(self, t: usize, all: usize) -> Range<usize> {
        match self {
            Self::All => 0..all,
            Self::Causal { from, to } => {
                let to = (to + t as isize).clamp(0, all as isize) as usize;
                from.min(to)..to
            }
            Self::Window { width, to } => {
                let to = (to + t as isize).clamp(0, all as isize) as usize;
                to.saturating_sub(width)..to
            }
        }
    }
}

/// What is made of the entries seen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Form {
    /// exp(x − max)/Σ.
    Softmax,
    /// The softmax of the softmax.
    Twice,
    /// exp(x)/Σ in f32's range: ∞/∞ where an exponential overflows, 0/0 where all vanish.
    Unguarded,
    /// exp(x − max).
    Undivided,
    /// 1/(1 + exp(−x)): y·((1 − y)·ρ + div + 2u), ρ the relative error of the exponential, and what x is off by. What exp(−x) beyond f32's range leaves is less than
    /// [`TINY`].
    Sigmoid,
    /// x.
    Itself,
    /// 1/n.
    Equal,
}

/// What a sink is to the entries of its rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum SinkPlace {
    /// One of them; stated, it is that.
    Entry,
    /// Its exponential is added to the sum as it is, while the largest entry is subtracted from the entries.
    Added,
    /// The same, where the largest is that of the entries and the sink.
    AddedOfAll,
}

/// A softmax over the entries that each row sees, 0 beyond.
#[derive(Clone)]
pub(crate) struct Softmax<'a> {
    /// [rows, cols]
    pub x: Values<'a>,
    pub cols: usize,
    /// Rows of one head, T; the t of [`Seen`] counts in them.
    pub tokens: usize,
    pub seen: Seen,
    /// The entries that are written, of those seen; stated, all of them.
    pub written: Seen,
    /// How many of the entries seen count, the largest; stated, all of them. The others are 0.
    pub among: Option<usize>,
    /// What the entries are multiplied by; stated, 1.
    pub factor: f64,
    pub form: Form,
    /// Of [`Form::Softmax`]: how often each entry, by its column, counts in the sum; stated, each once.
    pub times: Option<Vec<f64>>,
    /// Of [`Form::Softmax`]: what is added to the sum; stated, nothing.
    pub plus: f64,
    /// Of [`Form::Softmax`], for each head: one more entry of its rows, which has its share and no column.
    pub sinks: Option<Vec<f64>>,
    /// What it is to the others; stated, [`SinkPlace::Entry`].
    pub sink: SinkPlace,
    /// Of [`Form::Softmax`]: where the search for the largest entry begins; stated, at −∞.
    pub least: f64,
    /// Of [`Form::Softmax`]: what exponentials are rounded to; stated, nothing.
    pub exponentials: Option<FloatFormat>,
    /// Of [`Form::Softmax`], for each row: what exponentials are divided by; stated, their sum.
    pub divisors: Option<Vec<f64>>,
}

impl<'a> Formula<'a> for Softmax<'a> {
    fn stated(op: &Op<'a, &'a HostTensor>, x: &'a [Vec<f64>]) -> Result<Option<Self>> {
        let (cols, tokens, seen, sinks, form) = match *op {
            Op::AttnProbs { scores, start, window, sinks } => {
                (scores.cols(), scores.shape[1], Seen::stated(start, window), sinks, Form::Softmax)
            }
            Op::RouterProbs { logits, sigmoid } => {
                (logits.cols(), 1, Seen::All, None, if sigmoid { Form::Sigmoid } else { Form::Softmax })
            }
            _ => return Ok(None),
        };
        let x = as_given(&x[0]);
        let sinks = sinks.map(|sinks| sinks.f32s().map(f64::from).collect());
        Ok(Some(Self { tokens, sinks, ..Self::of(form, x, cols, seen) }))
    }
    fn emulate(&mut self, how: &Emulation) {
        self.sinks.iter_mut().for_each(|sinks| how.round_weight(sinks));
    }
    by_row!();
}

impl ByRow for Softmax<'_> {
    fn shape(&self) -> [usize; 2] {
        [self.x.len() / self.cols.max(1), self.cols]
    }

    fn row<const N: usize>(&self, row: usize, columns: &[usize], contracts: [&Contract; N]) -> Result<Vec<Bounded<N>>> {
        let seen = self.seen.of(row % self.tokens, self.cols);
        let written = self.written.of(row % self.tokens, self.cols);
        let mut x = self.x[row * self.cols..][seen.clone()].to_vec();
        let chosen = self.among.map(|k| largest(&x, k));
        if let Some(chosen) = &chosen {
            x = chosen.iter().map(|i| x[*i]).collect();
        }
        let mut moved = [0.0; N];
        if self.factor != 1.0 {
            // The product is one more rounding of each exponent.
            x.iter_mut().for_each(|x| *x *= self.factor);
            let largest = x.iter().fold(0f64, |m, x| m.max(x.abs()));
            moved = contracts.map(|c| roundoff(c) * largest);
        }
        let lambda = confidence(self.shape()[0]);
        let mut times = self.times.as_ref().map(|times| times[seen.clone()].to_vec());
        if let Some(sinks) = &self.sinks
            && matches!(self.form, Form::Softmax | Form::Undivided | Form::Unguarded)
        {
            let largest = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sink = sinks[row / self.tokens];
            x.push(match self.sink {
                SinkPlace::Entry => sink,
                // So that the largest is subtracted to no effect.
                SinkPlace::Added => largest + sink,
                SinkPlace::AddedOfAll => largest.max(sink) + sink,
            });
            times.iter_mut().for_each(|times| times.push(1.0));
        }
        let times = times.as_deref();
        let in_steps = self.least > f64::NEG_INFINITY || self.exponentials.is_some() || self.divisors.is_some();
        let mut points = match self.form {
            Form::Softmax if in_steps => self.in_steps(row, &x, lambda, contracts),
            Form::Softmax if chosen.is_none() => softmax_over(&x, times, self.plus, moved, lambda, contracts),
            form => form.of(&x, moved, lambda, contracts),
        };
        if self.sinks.is_some() {
            exponents_are_stored(&x, &mut points, contracts);
        }
        let point = |i: &usize| {
            let at = Some(i).filter(|i| seen.contains(i) && written.contains(i))? - seen.start;
            Some(points[chosen.as_ref().map_or(Some(at), |chosen| chosen.iter().position(|c| *c == at))?])
        };
        let element = |i: &usize| point(i).unwrap_or((0.0, [0.0; N]));
        Ok(columns.iter().map(element).collect())
    }
}

impl<'a> Softmax<'a> {
    /// As `form` says, over what is `seen`, of rows that have neither heads nor sinks.
    pub fn of(form: Form, x: Values<'a>, cols: usize, seen: Seen) -> Self {
        Self {
            x,
            cols,
            tokens: 1,
            seen,
            written: seen,
            among: None,
            factor: 1.0,
            form,
            times: None,
            plus: 0.0,
            sinks: None,
            sink: SinkPlace::Entry,
            least: f64::NEG_INFINITY,
            exponentials: None,
            divisors: None,
        }
    }

    /// The entries that a row sees, its sink last.
    pub fn entries(&self, row: usize) -> Vec<f64> {
        let seen = self.seen.of(row % self.tokens, self.cols);
        let sink = self.sinks.as_ref().map(|sinks| sinks[row / self.tokens]);
        self.x[row * self.cols..][seen].iter().copied().chain(sink).collect()
    }

    /// exp(x − max), max not below `least`, rounded to a format, over a divisor that is given, or over their sum in the contract's arithmetic. Where
    /// an exponential lies so near to the middle of two numbers of the format that its own error decides, it may be either; and if each is less
    /// than half of f32's smallest number, 0/0 comes out.
    fn in_steps<const N: usize>(
        &self,
        row: usize,
        x: &[f64],
        lambda: f64,
        contracts: [&Contract; N],
    ) -> Vec<Bounded<N>> {
        const VANISHES: f64 = f32::MIN_POSITIVE as f64 * f32::EPSILON as f64 / 2.0;
        let max = x.iter().copied().fold(self.least, f64::max);
        let exponential = |x: &f64| -> Bounded<N> {
            let e = (x - max).exp();
            let off = contracts.map(|c| if e == 0.0 { TINY } else { exp_error(max - x, c) * e + TINY });
            let Some(format) = self.exponentials else { return (if e < VANISHES { 0.0 } else { e }, off) };
            let rounded = (format.round)(e);
            let either = |off: f64| {
                let steps = [e - off, e + off].map(|e| ((format.round)(e) - rounded).abs());
                steps[0].max(steps[1])
            };
            (rounded, off.map(either))
        };
        let all: Vec<Bounded<N>> = x.iter().map(exponential).collect();
        let given = self.divisors.as_ref().map(|divisors| divisors[row]);
        let sum = given.unwrap_or_else(|| all.iter().map(|(e, _)| e).sum());
        if sum == 0.0 {
            return vec![(f64::NAN, [0.0; N]); x.len()];
        }
        let terms = Terms::one_sign(all.iter().map(|(e, _)| *e));
        let of_sum: [f64; N] = std::array::from_fn(|n| match given {
            Some(_) => 0.0,
            None => (all.iter().map(|(_, off)| off[n]).sum::<f64>() + terms.bound(contracts[n], lambda)) / sum,
        });
        let element = |(e, off): &Bounded<N>| {
            let p = e / sum;
            (p, std::array::from_fn(|n| off[n] / sum + p * (of_sum[n] + division(contracts[n])) + TINY))
        };
        all.iter().map(element).collect()
    }
}

impl Form {
    /// Of the entries `x`, which are each off by at most `moved`.
    fn of<const N: usize>(self, x: &[f64], moved: [f64; N], lambda: f64, contracts: [&Contract; N]) -> Vec<Bounded<N>> {
        let largest = || x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        match self {
            Self::Softmax => softmax(x, moved, lambda, contracts),
            Self::Twice => {
                let once = softmax(x, moved, lambda, contracts);
                let moved = once.iter().fold([0f64; N], |m, (_, floor)| std::array::from_fn(|n| m[n].max(floor[n])));
                let once: Vec<f64> = once.iter().map(|(p, _)| *p).collect();
                softmax(&once, moved, lambda, contracts)
            }
            Self::Unguarded => {
                let in_range = |x: f64| if x > f32::MAX as f64 { f64::INFINITY } else { x };
                let sum = in_range(x.iter().map(|x| in_range(x.exp())).sum());
                let sum = if sum < TINY { 0.0 } else { sum };
                let usual = softmax(x, moved, lambda, contracts);
                x.iter().zip(usual).map(|(x, (_, floor))| (in_range(x.exp()) / sum, floor)).collect()
            }
            Self::Undivided => {
                let max = largest();
                let element = |x: &f64| {
                    let e = (x - max).exp();
                    (e, contracts.map(|c| exp_error(max - x, c) * e + TINY))
                };
                x.iter().map(element).collect()
            }
            Self::Sigmoid => {
                let element = |x: &f64| {
                    let y = 1.0 / (1.0 + (-x).exp());
                    let relative = |n: usize| {
                        let c = contracts[n];
                        (1.0 - y) * (exp_error(x.abs(), c) + moved[n]) + division(c) + 2.0 * roundoff(c)
                    };
                    (y, std::array::from_fn(|n| y * relative(n) + TINY))
                };
                x.iter().map(element).collect()
            }
            Self::Itself => x.iter().map(|x| (*x, [0.0; N])).collect(),
            Self::Equal => {
                let share = 1.0 / x.len() as f64;
                vec![(share, contracts.map(|c| 2.0 * division(c) * share)); x.len()]
            }
        }
    }
}

/// p = e/Σe with e = exp(x − max): p·(ρ + Σpρ + bound(Σe)/Σe + div) + TINY, ρ the relative error of each e, Σpρ what those do to the sum.
/// Where each x is off by up to `moved`, dp = p·(dx − Σp·dx), so another 2·moved·p.
pub(super) fn softmax<const N: usize>(
    x: &[f64],
    moved: [f64; N],
    lambda: f64,
    contracts: [&Contract; N],
) -> Vec<Bounded<N>> {
    softmax_over(x, None, 0.0, moved, lambda, contracts)
}

/// Where a contract rounds what exponentials are taken of, x − max, each e may be off by the factor exp(step), and p by its own and those
/// in the sum: dp ≤ p·(r + Σp·r), r = exp(step) − 1.
fn exponents_are_stored<const N: usize>(x: &[f64], points: &mut [Bounded<N>], contracts: [&Contract; N]) {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    for (n, contract) in contracts.iter().enumerate().filter(|(_, c)| c.inner.is_coarse()) {
        let off = |x: &f64| half_step(contract.inner, max - x).exp_m1();
        let in_sum: f64 = x.iter().zip(&*points).map(|(x, (p, _))| if *p == 0.0 { 0.0 } else { p * off(x) }).sum();
        for (x, (p, floors)) in x.iter().zip(points.iter_mut()).filter(|(_, (p, _))| *p != 0.0) {
            floors[n] += *p * (off(x) + in_sum);
        }
    }
}

/// [`softmax`] with another divisor: each exponential counted `times`, and something added.
fn softmax_over<const N: usize>(
    x: &[f64],
    times: Option<&[f64]>,
    plus: f64,
    moved: [f64; N],
    lambda: f64,
    contracts: [&Contract; N],
) -> Vec<Bounded<N>> {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut p: Vec<f64> = x.iter().map(|x| (x - max).exp()).collect();
    let counted = |p: &[f64]| -> Vec<f64> {
        times.map_or_else(|| p.to_vec(), |times| p.iter().zip(times).map(|(p, times)| p * times).collect())
    };
    let total: f64 = counted(&p).iter().sum::<f64>() + plus;
    p.iter_mut().for_each(|p| *p /= total);
    let in_the_sum = counted(&p);
    let terms = Terms::one_sign(in_the_sum.iter().copied());
    let shared: [f64; N] = std::array::from_fn(|n| {
        let c = contracts[n];
        let of_term = |(x, p): (&f64, &f64)| if *p == 0.0 { 0.0 } else { p * exp_error(max - x, c) };
        let in_sum: f64 = x.iter().zip(&in_the_sum).map(of_term).sum();
        in_sum + terms.bound(c, lambda) + x.len() as f64 * TINY + division(c) + 2.0 * moved[n]
    });
    let element = |(x, p): (&f64, &f64)| {
        let floor = |n: usize| if *p == 0.0 { TINY } else { p * (exp_error(max - x, contracts[n]) + shared[n]) + TINY };
        (*p, std::array::from_fn(floor))
    };
    x.iter().zip(&p).map(element).collect()
}
