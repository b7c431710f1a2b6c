//! Operands of the cases, made from a seed.

use std::sync::Arc;

use super::{Choice, OpShape, OpValues, Operands};
use crate::error::{Error, Result};
use crate::op::{GgmlType, HostTensor, Weight, first_seen};
use crate::quant::random::{RandomBlocks, Rng};

/// Draws the numbers of one case.
pub struct Maker {
    rng: Rng,
    seed: u64,
    values: OpValues,
}

/// What is written where nothing may read.
const POISON: f32 = 1e9;

impl Maker {
    pub fn new(seed: u64, values: OpValues) -> Self {
        Self { rng: Rng::new(seed, 0), seed, values }
    }

    pub fn build(mut self, shape: OpShape) -> Result<Operands> {
        let (mut weight, mut tokens) = (None, Vec::new());
        let tensors = match shape {
            OpShape::Embed { ty, cols, rows, tokens: t, .. } => {
                weight = Some(self.weight(ty, [cols, rows, 1])?);
                tokens = (0..t).map(|_| self.rng.below(rows as u64) as u32).collect();
                vec![]
            }
            OpShape::RmsNorm { tokens, groups, n, keep } => {
                let scales: Vec<u8> = (0..n).flat_map(|_| (1.0f32 + 0.3 * self.rng.normal()).to_le_bytes()).collect();
                weight = Some(Weight::from_vec("case.weight", GgmlType::F32, [n, 1, 1], scales)?);
                vec![self.tensor(&[tokens, groups * n + keep])]
            }
            OpShape::MatMul { ty, cols, rows, tokens } => {
                weight = Some(self.scaled(ty, [cols, rows, 1])?);
                vec![self.tensor(&[tokens, cols])]
            }
            OpShape::HeadMatMul { ty, cols, rows, heads, head_dim, tokens, shared, .. } => {
                weight = Some(self.weight(ty, [cols, rows, heads])?);
                vec![self.tensor(&[tokens, if shared { head_dim } else { heads * head_dim }])]
            }
            OpShape::ExpertMatMul { ty, cols, rows, experts, tokens, k, per_slot, choice } => {
                weight = Some(self.scaled(ty, [cols, rows, experts])?);
                let x = if per_slot { self.tensor(&[tokens, k, cols]) } else { self.tensor(&[tokens, cols]) };
                vec![x, self.ids(tokens, experts, k, choice)]
            }
            OpShape::Bias { tokens, cols } => {
                let bias: Vec<u8> = (0..cols).flat_map(|_| (2.0 * self.rng.normal()).to_le_bytes()).collect();
                weight = Some(Weight::from_vec("case.bias", GgmlType::F32, [cols, 1, 1], bias)?);
                vec![self.tensor(&[tokens, cols])]
            }
            OpShape::Rope { tokens, heads, head_dim, factors, dims, .. } => {
                if factors {
                    let pairs = dims.unwrap_or(head_dim) / 2;
                    let bytes: Vec<u8> = (0..pairs).flat_map(|_| (1.0 + 7.0 * self.rng.unit()).to_le_bytes()).collect();
                    weight = Some(Weight::from_vec("rope_freqs.weight", GgmlType::F32, [pairs, 1, 1], bytes)?);
                }
                vec![self.tensor(&[tokens, heads * head_dim])]
            }
            OpShape::Store { tokens, cols, beyond, capacity, .. } => {
                vec![self.tensor(&[capacity, cols]), self.tensor(&[tokens, cols + beyond])]
            }
            OpShape::AttnScores { tokens, heads, kv_heads, head_dim, start, spare, .. } => {
                vec![self.tensor(&[tokens, heads * head_dim]), self.cache(start + tokens, spare, kv_heads * head_dim)]
            }
            OpShape::AttnProbs { tokens, heads, start, window, sinks } => {
                if sinks {
                    // About as large as the scores; in one head larger than nearly all of them.
                    let sink = |head: usize, x: f32| if head % 4 == 3 { 4.0 + x } else { x };
                    let bytes = (0..heads).flat_map(|head| sink(head, self.number(head)).to_le_bytes()).collect();
                    weight = Some(Weight::from_vec("case.sinks", GgmlType::F32, [heads, 1, 1], bytes)?);
                }
                let mut scores = self.causal(heads, tokens, start, POISON);
                outside_window(&mut scores, start, window, POISON);
                vec![scores]
            }
            OpShape::AttnContext { tokens, heads, kv_heads, head_dim, start, spare, window } => {
                let mut probs = self.causal(heads, tokens, start, 0.0);
                outside_window(&mut probs, start, window, 0.0);
                positive(&mut probs, start + tokens);
                vec![probs, self.cache(start + tokens, spare, kv_heads * head_dim)]
            }
            OpShape::Add { tokens, cols } | OpShape::SwiGlu { tokens, cols, .. } => {
                vec![self.tensor(&[tokens, cols]), self.tensor(&[tokens, cols])]
            }
            OpShape::SigmoidGate { tokens, cols } => vec![self.tensor(&[tokens, cols]), self.tensor(&[tokens, 1])],
            OpShape::Conv { tokens, channels, kernel, start, spare } => {
                let weights = (0..channels * kernel).flat_map(|_| (0.5 * self.rng.normal()).to_le_bytes()).collect();
                weight = Some(Weight::from_vec("case.conv", GgmlType::F32, [kernel, channels, 1], weights)?);
                let cache = self.cache(start + tokens, spare, channels);
                // A forward pass stores the rows of a call before it runs the operation.
                let x = cache.to_f32()[start * channels..][..tokens * channels].to_vec();
                vec![HostTensor::f32(&[tokens, channels], x), cache]
            }
            OpShape::L2Norm { tokens, cols, first, heads, head_dim } => {
                let mut x = self.tensor(&[tokens, cols]).to_f32();
                for row in x.chunks_exact_mut(cols) {
                    row[..first].fill(POISON);
                    row[first + heads * head_dim..].fill(POISON);
                }
                vec![HostTensor::f32(&[tokens, cols], x)]
            }
            OpShape::Decay { tokens, heads } => {
                let rates = (0..heads).flat_map(|_| (-16.0 * self.rng.unit() - 1e-3).to_le_bytes()).collect();
                weight = Some(Weight::from_vec("case.rates", GgmlType::F32, [heads, 1, 1], rates)?);
                vec![self.tensor(&[tokens, heads])]
            }
            OpShape::DeltaRule { tokens, key_heads, heads, head_dim, start, spare, .. } => {
                let seen = start + tokens;
                let q = self.directions(tokens, 0, key_heads, head_dim);
                let k = self.directions(seen, spare, key_heads, head_dim);
                // As in a model, the columns of queries and keys are in front of the values.
                let mut v = self.cache(seen, spare, (2 * key_heads + heads) * head_dim);
                let (beside, cols, mut values) = (2 * key_heads * head_dim, v.cols(), v.to_f32());
                values.chunks_exact_mut(cols).for_each(|row| row[..beside].fill(POISON));
                v = HostTensor::f32(&v.shape, values);
                // A head in four keeps nearly everything, one forgets nearly everything.
                let rate = |head: usize| [0.3, 0.001, 1.0, 12.0][head % 4];
                let decay = self.rows(seen, spare, heads, |maker, head| -rate(head) * maker.rng.normal().abs());
                let beta = self.rows(seen, spare, heads, |maker, _| 0.01 + 0.98 * maker.rng.unit());
                vec![q, k, v, decay, beta]
            }
            OpShape::RouterProbs { tokens, experts, .. } => vec![self.tensor(&[tokens, experts])],
            OpShape::RouterTopK { tokens, experts, ties, .. } => {
                let mut probs = self.tensor(&[tokens, experts]);
                positive(&mut probs, experts);
                vec![if ties { coarse(&probs) } else { probs }]
            }
            OpShape::RouterWeights { tokens, experts, k, softmax, .. } => {
                let mut probs = self.tensor(&[tokens, experts]);
                if !softmax {
                    positive(&mut probs, experts);
                }
                vec![probs, self.ids(tokens, experts, k, Choice::Random)]
            }
            OpShape::ExpertBias { tokens, k, cols, experts, choice } => {
                let bias: Vec<u8> = (0..experts * cols).flat_map(|_| (2.0 * self.rng.normal()).to_le_bytes()).collect();
                weight = Some(Weight::from_vec("case.bias", GgmlType::F32, [cols, experts, 1], bias)?);
                vec![self.tensor(&[tokens, k, cols]), self.ids(tokens, experts, k, choice)]
            }
            OpShape::Combine { tokens, k, hidden } => {
                let mut weights = self.tensor(&[tokens, k]);
                positive(&mut weights, k);
                vec![self.tensor(&[tokens, k, hidden]), weights]
            }
            OpShape::Rows { tokens, cols, .. } => vec![self.tensor(&[tokens, cols])],
        };
        Ok(Operands { shape, weight, tokens, tensors })
    }

