//! Watching a forward pass: which stages, their statistics, their values on disk.
//!
//! Design:
//! - [`Traced`] is a backend over a backend. It passes every call on as it is and changes no operand and no result: what
//!   is traced is what runs.
//! - A wanted stage is fetched when it has been made and taken later, so that copies travel while the next layer runs. The
//!   queue between the two is bounded in operations and in bytes.
//! - A [`StageObserver`] is told values in the order in which they were made, with the position of their first row.

pub mod capture;
pub mod import;
pub mod recorded;
pub mod select;
pub mod stats;
pub mod store;

use std::collections::VecDeque;

use crate::backend::{Backend, Ticket, pass_on};
use crate::error::Result;
use crate::op::{At, HostTensor, Op, Site, Stage};

/// Traces from elsewhere have no more layers, whatever they say: published models have 128 at most.
pub const MOST_LAYERS: u32 = 10_000;
/// Nor more positions: the longest published context is of ten million.
pub const MOST_POSITIONS: usize = 1 << 24;
/// Nor have they more experts in a layer: published models have 512 at most.
pub const MOST_EXPERTS: usize = 65_536;

/// Is told the values of the stages that it wants.
pub trait StageObserver {
    /// Whether it wants to see the values of `site`.
    fn wants(&self, site: Site) -> bool;

    /// `values` are the stage's, as the table shapes them; `at` says which position their first row is.
    fn observe(&mut self, at: At, values: HostTensor) -> Result<()>;
}

/// How many positions `values` of `stage` are of: its rows.
pub fn positions_in(stage: Stage, values: &HostTensor) -> usize {
    values.shape.get(stage.position_axis()).copied().unwrap_or(0)
}

/// Operations that may run before a fetched value is taken: about a layer, which has 23 stages.
const LAG: u64 = 24;
/// Bytes that may be under way to the host.
const IN_FLIGHT: usize = 64 << 20;
/// More operations than a backend keeps waiting for others to join them: those of two layers.
const PATIENT_LAG: u64 = 64;

/// A backend that shows an observer what another backend makes, and changes nothing.
pub struct Traced<B: Backend, O: StageObserver> {
    inner: B,
    observer: O,
    under_way: VecDeque<UnderWay>,
    bytes: usize,
    /// Operations run so far.
    clock: u64,
    /// Operations that may run before a value is taken, and bytes that may be under way.
    lag: u64,
    in_flight: usize,
}

struct UnderWay {
    at: At,
    ticket: Ticket,
    bytes: usize,
    made_at: u64,
}

impl<B: Backend, O: StageObserver> Traced<B, O> {
    /// `inner`, with `observer` looking.
    pub fn new(inner: B, observer: O) -> Self {
        let (under_way, bytes, clock) = (VecDeque::new(), 0, 0);
        Self { inner, observer, under_way, bytes, clock, lag: LAG, in_flight: IN_FLIGHT }
    }

    /// As [`Traced::new`], but takes values late enough that no backend has to run an operation sooner because somebody looks at its result,
    /// however many bytes that holds: what runs is what would run if nobody looked.
    pub fn patient(inner: B, observer: O) -> Self {
        Self { lag: PATIENT_LAG, in_flight: usize::MAX, ..Self::new(inner, observer) }
    }

    /// Tells the observer everything that is still under way, then gives both back.
    pub fn finish(mut self) -> Result<(B, O)> {
        self.drain()?;
        Ok((self.inner, self.observer))
    }

    /// Tells the observer everything that is still under way.
    pub fn drain(&mut self) -> Result<()> {
        while let Some(next) = self.under_way.pop_front() {
            self.deliver(next)?;
        }
        Ok(())
    }

    /// The observer.
    pub fn observer(&self) -> &O {
        &self.observer
    }
    /// The backend that runs.
    pub fn inner(&self) -> &B {
        &self.inner
    }

    fn deliver(&mut self, next: UnderWay) -> Result<()> {
        self.bytes -= next.bytes;
        let values = self.inner.take(next.ticket)?;
        self.observer.observe(next.at, values)
    }
}

impl<B: Backend, O: StageObserver> Backend for Traced<B, O> {
    pass_on!(inner: B);

