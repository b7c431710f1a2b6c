//! What the GPU tests share: a backend that must exist, weights of every type, and error bounds.

use std::sync::Arc;

use twinscope::backend::Backend;
use twinscope::backend::gpu::tuning::Tuning;
use twinscope::backend::gpu::{AdapterSelector, GpuBackend, GpuOptions};
use twinscope::backend::oracle::evaluate;
use twinscope::op::GgmlType::{self, *};
use twinscope::op::{At, HostTensor, Op, Stage, Weight};

/// The types that the GPU has kernels for.
pub const TYPES: [GgmlType; 28] = [
    F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, IQ1_S, IQ1_M, IQ2_XXS,
    IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S, TQ1_0, TQ2_0, MXFP4, NVFP4, Q1_0, Q2_0,
];

/// The unit roundoff that WGSL promises: any rounding mode.
pub const U: f64 = 1.0 / (1u32 << 23) as f64;

/// γ_n = n·u / (1 − n·u): the worst relative error of n operations in a row.
pub fn gamma(n: f64) -> f64 {
    n * U / (1.0 - n * U)
}

/// The best adapter. A machine without one fails the test: a GPU test that did not run proves nothing.
pub fn gpu() -> GpuBackend {
    gpu_with(GpuOptions::default())
}

pub fn gpu_with(options: GpuOptions) -> GpuBackend {
    GpuBackend::new(&AdapterSelector::Best, options)
        .unwrap_or_else(|e| panic!("{e} (apt install mesa-vulkan-drivers libvulkan1)"))
}

/// The best adapter with each set of matrix kernels that it can run, named.
pub fn each_set() -> Vec<(&'static str, GpuBackend)> {
    let with = |lanes| GpuBackend::new(&AdapterSelector::Best, GpuOptions { lanes: Some(lanes), ..Default::default() });
    let mut sets = vec![("threads", gpu_with(GpuOptions { lanes: Some(false), ..Default::default() }))];
    match with(true) {
        Ok(gpu) => sets.push(("lanes", gpu)),
        // Only a software adapter is certain to have them.
        Err(e) => assert!(!gpu().info().software, "{e}"),
    }
    sets
}

/// The same, each with its products forced to one kernel: to that for few positions, whatever their number, and to that for many.
pub fn each_choice() -> Vec<(String, GpuBackend)> {
    let forced = |vectors: bool| {
        each_set().into_iter().map(move |(set, mut gpu)| {
            gpu.set_tuning(Tuning::forced(vectors)).unwrap();
            (format!("{set}, {}", if vectors { "matrix-vector" } else { "tiled" }), gpu)
        })
    };
    forced(true).chain(forced(false)).collect()
}

