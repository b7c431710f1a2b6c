//! Scalar dequantization against gguf-py's values, bit by bit.

use safetensors::SafeTensors;
use twinscope::op::GgmlType;
use twinscope::quant::{dequantizable, dequantize};

static GOLDEN: &[u8] = include_bytes!("../golden/dequant.safetensors");

/// The raw blocks and the f32 values that gguf-py reads from them.
fn golden(ty: GgmlType) -> Option<(Vec<u8>, Vec<f32>)> {
    let file = SafeTensors::deserialize(GOLDEN).unwrap();
    let bytes = match file.tensor(&format!("{ty}.blocks")) {
        Ok(t) => t.data().to_vec(),
        // f32 values are their own bytes, so the file keeps none.
        Err(_) if ty == GgmlType::F32 => file.tensor("F16.values").unwrap().data().to_vec(),
        Err(_) => return None,
    };
    let values = if ty == GgmlType::F32 { "F16.values".into() } else { format!("{ty}.values") };
    let values = file.tensor(&values).unwrap();
    let values = values.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    Some((bytes, values))
}

#[test]
fn every_value_has_the_bits_of_the_golden() {
    for &ty in GgmlType::ALL {
        let Some((bytes, want)) = golden(ty) else {
            assert!(!dequantizable(ty), "{ty} has no golden");
            continue;
        };
        let mut got = vec![f32::NAN; want.len()];
        dequantize(ty, &bytes, &mut got).unwrap();
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            let place = format!("{ty} block {} weight {}", i / ty.block_len(), i % ty.block_len());
            assert_eq!(got.to_bits(), want.to_bits(), "{place}: {got:e}, expected {want:e}");
        }
    }
}

#[test]
fn lengths_that_do_not_belong_together_are_refused() {
    for &ty in GgmlType::ALL.iter().filter(|ty| dequantizable(**ty)) {
        let bytes = vec![0; 2 * ty.block_bytes()];
        let mut out = vec![0.0; 2 * ty.block_len()];
        assert!(dequantize(ty, &bytes, &mut out).is_ok(), "{ty}");
        assert!(dequantize(ty, &bytes, &mut out[1..]).is_err(), "{ty}");
        assert!(dequantize(ty, &bytes[1..], &mut out).is_err(), "{ty}");
        assert!(dequantize(ty, &[], &mut []).is_ok(), "{ty}");
    }
}

#[test]
fn a_type_without_dequantization_is_refused_by_name() {
    for ty in [GgmlType::Q8_1, GgmlType::Q8_K, GgmlType::I32, GgmlType::F64] {
        let error = dequantize(ty, &[], &mut []).unwrap_err().to_string();
        assert!(!dequantizable(ty) && error.contains(ty.name()), "{error}");
    }
}
