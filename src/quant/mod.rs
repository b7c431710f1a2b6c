//! Quantization types: their names, ids and block sizes, and the scalar dequantization that defines each.
//!
//! Design:
//! - [`GgmlType`] is the one list of types; block sizes are checked against the `#[repr(C)]` layouts at compile time.
//! - One file a family (`legacy`, `kquant`, `iquant`, `ternary`, `few_bits`, `fp4`), layouts and scalar dequantization side by side; a layout
//!   implements `block::Block`.
//! - `random` makes blocks of every type without quantizing.
//! - Dequantized values are bit-equal to gguf-py's, which is where the goldens come from, and to ggml's own code for types that gguf-py lacks.

pub(crate) mod block;
pub(crate) mod few_bits;
pub(crate) mod fp4;
pub(crate) mod iquant;
pub(crate) mod iquant_grids;
pub(crate) mod kquant;
pub(crate) mod legacy;
pub(crate) mod random;
pub(crate) mod ternary;

use crate::op::GgmlType::{self, *};
use crate::op::Weight;

/// Whether [`dequantize`] knows `ty`. The others are integers, f64, and the types that only activations have.
pub fn dequantizable(ty: GgmlType) -> bool {
    dequantizer(ty).is_ok()
}

/// Dequantizes whole blocks: `bytes.len() / ty.block_bytes()` blocks into as many × `ty.block_len()` values.
///
/// # Errors
/// If `ty` has no dequantization, or the lengths of `bytes` and `out` do not belong together.
pub fn dequantize(ty: GgmlType, bytes: &[u8], out: &mut [f32]) -> crate::Result<()> {
    let blocks = bytes.len() / ty.block_bytes();
    if bytes.len() != blocks * ty.block_bytes() || out.len() != blocks * ty.block_len() {
        return Err(crate::Error::input(format!(
            "{} bytes of {ty} are not {} values ({} bytes a block of {})",
            bytes.len(),
            out.len(),
            ty.block_bytes(),
            ty.block_len()
        )));
    }
    dequantizer(ty)?(bytes, out);
    Ok(())
}

/// Where a weight is first not finite, in words; `None` if it is finite everywhere.
///
/// # Errors
/// As [`dequantize`].
pub fn first_not_finite(weight: &Weight) -> crate::Result<Option<String>> {
    let mut values = vec![0.0; weight.cols];
    for (expert, row) in (0..weight.experts).flat_map(|expert| (0..weight.rows).map(move |row| (expert, row))) {
        dequantize(weight.ty, weight.row(expert, row), &mut values)?;
        if let Some(column) = values.iter().position(|w| !w.is_finite()) {
            let of = if weight.experts > 1 { format!("expert {expert}, ") } else { String::new() };
            return Ok(Some(format!("{of}row {row}, column {column}")));
        }
    }
    Ok(None)
}

/// A loop over whole blocks, which trusts that the lengths of its arguments belong together.
pub(crate) type Dequantizer = fn(&[u8], &mut [f32]);

/// # Errors
/// If `ty` has no dequantization.
pub(crate) fn dequantizer(ty: GgmlType) -> crate::Result<Dequantizer> {
    use block::dequantize_all as blocks;
    Ok(match ty {
        F32 => |bytes, out| convert(bytes, out, f32::from_le_bytes),
        F16 => |bytes, out| convert(bytes, out, block::f16),
        BF16 => |bytes, out| convert(bytes, out, block::bf16),
        Q4_0 => blocks::<legacy::BlockQ4_0, 32>,
        Q4_1 => blocks::<legacy::BlockQ4_1, 32>,
        Q5_0 => blocks::<legacy::BlockQ5_0, 32>,
        Q5_1 => blocks::<legacy::BlockQ5_1, 32>,
        Q8_0 => blocks::<legacy::BlockQ8_0, 32>,
        Q2_K => blocks::<kquant::BlockQ2K, 256>,
        Q3_K => blocks::<kquant::BlockQ3K, 256>,
        Q4_K => blocks::<kquant::BlockQ4K, 256>,
        Q5_K => blocks::<kquant::BlockQ5K, 256>,
        Q6_K => blocks::<kquant::BlockQ6K, 256>,
        IQ1_S => blocks::<iquant::BlockIQ1S, 256>,
        IQ1_M => blocks::<iquant::BlockIQ1M, 256>,
        IQ2_XXS => blocks::<iquant::BlockIQ2XXS, 256>,
        IQ2_XS => blocks::<iquant::BlockIQ2XS, 256>,
        IQ2_S => blocks::<iquant::BlockIQ2S, 256>,
        IQ3_XXS => blocks::<iquant::BlockIQ3XXS, 256>,
        IQ3_S => blocks::<iquant::BlockIQ3S, 256>,
        IQ4_NL => blocks::<iquant::BlockIQ4NL, 32>,
        IQ4_XS => blocks::<iquant::BlockIQ4XS, 256>,
        TQ1_0 => blocks::<ternary::BlockTQ1_0, 256>,
        TQ2_0 => blocks::<ternary::BlockTQ2_0, 256>,
        MXFP4 => blocks::<fp4::BlockMXFP4, 32>,
        NVFP4 => blocks::<fp4::BlockNVFP4, 64>,
        Q1_0 => blocks::<few_bits::BlockQ1_0, 128>,
        Q2_0 => blocks::<few_bits::BlockQ2_0, 64>,
        Q8_1 | Q8_K | I8 | I16 | I32 | I64 | F64 => {
            return Err(crate::Error::input(format!("{ty} has no dequantization")));
        }
    })
}

/// The types without blocks: `N` bytes a value.
fn convert<const N: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn([u8; N]) -> f32) {
    for (o, b) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *o = value(*b);
    }
}