/// xorshift64*: the same numbers on every machine.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    /// From -1 to 1.
    pub fn unit(&mut self) -> f32 {
        (self.next() % (1 << 24)) as f32 / (1 << 23) as f32 - 1.0
    }
    /// `[shape]` of values from -1 to 1, one in a hundred of them a hundred times larger.
    pub fn tensor(&mut self, shape: &[usize]) -> HostTensor {
        let value = |r: &mut Self| if r.below(100) == 0 { 100.0 * r.unit() } else { r.unit() };
        HostTensor::f32(shape, (0..shape.iter().product()).map(|_| value(self)).collect())
    }
    pub fn ids(&mut self, positions: usize, k: usize, experts: usize) -> HostTensor {
        let mut ids = Vec::new();
        for _ in 0..positions {
            let mut all: Vec<u32> = (0..experts as u32).collect();
            ids.extend((0..k).map(|_| all.swap_remove(self.below(all.len()))));
        }
        HostTensor::u32(&[positions, k], ids)
    }
    /// Random blocks with scales from -0.1 to 0.1.
    pub fn weight(&mut self, ty: GgmlType, [cols, rows, experts]: [usize; 3]) -> Arc<Weight> {
        let n = ty.row_bytes(cols).unwrap() * rows * experts;
        let mut bytes: Vec<u8> = (0..n).map(|_| self.next() as u8).collect();
        // Where a block holds halves; everything else may be any bits.
        let halves: &[usize] = match ty {
            Q8_0 | Q4_0 | Q5_0 | IQ4_NL | IQ4_XS | IQ1_S | IQ2_XXS | IQ2_XS | IQ2_S | IQ3_XXS | IQ3_S | F16 | Q1_0
            | Q2_0 => &[0],
            Q4_1 | Q5_1 | Q4_K | Q5_K => &[0, 2],
            Q2_K => &[80, 82],
            Q3_K => &[108],
            Q6_K => &[208],
            TQ1_0 => &[52],
            TQ2_0 => &[64],
            _ => &[],
        };
        for block in bytes.chunks_exact_mut(ty.block_bytes()) {
            for &at in halves {
                block[at..at + 2].copy_from_slice(&half::f16::from_f32(0.1 * self.unit()).to_le_bytes());
            }
            match ty {
                F32 => block.copy_from_slice(&self.unit().to_le_bytes()),
                BF16 => block.copy_from_slice(&half::bf16::from_f32(self.unit()).to_le_bytes()),
                MXFP4 => block[0] = 118 + self.below(8) as u8,
                NVFP4 => block[..4].iter_mut().for_each(|d| *d &= 31),
                // The half's nibbles are on top of the four words of scales.
                IQ1_M => {
                    let d = half::f16::from_f32(0.1 * self.unit()).to_bits();
                    for i in 0..4 {
                        let high = &mut block[49 + 2 * i];
                        *high = *high & 15 | ((d >> (4 * i) & 15) as u8) << 4;
                    }
                }
                _ => {}
            }
        }
        Weight::from_vec(&format!("random.{ty}"), ty, [cols, rows, experts], bytes).unwrap()
    }
}

pub fn at() -> At {
    At::layer(0, Stage::AttnOut, 0)
}

/// Runs an operation on the GPU over host values.
pub fn run(gpu: &mut GpuBackend, op: &Op<'_, &HostTensor>) -> HostTensor {
    let op = op.try_map(|t| gpu.upload(t)).unwrap();
    let result = gpu.run(at(), &op).unwrap();
    gpu.read(&result).unwrap()
}

/// The same in float64.
pub fn exact(op: &Op<'_, &HostTensor>) -> Vec<f64> {
    evaluate(op).unwrap().to_f64()
}

/// The operation with every operand replaced by its magnitude, in float64: Σ|x·w| for a matmul.
/// The weights' magnitudes come from their f32 values.
pub fn magnitude(op: &Op<'_, &HostTensor>) -> Vec<f64> {
    let inputs: Vec<HostTensor> = op
        .inputs()
        .into_iter()
        .map(|t| match t.data {
            twinscope::op::Data::U32(_) => (*t).clone(),
            _ => HostTensor::f64(&t.shape, t.to_f64().iter().map(|v| v.abs()).collect()),
        })
        .collect();
    let weight = op.weight().map(|w| absolute(w));
    let mut next = inputs.iter();
    let op = op.try_map(|_| Ok(next.next().unwrap())).unwrap();
    let op = match op {
        Op::MatMul { x, .. } => Op::MatMul { x, weight: weight.as_ref().unwrap() },
        Op::ExpertMatMul { x, ids, .. } => Op::ExpertMatMul { x, ids, weight: weight.as_ref().unwrap() },
        other => other,
    };
    exact(&op)
}

fn absolute(w: &Weight) -> Arc<Weight> {
    let mut values = vec![0f32; w.cols * w.rows * w.experts];
    twinscope::quant::dequantize(w.ty, &w.bytes(), &mut values).unwrap();
    let bytes = values.iter().flat_map(|v| v.abs().to_le_bytes()).collect();
    Weight::from_vec("magnitudes", F32, [w.cols, w.rows, w.experts], bytes).unwrap()
}

/// Every value within its bound; a NaN must meet a NaN.
pub fn within(what: &str, got: &HostTensor, want: &[f64], bound: impl Fn(usize) -> f64) {
    let got = got.to_f64();
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        if w.is_nan() {
            assert!(g.is_nan(), "{what}: [{i}] is {g}, NaN was expected");
        } else {
            let (error, bound) = ((g - w).abs(), bound(i));
            assert!(
                error <= bound,
                "{what}: [{i}] is {g}, {w} was expected: off by {error:e}, at most {bound:e} is rounding"
            );
        }
    }
}
