//! The values of matrices that are asked for time and again. A comparison multiplies by the same few matrices over and over: each decode step, and a
//! dozen draws of a hidden value; reading their blocks takes longer than the products with a few tokens.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use rayon::prelude::*;

use super::dequant;
use crate::error::Result;
use crate::op::Weight;

/// Bytes that all values together take at most.
const BUDGET: usize = 256 << 20;
/// Bytes of the largest matrix of which values are kept. Of larger ones too few would be, and the next would push out the last.
const LARGEST: usize = 8 << 20;
/// A matrix is read from its blocks so many times before its values are kept: one stage of a comparison asks twice.
const BEFORE: u32 = 2;
/// Matrices of which is known how often they were asked for.
const KNOWN: usize = 1 << 16;

/// A matrix that was asked for.
#[derive(Default)]
struct Asked {
    times: u32,
    /// When it was asked for last.
    last: u64,
    values: Option<Arc<[f64]>>,
}

/// By the weight's id and the expert: an id is of one weight, as long as the process lives.
#[derive(Default)]
struct Table {
    asked: HashMap<(usize, usize), Asked>,
    clock: u64,
    bytes: usize,
}

static TABLE: LazyLock<Mutex<Table>> = LazyLock::new(Mutex::default);

impl Table {
    /// The values if they are kept, or how often the matrix was asked for before.
    fn ask(&mut self, key: (usize, usize)) -> std::result::Result<Arc<[f64]>, u32> {
        if self.asked.len() >= KNOWN {
            self.asked.retain(|_, asked| asked.values.is_some());
        }
        self.clock += 1;
        let asked = self.asked.entry(key).or_default();
        asked.last = self.clock;
        asked.times += 1;
        asked.values.clone().ok_or(asked.times - 1)
    }

    fn keep(&mut self, key: (usize, usize), values: &Arc<[f64]>) {
        let asked = self.asked.entry(key).or_default();
        if asked.values.replace(Arc::clone(values)).is_none() {
            self.bytes += size_of_val(&**values);
        }
        while self.bytes > BUDGET {
            let kept = self.asked.iter().filter(|(_, asked)| asked.values.is_some());
            let Some(oldest) = kept.min_by_key(|(_, asked)| asked.last).map(|(key, _)| *key) else { break };
            self.bytes -= self.asked.remove(&oldest).and_then(|asked| asked.values).map_or(0, |v| size_of_val(&*v));
        }
    }
}

/// The matrix of an expert [N, K], unless it is large or was seldom asked for.
///
/// # Errors
/// If its type is unreadable.
pub fn values(weight: &Weight, expert: usize) -> Result<Option<Arc<[f64]>>> {
    let (key, len) = ((weight.id, expert), weight.rows * weight.cols);
    if len == 0 || len > LARGEST / size_of::<f64>() {
        return Ok(None);
    }
    // Not held while values are read: that is done in parallel, and a thread that waits for the others may come here again.
    let table = || TABLE.lock().unwrap_or_else(PoisonError::into_inner);
    match table().ask(key) {
        Ok(values) => return Ok(Some(values)),
        Err(before) if before < BEFORE => return Ok(None),
        Err(_) => {}
    }
    let mut values = vec![0.0; len];
    let rows = values.par_chunks_exact_mut(weight.cols).enumerate();
    rows.try_for_each(|(row, values)| dequant::row(weight.ty, weight.row(expert, row), values))?;
    let values: Arc<[f64]> = values.into();
    table().keep(key, &values);
    Ok(Some(values))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::GgmlType;

    #[test]
    fn what_is_asked_for_again_is_what_the_blocks_say() {
        let bytes: Vec<u8> = (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let weight = Weight::from_vec("w", GgmlType::F32, [3, 1, 2], bytes).unwrap();
        for _ in 0..BEFORE {
            assert!(values(&weight, 1).unwrap().is_none());
        }
        let first = values(&weight, 1).unwrap().unwrap();
        assert_eq!(&first[..], [3.0, 4.0, 5.0]);
        assert!(Arc::ptr_eq(&first, &values(&weight, 1).unwrap().unwrap()));
        assert!(values(&weight, 0).unwrap().is_none(), "another expert is another matrix");
    }

    #[test]
    fn the_budget_holds_and_the_oldest_go_first() {
        let mut table = Table::default();
        let matrix: Arc<[f64]> = vec![0.0; LARGEST / 8].into();
        let fit = BUDGET / LARGEST;
        for i in 0..=fit {
            let _ = table.ask((i, 0));
            table.keep((i, 0), &matrix);
            let _ = table.ask((0, 0));
        }
        assert_eq!(table.bytes, BUDGET);
        assert!(table.ask((0, 0)).is_ok(), "asked for in between");
        assert!(table.ask((1, 0)).is_err(), "the oldest");
        assert!(table.ask((fit, 0)).is_ok());
    }
}
