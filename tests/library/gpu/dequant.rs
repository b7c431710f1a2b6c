//! Every type's WGSL dequantization over the golden blocks, whose scales include subnormal, zero, negative and large halves:
//! bit-equal to gguf-py's values.
//!
//! Bit-equality does not depend on the driver: products of scales and quants are exact in f32 (at most 11 + 8 + 6 bits), so a
//! contracted multiply-add rounds as the two operations do. One thing may differ: WGSL lets a device flush subnormal results to
//! zero, so where gguf-py's value is subnormal a zero is accepted too.

use super::common::*;
use safetensors::SafeTensors;
use twinscope::op::{GgmlType, Op, Weight};

#[test]
fn every_type_equals_gguf_py() {
    let file = std::fs::read("tests/golden/dequant.safetensors").unwrap();
    let st = SafeTensors::deserialize(&file).unwrap();
    let mut backend = gpu();
    for ty in TYPES {
        let (blocks, values) = if ty == GgmlType::F32 {
            // Not in the file, being what the others become; any bits will do.
            let values: Vec<u8> = st.tensor("Q6_K.values").unwrap().data().to_vec();
            (values.clone(), values)
        } else {
            let get = |part: &str| st.tensor(&format!("{ty}.{part}")).unwrap().data().to_vec();
            (get("blocks"), get("values"))
        };
        let count = values.len() / 4;
        // Rows of one pair, of several blocks, and of all of them.
        for cols in [ty.block_len().max(32), ty.block_len().max(32) * 4, count] {
            let weight = Weight::from_vec("golden", ty, [cols, count / cols, 1], blocks.clone()).unwrap();
            let tokens: Vec<u32> = (0..(count / cols) as u32).collect();
            let got = run(&mut backend, &Op::Embed { table: &weight, tokens: &tokens, scale: 1.0 }).to_f32();
            let mut flushed = 0;
            for (i, (got, want)) in got.iter().zip(values.as_chunks().0).enumerate() {
                let want = f32::from_le_bytes(*want);
                if want.is_subnormal() && *got == 0.0 {
                    flushed += 1;
                    continue;
                }
                assert_eq!(
                    got.to_bits(),
                    want.to_bits(),
                    "{ty} [{}, {cols}]: value {i} is {got}, not {want}",
                    count / cols
                );
            }
            assert!(flushed * 4 < count, "{ty}: {flushed} of {count} values are subnormal: that proves little");
        }
    }
}