    fn weight(&mut self, ty: GgmlType, dims: [usize; 3]) -> Result<Arc<Weight>> {
        let row = ty.row_bytes(dims[0]).ok_or_else(|| {
            Error::usage(format!("rows of {} weights are not whole {ty} blocks of {}", dims[0], ty.block_len()))
        })?;
        let mut bytes = vec![0; row * dims[1] * dims[2]];
        RandomBlocks::new(ty, 0.05, self.seed)?.fill(0, &mut bytes);
        Weight::from_vec("case.weight", ty, dims, bytes)
    }

    /// The same with a scale for each expert, where the type is one that comes with scales.
    fn scaled(&mut self, ty: GgmlType, dims: [usize; 3]) -> Result<Arc<Weight>> {
        let weight = self.weight(ty, dims)?;
        match ty {
            GgmlType::NVFP4 => weight.scaled((0..dims[2]).map(|_| 3.0 * self.rng.normal()).collect()),
            _ => Ok(weight),
        }
    }

    fn number(&mut self, channel: usize) -> f32 {
        let x = self.rng.normal();
        match self.values {
            OpValues::Normal => x,
            OpValues::Offset => x + 3.0,
            OpValues::Outliers => x * if channel % 64 == 17 { 300.0 } else { 1.0 },
            OpValues::Small => x * 1e-20,
            OpValues::Large => x * 40.0,
            OpValues::Nan => [x, x, x, f32::NAN][self.rng.below(4) as usize],
        }
    }

