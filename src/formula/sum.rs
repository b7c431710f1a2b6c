//! The rounding error of a sum, from its terms and from the order that a contract promises.
//!
//! # Derivation
//! A sum of n terms p is computed by roundings e = 1, 2, …, each of which replaces an intermediate value v_e by v_e(1 + δ_e),
//! |δ_e| ≤ u. To first order in u the result is off by Σ δ_e v_e. Two bounds follow.
//!
//! - **Worst case** (Higham, *Accuracy and Stability of Numerical Algorithms*, 2nd ed. 2002, §3.1 and §4.2): a term goes through at most
//!   m roundings, so |error| ≤ γ_m·Σ|p|, γ_m = mu/(1 − mu). m is the depth of the order of summation plus [`ROUNDINGS`].
//! - **Probabilistic** (Higham & Mary, *A New Approach to Probabilistic Rounding Error Analysis*, SISC 41, 2019; Ipsen & Zhou,
//!   *Probabilistic Error Analysis for Inner Products*, arXiv:1906.10465, from which the form with partial sums): if each δ_e
//!   has mean zero given those before it, the error is a martingale, and Azuma's inequality gives
//!   |error| ≤ λ·u·√(Σ v_e²) but for a probability of 2·exp(−λ²/2).
//!
//! The floor is the smaller of the two: the first for short sums, the second for long ones.
//!
//! Bounding |v_e| by Σ|p| in the second gives Higham & Mary's λ√m·u·Σ|p|. That is right for terms of one sign; for a dot product whose
//! terms have both, partial sums stay near √n times a term, not n times, and the bound is too large by about √n (Higham & Mary,
//! *Sharper Probabilistic Backward Error Analysis for Basic Linear Algebra Kernels with Random Data*, SISC 42, 2020). So partial sums
//! are bounded by two numbers of the data instead: Q = Σp² and R, the largest difference between any two prefix sums
//! in index order, which is at least |Σp| and at least any contiguous partial sum. The sum over a share f of the terms, spread
//! evenly over them, is taken to have v² ≤ 2·(f·R)² + 2·(Σ p² over the share): its drift, which R measures, and the deviation from
//! it, whose expected square over arrangements is at most the sum of its squares. This is an assumption on the arrangement of
//! the terms inside a chain, and the one thing here that is not proven for every input; terms of one sign and one dominant term
//! meet it, and `selftest --calibrate` measures it. Then for
//!
//! - one running sum: Σv² ≤ n·R²;
//! - blocks of b, then their sums: inside, n/b chains of b terms with drift R·b/n each: 2(b·Q + R²·b²/n); outside, n/b prefixes: R²·n/b;
//! - L lanes of c = ⌈n/L⌉ terms with drift R/L each: 2(c·Q + R²·c/L); the tree above them, log₂L levels: 2·log₂L·Q + 4·R²;
//! - any order: n prefixes of a random arrangement, Σ_f 2·((f·R)² + f·Q) ≤ n·(R² + Q), which no other order exceeds;
//! - besides, [`ROUNDINGS`] for each term or sub-block: 4(Q + R²).
//!
//! Where the accumulator is wider than the terms' arithmetic (ggml's norms and softmax sum f32 terms in double), the additions round with
//! its unit, and the [`ROUNDINGS`] with that of the arithmetic.
//!
//! Beyond the accumulator's range a sum of squares under an inverse root has no bound ([`Terms::bound_under_root`]): a kernel that keeps its
//! contract gives 0 there.
//!
//! The assumption of mean zero holds for rounding to nearest. A device that truncates has a bias, which grows with m, not √m: its
//! error is more than this floor allows, and it should be.

use crate::backend::{Contract, Order, Precision};
use crate::wide::wide;

/// Roundings that a term may meet besides the additions: the product x·q, the sub-block's scale, the block's scale, and the
/// subtraction of the offset (in a kernel that dequantizes first: the products d·s and d·s·q, the offset, the product with x).
pub const ROUNDINGS: usize = 4;

/// The probability that a stage of a correct kernel exceeds its floor, as far as sums go, under the assumptions above.
pub const FAILURE: f64 = 1e-9;

/// λ such that none of `elements` sums exceeds λ·u·√(Σv²), but for a probability of [`FAILURE`]: each may with 2·exp(−λ²/2),
/// so λ = √(2·ln(2·elements / FAILURE)). 6.5 for one sum, 8.4 for a million.
pub fn confidence(elements: usize) -> f64 {
    (2.0 * (2.0 * elements.max(1) as f64 / FAILURE).ln()).sqrt()
}

/// What the rounding error of one sum depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Terms {
    /// Number of terms.
    pub n: usize,
    /// Σp.
    pub sum: f64,
    /// Σ|p|.
    pub absolute: f64,
    /// Q = Σp².
    pub squares: f64,
    /// R: largest prefix sum less the smallest, the empty one included.
    pub range: f64,
}