    fn run(&mut self, at: At, op: &Op<'_, B::Tensor>) -> Result<B::Tensor> {
        let result = self.inner.run(at, op)?;
        self.clock += 1;
        if op.makes_stage() && self.observer.wants(at.site) {
            // 8 bytes an element is the most there is; what counts is that the queue has a bound.
            let bytes = self.inner.shape(&result).iter().product::<usize>().saturating_mul(8);
            while self.bytes.saturating_add(bytes) > self.in_flight
                && let Some(next) = self.under_way.pop_front()
            {
                self.deliver(next)?;
            }
            let ticket = self.inner.fetch(&result)?;
            self.bytes += bytes;
            self.under_way.push_back(UnderWay { at, ticket, bytes, made_at: self.clock });
        }
        while let Some(next) = self.under_way.pop_front_if(|u| u.made_at + self.lag <= self.clock) {
            self.deliver(next)?;
        }
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use crate::backend::{BackendInfo, Contract, HostTickets, Need, Order};
    use crate::op::{Data, GgmlType, OpKind, Weight};

    /// A backend of one operation or so: every result is a row of ones for each token, and it logs what it is asked.
    #[derive(Default)]
    struct Ones {
        tickets: HostTickets,
        log: Vec<&'static str>,
        out: usize,
        most_out: usize,
    }
    impl Backend for Ones {
        type Tensor = HostTensor;
        fn info(&self) -> BackendInfo {
            let text = String::new;
            BackendInfo {
                backend: "ones".into(),
                adapter: text(),
                driver: text(),
                software: false,
                contract: text(),
                tuning: None,
            }
        }
        fn contract(&self, _: OpKind) -> Contract {
            Contract::ieee_f32(Order::Sequential)
        }
        fn unsupported(&self, _: &[Need]) -> Vec<String> {
            vec![]
        }
        fn prepare(&mut self, _: &[Arc<Weight>], _: &mut dyn FnMut(u64)) -> Result<()> {
            Ok(())
        }
        fn alloc(&mut self, shape: &[usize]) -> Result<HostTensor> {
            Ok(HostTensor::f32(shape, vec![0.0; shape.iter().product()]))
        }
        fn upload(&mut self, values: &HostTensor) -> Result<HostTensor> {
            Ok(values.clone())
        }
        fn shape(&self, tensor: &HostTensor) -> Vec<usize> {
            tensor.shape.clone()
        }
        fn run(&mut self, _: At, op: &Op<'_, HostTensor>) -> Result<HostTensor> {
            self.log.push("run");
            Ok(match op {
                Op::Embed { tokens, .. } => HostTensor::f32(&[tokens.len(), 1], vec![1.0; tokens.len()]),
                Op::Rows { rows, .. } => HostTensor::f32(&[*rows, 1], vec![1.0; *rows]),
                other => other.inputs()[0].clone(),
            })
        }
        fn fetch(&mut self, tensor: &HostTensor) -> Result<Ticket> {
            self.log.push("fetch");
            self.out += 1;
            self.most_out = self.most_out.max(self.out);
            Ok(self.tickets.put(tensor.clone()))
        }
        fn take(&mut self, ticket: Ticket) -> Result<HostTensor> {
            self.log.push("take");
            self.out -= 1;
            self.tickets.take(ticket)
        }
        fn sync(&mut self) -> Result<()> {
            Ok(())
        }
    }

    #[derive(Default)]
    struct Seen(Vec<(At, usize)>);
    impl StageObserver for Seen {
        fn wants(&self, site: Site) -> bool {
            site.stage != Stage::FinalNorm
        }
        fn observe(&mut self, at: At, values: HostTensor) -> Result<()> {
            assert!(matches!(values.data, Data::F32(_)));
            self.0.push((at, values.shape[0]));
            Ok(())
        }
    }

    fn table() -> Arc<Weight> {
        Weight::from_vec("table", GgmlType::F32, [1, 1, 1], vec![0; 4]).unwrap()
    }

    #[test]
    fn values_arrive_in_order_with_their_positions_and_late() {
        let table = table();
        let mut traced = Traced::new(Ones::default(), Seen::default());
        // A prompt, two calls that go on from it, and another prompt from the first position.
        let calls = [(0, &[1u32, 2, 3][..]), (3, &[4, 5]), (5, &[6]), (0, &[7, 8])];
        for (start, tokens) in calls {
            let mut x = traced
                .run(At::model(Stage::Embedding, start), &Op::Embed { table: &table, tokens, scale: 1.0 })
                .unwrap();
            for layer in 0..40 {
                let at = At::layer(layer, Stage::LayerOut, start);
                x = traced.run(at, &Op::Add { a: x.clone(), b: x }).unwrap();
            }
            let last = start + tokens.len() - 1;
            let rows = Op::Rows { x, start: tokens.len() - 1, rows: 1 };
            let x = traced.run(At::layer(39, Stage::LayerOut, last), &rows).unwrap();
            let x =
                traced.run(At::model(Stage::FinalNorm, last), &Op::RouterProbs { logits: x, sigmoid: false }).unwrap();
            traced.run(At::model(Stage::Logits, last), &Op::RouterProbs { logits: x, sigmoid: false }).unwrap();
        }
        let (ones, seen) = traced.finish().unwrap();
        let fetched = ones.log.iter().filter(|l| **l == "fetch").count();
        assert_eq!(fetched, calls.len() * 42, "only wanted stages are fetched");
        assert_eq!(ones.out, 0);
        assert!((20..=26).contains(&ones.most_out), "{} under way", ones.most_out);
        let runs: Vec<_> = seen.0.chunks(42).collect();
        assert_eq!(runs.len(), calls.len());
        for (run, (start, tokens)) in runs.iter().zip(calls) {
            let rows = tokens.len();
            assert_eq!(run[0], (At::model(Stage::Embedding, start), rows));
            for layer in 0..40 {
                assert_eq!(run[1 + layer], (At::layer(layer, Stage::LayerOut, start), rows));
            }
            assert_eq!(run[41], (At::model(Stage::Logits, start + rows - 1), 1), "logits of the last row");
        }
    }

    #[test]
    fn bytes_under_way_are_bounded() {
        let tokens = vec![0u32; 1 << 20]; // 8 MiB a tensor at most
        let table = table();
        let mut traced = Traced::new(Ones::default(), Seen::default());
        let mut x = traced
            .run(At::model(Stage::Embedding, 0), &Op::Embed { table: &table, tokens: &tokens, scale: 1.0 })
            .unwrap();
        for layer in 0..20 {
            x = traced.run(At::layer(layer, Stage::LayerOut, 0), &Op::Add { a: x.clone(), b: x }).unwrap();
        }
        let (ones, seen) = traced.finish().unwrap();
        assert_eq!(ones.most_out, IN_FLIGHT / (8 << 20));
        assert_eq!(seen.0.len(), 21);
    }
}