    fn tensor(&mut self, shape: &[usize]) -> HostTensor {
        let cols = shape.last().copied().unwrap_or(1).max(1);
        let data = (0..shape.iter().product()).map(|i| self.number(i % cols)).collect();
        HostTensor::f32(shape, data)
    }

    /// [positions + spare, cols], the spare rows poisoned.
    fn cache(&mut self, positions: usize, spare: usize, cols: usize) -> HostTensor {
        self.rows(positions, spare, cols, Self::number)
    }

    /// The same of numbers that `number` draws for their columns.
    fn rows(
        &mut self,
        positions: usize,
        spare: usize,
        cols: usize,
        number: impl Fn(&mut Self, usize) -> f32,
    ) -> HostTensor {
        let mut data: Vec<f32> = (0..positions * cols).map(|i| number(self, i % cols)).collect();
        data.resize((positions + spare) * cols, POISON);
        HostTensor::f32(&[positions + spare, cols], data)
    }

    /// [positions + spare, heads·D], each head of length 1 but for rounding, the spare rows poisoned.
    fn directions(&mut self, positions: usize, spare: usize, heads: usize, head_dim: usize) -> HostTensor {
        let cols = heads * head_dim;
        let drawn = self.rows(positions, spare, cols, |maker, _| maker.rng.normal());
        let mut values = drawn.to_f32();
        for head in values[..positions * cols].chunks_exact_mut(head_dim) {
            let length = head.iter().map(|x| x * x).sum::<f32>().sqrt();
            head.iter_mut().for_each(|x| *x /= length);
        }
        HostTensor::f32(&drawn.shape, values)
    }

    /// [heads, T, S] with `beyond` above the diagonal.
    fn causal(&mut self, heads: usize, tokens: usize, start: usize, beyond: f32) -> HostTensor {
        let s = start + tokens;
        let data = (0..heads * tokens * s).map(|i| {
            let (token, position) = (i / s % tokens, i % s);
            if position <= start + token { self.number(position) } else { beyond }
        });
        HostTensor::f32(&[heads, tokens, s], data.collect())
    }

    /// [T, K] ids, different ones in each row.
    fn ids(&mut self, tokens: usize, experts: usize, k: usize, choice: Choice) -> HostTensor {
        let mut draw = || {
            let mut all: Vec<u32> = (0..experts as u32).collect();
            for i in 0..k {
                all.swap(i, i + self.rng.below((experts - i) as u64) as usize);
            }
            all.truncate(k);
            all
        };
        let ids = match choice {
            Choice::Random => (0..tokens).flat_map(|_| draw()).collect(),
            Choice::Same => draw().repeat(tokens),
        };
        HostTensor::u32(&[tokens, k], ids)
    }
}

/// Writes `what` where a row of [heads, T, S] does not see because of its window.
fn outside_window(t: &mut HostTensor, start: usize, window: Option<usize>, what: f32) {
    let (rows, cols, mut values) = (t.shape[1], t.cols(), t.to_f32());
    for (i, row) in values.chunks_exact_mut(cols).enumerate() {
        row[..first_seen(start + i % rows, window)].fill(what);
    }
    *t = HostTensor::f32(&t.shape, values);
}

/// Makes each row of `cols` a distribution over its elements that are neither 0 nor NaN.
fn positive(t: &mut HostTensor, cols: usize) {
    let mut values = t.to_f32();
    for row in values.chunks_exact_mut(cols) {
        let sum: f32 = row.iter().map(|x| x.abs()).filter(|x| !x.is_nan()).sum();
        for x in row {
            *x = x.abs() / sum;
        }
    }
    *t = HostTensor::f32(&t.shape, values);
}

/// The same values in four steps, so that many are equal.
fn coarse(t: &HostTensor) -> HostTensor {
    let values = t.to_f32();
    let max = values.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
    HostTensor::f32(&t.shape, values.iter().map(|x| (x / max * 4.0).floor() / 4.0).collect())
}
