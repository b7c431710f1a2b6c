//! Tests of tokens side by side: where each value is, and what is where there is none.

use super::*;
use crate::backend::cpu::kernels::PLAIN;
use crate::backend::cpu::simd::Line;

#[test]
fn every_token_is_in_one_strip_with_all_of_its_columns_and_zeros_where_there_is_none() {
    for kernels in backends(1).iter().map(|b| b.kernels).chain([&PLAIN]) {
        for (k, tokens) in [1, 15, 16, 40].into_iter().flat_map(|k| (1..70).map(move |tokens| (k, tokens))) {
            let rows: Vec<Vec<f32>> =
                (0..tokens).map(|t| (0..k).map(|c| (1 + t * 1000 + c) as f32).collect()).collect();
            let rows: Vec<&[f32]> = rows.iter().map(|row| &row[..]).collect();
            let mut lines = vec![Line([f32::NAN; 16]); 70 * 40];
            let packed = kernels.pack(&rows, &mut lines);
            let mut rest = &rows[..];
            for (strip, lines) in packed.strips() {
                let (these, others) = rest.split_at(strip.tokens);
                rest = others;
                for (t, row) in these.iter().enumerate() {
                    for (c, value) in row.iter().enumerate() {
                        let found = match strip.registers {
                            0 => lines[c / 16 * strip.tokens + t].0[c % 16],
                            registers => lines[c * registers + t / 16].0[t % 16],
                        };
                        assert_eq!(found, *value, "{} {tokens} × {k}: token {t} of {strip:?}, {c}", kernels.level);
                    }
                }
                let values = lines.iter().flat_map(|line| line.0);
                assert_eq!(values.filter(|x| *x != 0.0).count(), strip.tokens * k, "{strip:?}");
            }
            assert!(rest.is_empty());
        }
    }
}