/// Prefix sums are taken every so many terms; what happens between two of them is smaller than Q allows for.
const STRIDE: usize = 8;
/// Columns of [`Terms::columns`].
pub const COLUMNS: usize = 8;

impl Terms {
    wide! {
        /// Of the products x·w.
        pub fn dot(x: &[f64], w: &[f64]) -> Terms {
            let ((xs, x_tail), (ws, w_tail)) = (x.as_chunks::<STRIDE>(), w.as_chunks::<STRIDE>());
            // A running sum for each place in a stretch, which the compiler may take as vectors.
            let (mut absolute, mut squares) = ([0.0; STRIDE], [0.0; STRIDE]);
            let (mut prefix, mut low, mut high) = (0.0, 0f64, 0f64);
            let mut stretch = |x: &[f64; STRIDE], w: &[f64; STRIDE]| {
                let mut p = [0.0; STRIDE];
                for i in 0..STRIDE {
                    p[i] = x[i] * w[i];
                    absolute[i] += p[i].abs();
                    squares[i] += p[i] * p[i];
                }
                prefix += ((p[0] + p[1]) + (p[2] + p[3])) + ((p[4] + p[5]) + (p[6] + p[7]));
                (low, high) = (low.min(prefix), high.max(prefix));
            };
            xs.iter().zip(ws).for_each(|(x, w)| stretch(x, w));
            if !x_tail.is_empty() {
                let padded = |tail: &[f64]| std::array::from_fn(|i| tail.get(i).copied().unwrap_or(0.0));
                stretch(&padded(x_tail), &padded(w_tail));
            }
            let (absolute, squares) = (absolute.iter().sum(), squares.iter().sum());
            Terms { n: x.len(), sum: prefix, absolute, squares, range: high - low }
        }
    }

    wide! {
        /// [`Terms::dot`] of x with each of eight columns, to the bit, and the sum of each column's magnitudes. Row i of the columns begins at `rows[i]` of `w`;
        /// `None` is a row of zeros.
        pub fn columns(x: &[f64], w: &[f64], rows: &[Option<usize>]) -> [(Terms, f64); COLUMNS] {
            const ZEROS: [f64; COLUMNS] = [0.0; COLUMNS];
            // [a place in a stretch][a column]
            let (mut absolute, mut squares) = ([ZEROS; STRIDE], [ZEROS; STRIDE]);
            let (mut prefix, mut low, mut high, mut magnitudes) = (ZEROS, ZEROS, ZEROS, ZEROS);
            for (x, rows) in x.chunks(STRIDE).zip(rows.chunks(STRIDE)) {
                let mut p = [ZEROS; STRIDE];
                for (i, (x, row)) in x.iter().zip(rows).enumerate() {
                    let w: &[f64; COLUMNS] = row.and_then(|at| w[at..].first_chunk()).unwrap_or(&ZEROS);
                    for j in 0..COLUMNS {
                        p[i][j] = x * w[j];
                        absolute[i][j] += p[i][j].abs();
                        squares[i][j] += p[i][j] * p[i][j];
                        magnitudes[j] += w[j].abs();
                    }
                }
                for j in 0..COLUMNS {
                    prefix[j] += ((p[0][j] + p[1][j]) + (p[2][j] + p[3][j])) + ((p[4][j] + p[5][j]) + (p[6][j] + p[7][j]));
                    (low[j], high[j]) = (low[j].min(prefix[j]), high[j].max(prefix[j]));
                }
            }
            std::array::from_fn(|j| {
                let (absolute, squares) = (absolute.iter().map(|a| a[j]).sum(), squares.iter().map(|s| s[j]).sum());
                let (sum, range) = (prefix[j], high[j] - low[j]);
                (Terms { n: x.len(), sum, absolute, squares, range }, magnitudes[j])
            })
        }
    }

    /// Of terms that are all of one sign, given |p|.
    pub fn one_sign(p: impl Iterator<Item = f64>) -> Self {
        let mut terms = Self::default();
        for p in p {
            terms.n += 1;
            terms.absolute += p;
            terms.squares += p * p;
        }
        (terms.sum, terms.range) = (terms.absolute, terms.absolute);
        terms
    }

    /// These less others, the two summed side by side: the products and the offsets of a quantized row.
    pub fn less(self, other: Self) -> Self {
        Self {
            n: self.n.max(other.n),
            sum: self.sum - other.sum,
            absolute: self.absolute + other.absolute,
            squares: self.squares + other.squares,
            range: self.range + other.range,
        }
    }

