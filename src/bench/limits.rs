//! What a machine allows, and the least time that work takes under it.

use serde::Serialize;

use super::work::Work;
use crate::backend::cpu::{Level, probe};
use crate::backend::gpu::GpuBackend;
use crate::error::Result;

/// What a backend can read and compute at most, by a probe.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct MachineLimit {
    /// Threads of a CPU.
    pub threads: Option<usize>,
    /// Bytes a second from memory.
    pub read: f64,
    /// Floating-point operations a second, in f32; of `cpu:int8`, products of bytes and their additions.
    pub arithmetic: f64,
}

/// What a piece of work is bound by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BoundBy {
    /// Reading takes longer than multiplying.
    Read,
    /// Multiplying takes longer than reading.
    Arithmetic,
}

/// The least time that a sequence of operations takes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TimeBound {
    /// Seconds of the operations that reading binds, and of those that arithmetic binds.
    read: f64,
    arithmetic: f64,
}

impl TimeBound {
    /// Seconds.
    pub fn seconds(&self) -> f64 {
        self.read + self.arithmetic
    }

    /// What takes most of it.
    pub fn by(&self) -> BoundBy {
        if self.read >= self.arithmetic { BoundBy::Read } else { BoundBy::Arithmetic }
    }

    /// One operation after another.
    pub fn add(&mut self, limit: &MachineLimit, work: Work) {
        let (read, arithmetic) = (work.bytes as f64 / limit.read, work.flops as f64 / limit.arithmetic);
        if read >= arithmetic {
            self.read += read;
        } else {
            self.arithmetic += arithmetic;
        }
    }

    /// What all of `bounds` come to, over `repeat` repetitions of them.
    pub fn mean(bounds: &[Self], repeat: usize) -> Self {
        let sum = |of: fn(&Self) -> f64| bounds.iter().map(of).sum::<f64>() / repeat as f64;
        Self { read: sum(|b| b.read), arithmetic: sum(|b| b.arithmetic) }
    }

    /// Operations one after another: each takes as long as its reading or its arithmetic, whichever is longer.
    pub fn of(limit: &MachineLimit, work: impl Iterator<Item = Work>) -> Self {
        let mut bound = Self::default();
        work.for_each(|work| bound.add(limit, work));
        bound
    }
}

/// The limits of a CPU at `level` (`None`: of int8 activations at the best), by threads: one, two, four and so on, and `threads` last.
///
/// # Errors
/// The probes'.
pub fn of_cpu(level: Option<Level>, threads: usize) -> Result<Vec<MachineLimit>> {
    let mut counts: Vec<usize> = std::iter::successors(Some(1), |n| Some(n * 2)).take_while(|n| *n < threads).collect();
    counts.push(threads);
    let probe = |threads| {
        let (read, arithmetic) = (probe::read_bandwidth(threads)?, probe::arithmetic_peak(level, threads)?);
        Ok(MachineLimit { threads: Some(threads), read, arithmetic })
    };
    counts.into_iter().map(probe).collect()
}

/// The limit of an adapter, by kernels that only read and only multiply and add.
///
/// # Errors
/// The device's.
pub fn of_gpu(gpu: &mut GpuBackend) -> Result<MachineLimit> {
    Ok(MachineLimit { threads: None, read: gpu.read_bandwidth()?, arithmetic: gpu.arithmetic_peak()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_operation_is_bound_by_the_longer_of_its_two() {
        let limit = MachineLimit { threads: None, read: 10.0, arithmetic: 100.0 };
        let bound = TimeBound::of(&limit, [Work { bytes: 20, flops: 100 }, Work { bytes: 10, flops: 900 }].into_iter());
        assert_eq!((bound.seconds(), bound.by()), (2.0 + 9.0, BoundBy::Arithmetic));
        assert_eq!(TimeBound::of(&limit, std::iter::empty()).seconds(), 0.0);
    }

    #[test]
    fn a_cpu_is_probed_by_threads_up_to_those_used() {
        let threads: Vec<_> = of_cpu(Some(Level::Scalar), 3).unwrap().iter().map(|l| l.threads.unwrap()).collect();
        assert_eq!(threads, [1, 2, 3]);
        assert!(of_cpu(Some(Level::Scalar), 0).is_err());
    }
}
