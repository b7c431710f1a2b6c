//! Block types whose codes are fields of bits, or levels of a short list, in plain Rust: loops over bytes that the compiler makes vectors of.
//!
//! For levels that have no instructions of their own for it; the plain level has them as well, so that every machine's tests hold them against
//! the definition, to the bit. Every product of a scale and a code is exact (a half's 11 bits by at most 12, or powers of two), so only the
//! subtraction of a min rounds, as in the definition.

/// Writes them into a level's module, each function with the attribute `features`.
///
/// The module has what `block_kernels` asks for, and `scaled(codes, scale, min)`: sixteen codes times a scale, less a min.
macro_rules! field_formats {
    (#[$features:meta]) => {
        /// The kernels for blocks of `ty`, where there are some.
        fn by_fields(ty: GgmlType) -> Option<BlockKernels> {
            Some(match ty {
                GgmlType::Q4_0 => kernels::<Q4_0, _>(),
                GgmlType::Q4_1 => kernels::<Q4_1, _>(),
                GgmlType::Q5_0 => kernels::<Q5_0, _>(),
                GgmlType::Q5_1 => kernels::<Q5_1, _>(),
                GgmlType::Q8_0 => kernels::<Q8_0, _>(),
                GgmlType::Q2_K => kernels::<Q2K, _>(),
                GgmlType::Q3_K => kernels::<Q3K, _>(),
                GgmlType::Q4_K => kernels::<Q4K, _>(),
                GgmlType::Q5_K => kernels::<Q5K, _>(),
                GgmlType::Q6_K => kernels::<Q6K, _>(),
                GgmlType::IQ4_NL => kernels::<Iq4Nl, _>(),
                GgmlType::IQ4_XS => kernels::<Iq4Xs, _>(),
                GgmlType::MXFP4 => kernels::<Mxfp4, _>(),
                _ => return None,
            })
        }

        use crate::backend::cpu::simd::fields::{Fields, FieldScales};
        use crate::quant::iquant::{BlockIQ4NL, BlockIQ4XS, IQ4_LEVELS};
        use crate::quant::kquant::{BlockQ2K, BlockQ3K, BlockQ4K, BlockQ5K, BlockQ6K, q3k_scales, scales_and_mins};
        use crate::quant::legacy::{BlockQ4_0, BlockQ4_1, BlockQ5_0, BlockQ5_1, BlockQ8_0};
        use crate::quant::fp4::{BlockMXFP4, E2M1_LEVELS, e8m0_half};

        /// A type: how many groups of 32 weights a block has, its scales and mins, and the codes of a group in the order of its weights.
        macro_rules! fields {
            ($name:ident: $block:ty, $groups:literal, |$h:ident| $scales:expr, |$b:ident, $g:pat_param| $codes:expr) => {
                struct $name;

                impl BlockFormat<V, 2> for $name {
                    type Block = $block;
                    const STEPS: usize = $groups;
                    type Head = FieldScales;
                    #[inline]
                    #[$features]
                    unsafe fn head($h: &$block) -> FieldScales {
                        $scales
                    }
                    #[inline]
                    #[$features]
                    unsafe fn step($b: &$block, head: &FieldScales, step: usize) -> [V; 2] {
                        let $g = step;
                        let codes: Fields = $codes;
                        let halves = codes.as_chunks::<16>().0;
                        let [a, b] = head.of[step];
                        [scaled(&halves[0], a[0], a[1]), scaled(&halves[1], b[0], b[1])]
                    }
                }
            };
        }

        fields!(Q4_0: BlockQ4_0, 1, |b| FieldScales::one(f16(b.d), 0.0), |b, _| nibbles(&b.qs, |q, _| q as i8 - 8));
        fields!(Q4_1: BlockQ4_1, 1, |b| FieldScales::one(f16(b.d), -f16(b.m)), |b, _| nibbles(&b.qs, |q, _| q as i8));
        fields!(Q5_0: BlockQ5_0, 1, |b| FieldScales::one(f16(b.d), 0.0), |b, _| {
            let high = u32::from_le_bytes(b.qh);
            nibbles(&b.qs, |q, i| (q | ((high >> i) as u8 & 1) << 4) as i8 - 16)
        });
        fields!(Q5_1: BlockQ5_1, 1, |b| FieldScales::one(f16(b.d), -f16(b.m)), |b, _| {
            let high = u32::from_le_bytes(b.qh);
            nibbles(&b.qs, |q, i| (q | ((high >> i) as u8 & 1) << 4) as i8)
        });
        fields!(Q8_0: BlockQ8_0, 1, |b| FieldScales::one(f16(b.d), 0.0), |b, _| bytemuck::cast(b.qs));
        fields!(Iq4Nl: BlockIQ4NL, 1, |b| FieldScales::one(f16(b.d), 0.0), |b, _| nibbles(&b.qs, |q, _| IQ4_LEVELS[q as usize]));
        fields!(Mxfp4: BlockMXFP4, 1, |b| FieldScales::one(e8m0_half(b.e), 0.0), |b, _| {
            nibbles(&b.qs, |q, _| E2M1_LEVELS[q as usize])
        });
        fields!(Iq4Xs: BlockIQ4XS, 8, |b| {
            let (d, high) = (f16(b.d), u16::from_le_bytes(b.scales_h));
            FieldScales::groups(|g| {
                let low = b.scales_l[g / 2] >> (g % 2 * 4) & 15;
                (d * ((low | ((high >> (2 * g) & 3) << 4) as u8) as i8 - 32) as f32, 0.0)
            })
        }, |b, g| nibbles(&b.qs.as_chunks::<16>().0[g], |q, _| IQ4_LEVELS[q as usize]));
        fields!(Q2K: BlockQ2K, 8, |b| {
            let (d, dmin) = (f16(b.d), f16(b.dmin));
            FieldScales::halves(|h| (d * (b.scales[h] & 15) as f32, dmin * (b.scales[h] >> 4) as f32))
        }, |b, g| {
            let qs = &b.qs.as_chunks::<32>().0[g / 4];
            std::array::from_fn(|i| (qs[i] >> (g % 4 * 2) & 3) as i8)
        });
        fields!(Q3K: BlockQ3K, 8, |b| {
            let (d, scales) = (f16(b.d), q3k_scales(&b.scales));
            FieldScales::halves(|h| (d * scales[h] as f32, 0.0))
        }, |b, g| {
            let qs = &b.qs.as_chunks::<32>().0[g / 4];
            std::array::from_fn(|i| (qs[i] >> (g % 4 * 2) & 3 | (b.hmask[i] >> g & 1) << 2) as i8 - 4)
        });
        fields!(Q4K: BlockQ4K, 8, |b| {
            let (d, dmin, (scales, mins)) = (f16(b.d), f16(b.dmin), scales_and_mins(&b.scales));
            FieldScales::groups(|g| (d * scales[g] as f32, dmin * mins[g] as f32))
        }, |b, g| {
            let qs = &b.qs.as_chunks::<32>().0[g / 2];
            std::array::from_fn(|i| (qs[i] >> (g % 2 * 4) & 15) as i8)
        });
        fields!(Q5K: BlockQ5K, 8, |b| {
            let (d, dmin, (scales, mins)) = (f16(b.d), f16(b.dmin), scales_and_mins(&b.scales));
            FieldScales::groups(|g| (d * scales[g] as f32, dmin * mins[g] as f32))
        }, |b, g| {
            let qs = &b.qs.as_chunks::<32>().0[g / 2];
            std::array::from_fn(|i| (qs[i] >> (g % 2 * 4) & 15 | (b.qh[i] >> g & 1) << 4) as i8)
        });
        fields!(Q6K: BlockQ6K, 8, |b| {
            let d = f16(b.d);
            FieldScales::halves(|h| (d * b.scales[h] as f32, 0.0))
        }, |b, g| {
            let (half, quarter) = (g / 4, g % 4);
            let low = &b.ql.as_chunks::<32>().0[half * 2 + quarter % 2];
            let high = &b.qh.as_chunks::<32>().0[half];
            std::array::from_fn(|i| {
                (low[i] >> (quarter / 2 * 4) & 15 | (high[i] >> (quarter * 2) & 3) << 4) as i8 - 32
            })
        });

        /// Of the low nibbles of 16 bytes, then the high ones, each with its place, what `code` makes.
        #[inline]
        fn nibbles(qs: &[u8; 16], code: impl Fn(u8, usize) -> i8) -> Fields {
            std::array::from_fn(|i| code(if i < 16 { qs[i] & 15 } else { qs[i - 16] >> 4 }, i))
        }
    };
}
pub(super) use field_formats;

/// The codes of 32 weights.
pub(super) type Fields = [i8; 32];

/// A scale and a min for each half of the groups of a block.
#[derive(Clone, Copy, Default)]
pub(super) struct FieldScales {
    pub of: [[[f32; 2]; 2]; 8],
}

impl FieldScales {
    /// Of a block that has one scale and one min.
    #[inline]
    pub fn one(scale: f32, min: f32) -> Self {
        let mut all = Self::default();
        all.of[0] = [[scale, min]; 2];
        all
    }

    /// One for each group.
    #[inline]
    pub fn groups(of: impl Fn(usize) -> (f32, f32)) -> Self {
        Self { of: std::array::from_fn(|g| [of(g).into(); 2]) }
    }

    /// One for each half of a group.
    #[inline]
    pub fn halves(of: impl Fn(usize) -> (f32, f32)) -> Self {
        Self { of: std::array::from_fn(|g| [of(2 * g).into(), of(2 * g + 1).into()]) }
    }
}