    /// Of terms whose sums over runs of so many are exact, which is what int8 codes times a weight's codes are: n becomes the number of runs,
    /// and Q that of their sums, bounded by their deviation from the drift and the drift, 2·(Q + R²/n).
    pub fn in_exact_runs_of(self, run: usize) -> Self {
        let n = self.n.div_ceil(run.max(1)).max(1);
        Self { n, squares: 2.0 * (self.squares + self.range * self.range / n as f64), ..self }
    }

    /// The rounding error that `contract` allows in the sum; see the module. NaN if a term is not finite.
    ///
    /// Beyond the accumulator's range it stays what it is: infinity survives additions, products and stores, so that a result which is finite is of a
    /// sum that did not overflow, and one which is not is an error that has a cause.
    pub fn bound(&self, contract: &Contract, lambda: f64) -> f64 {
        if !self.absolute.is_finite() {
            return f64::NAN;
        }
        let (u, adding) = (roundoff(contract), adding(contract));
        let m = contract.order.depth(self.n) as f64 * adding + (ROUNDINGS + 1) as f64 * u; // 1: the judge's own weights
        let worst = if m < 0.5 { m / (1.0 - m) * self.absolute } else { f64::INFINITY };
        let likely = lambda * self.variance(contract).sqrt();
        if worst.is_nan() || likely.is_nan() { f64::NAN } else { worst.min(likely) }
    }

    /// Σ (u·v_e)² over the sum's roundings, of which the second bound is λ times the root: what a sum brings to an error that it is one part of.
    pub fn variance(&self, contract: &Contract) -> f64 {
        let (u, adding) = (roundoff(contract), adding(contract));
        let few = ROUNDINGS as f64 * (self.squares + self.range * self.range);
        adding * adding * self.partial_sums(contract.order) + u * u * few
    }

    /// [`Terms::bound`] of a sum of squares whose inverse root is taken: infinite, which is no bound, where the sum or a term may be beyond what
    /// the contract's arithmetic holds. The inverse root of infinity is 0: finite, and no trace of what happened.
    pub fn bound_under_root(&self, contract: &Contract, lambda: f64) -> f64 {
        let bound = self.bound(contract, lambda);
        if bound.is_nan() {
            return bound; // an operand was no number, or not finite
        }
        if self.absolute + bound > range(contract) || self.squares.sqrt() > terms_range(contract) {
            f64::INFINITY
        } else {
            bound
        }
    }

    /// Σ v_e² of the additions, bounded for an order of summation.
    fn partial_sums(&self, order: Order) -> f64 {
        let (n, q, r) = (self.n.max(1) as f64, self.squares, self.range * self.range);
        match order {
            Order::Sequential => n * r,
            Order::Blocked { block } => {
                let b = n.min(block.max(1) as f64);
                2.0 * (b * q + r * b * b / n) + r * (n / b).ceil()
            }
            Order::Lanes { lanes } => {
                let lanes = n.min(lanes.max(1) as f64);
                let c = (n / lanes).ceil();
                2.0 * (c * q + r * c / lanes) + 2.0 * lanes.log2() * q + 4.0 * r
            }
            Order::Unknown => n * (q + r),
        }
    }
}

/// What the bound of every sum of `n` terms, or of two such sums side by side, is at least, as a share of its size |y|: |y| ≤ Σ|p|, |y| ≤ R and
/// y²/(2n) ≤ Σp². A hundredth is left for what float64 itself rounds.
pub fn least_bound(n: usize, contract: &Contract, lambda: f64) -> f64 {
    let least = Terms { n, sum: 1.0, absolute: 1.0, squares: 0.5 / n.max(1) as f64, range: 1.0 };
    0.99 * least.bound(contract, lambda)
}

/// The largest number that the contract's sums can hold.
fn range(contract: &Contract) -> f64 {
    match contract.accumulator {
        Precision::F64 => f64::MAX,
        Precision::F16 => F16_MAX,
        _ => f32::MAX as f64,
    }
}

/// The largest number that one term of them can be.
fn terms_range(contract: &Contract) -> f64 {
    if contract.activations == Precision::F64 { f64::MAX } else { f32::MAX as f64 }
}

/// The largest half.
const F16_MAX: f64 = 65504.0;

/// The unit roundoff of the additions in the contract's sums.
fn adding(contract: &Contract) -> f64 {
    if contract.accumulator == Precision::F64 { f64::EPSILON / 2.0 } else { roundoff(contract) }
}

/// The unit roundoff of the contract's arithmetic, or of a coarser format that its sums are held in.
pub fn roundoff(contract: &Contract) -> f64 {
    let format = match contract.accumulator {
        Precision::F16 => 2f64.powi(-11),
        Precision::Bf16 => 2f64.powi(-8),
        _ => 0.0, // integer sums are exact; their scaling is f32
    };
    contract.unit_roundoff.max(format)
}
