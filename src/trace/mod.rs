//! Watching a forward pass: which stages, their statistics, their values on disk.
//!
//! Design:
//! - [`Traced`] is a backend over a backend. It passes every call on as it is and changes no operand and no result: what
//!   is traced is what runs.
//! - A wanted stage is fetched when it has been made and taken later, so that copies travel while the next layer runs. The
//!   queue between the two is bounded in operations and in bytes.
//! - An [`Observer`] is told values in the order in which they were made, with the position of their first row.

pub mod capture;
pub mod import;
pub mod recorded;
pub mod select;
pub mod stats;
pub mod store;

use std::collections::VecDeque;

use crate::backend::{Backend, Ticket, pass_on};
use crate::error::{Error, Result};
use crate::op::{Dim, HostTensor, Op, Site, Stage};

/// Is told the values of the stages that it wants.
pub trait Observer {
    fn wants(&self, site: Site) -> bool;

    /// `values` are the stage's, as the table shapes them; their first row is position `start` of the run.
    fn observe(&mut self, site: Site, start: usize, values: HostTensor) -> Result<()>;
}

/// How many positions `values` of `stage` are of: its rows.
pub fn positions_in(stage: Stage, values: &HostTensor) -> usize {
    let axis = stage.info().shape.iter().position(|d| *d == Dim::T).expect("every stage has an axis of positions");
    values.shape.get(axis).copied().unwrap_or(0)
}

/// Operations that may run before a fetched value is taken: about a layer, which has 23 stages.
const LAG: u64 = 24;
/// Bytes that may be under way to the host.
const IN_FLIGHT: usize = 64 << 20;

/// A backend that shows an observer what another backend makes, and changes nothing.
pub struct Traced<B: Backend, O: Observer> {
    inner: B,
    observer: O,
    under_way: VecDeque<UnderWay>,
    bytes: usize,
    /// Operations run so far.
    clock: u64,
    /// First position of this call, positions in it, and the first of its rows that are still computed.
    start: usize,
    tokens: usize,
    first_row: usize,
}

struct UnderWay {
    site: Site,
    start: usize,
    ticket: Ticket,
    bytes: usize,
    made_at: u64,
}

impl<B: Backend, O: Observer> Traced<B, O> {
    pub fn new(inner: B, observer: O) -> Self {
        let (under_way, bytes, clock) = (VecDeque::new(), 0, 0);
        Self { inner, observer, under_way, bytes, clock, start: 0, tokens: 0, first_row: 0 }
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

    pub fn observer(&self) -> &O {
        &self.observer
    }
    pub fn inner(&self) -> &B {
        &self.inner
    }

    fn deliver(&mut self, next: UnderWay) -> Result<()> {
        self.bytes -= next.bytes;
        let values = self.inner.take(next.ticket)?;
        self.observer.observe(next.site, next.start, values)
    }

    /// Follows which positions the rows of results are.
    fn follow(&mut self, site: Site, op: &Op<'_, B::Tensor>) -> Result<()> {
        match op {
            Op::Embed { tokens, .. } => {
                self.start += self.tokens;
                self.tokens = tokens.len();
                self.first_row = 0;
            }
            // The last rows of the batch, for logits that only some positions need.
            Op::Rows { x, start, .. } if self.inner.shape(x).first() == Some(&self.tokens) => self.first_row = *start,
            Op::Rope { start, .. } if *start != self.start => {
                return Err(Error::cannot_run(format!(
                    "{site}: the call starts at position {start}, the tracer counted {}; a tracer follows one run from its \
                     first position",
                    self.start
                )));
            }
            _ => {}
        }
        Ok(())
    }
}

impl<B: Backend, O: Observer> Backend for Traced<B, O> {
    pass_on!(inner: B);

    fn run(&mut self, site: Site, op: &Op<'_, B::Tensor>) -> Result<B::Tensor> {
        self.follow(site, op)?;
        let result = self.inner.run(site, op)?;
        self.clock += 1;
        if op.makes_stage() && self.observer.wants(site) {
            // 8 bytes an element is the most there is; what counts is that the queue has a bound.
            let bytes = self.inner.shape(&result).iter().product::<usize>().saturating_mul(8);
            while self.bytes.saturating_add(bytes) > IN_FLIGHT
                && let Some(next) = self.under_way.pop_front()
            {
                self.deliver(next)?;
            }
            let ticket = self.inner.fetch(&result)?;
            self.bytes += bytes;
            let start = self.start + self.first_row;
            self.under_way.push_back(UnderWay { site, start, ticket, bytes, made_at: self.clock });
        }
        while let Some(next) = self.under_way.pop_front_if(|u| u.made_at + LAG <= self.clock) {
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
            BackendInfo { backend: "ones".into(), adapter: text(), driver: text(), software: false, contract: text() }
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
        fn run(&mut self, _: Site, op: &Op<'_, HostTensor>) -> Result<HostTensor> {
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
    struct Seen(Vec<(Site, usize, usize)>);
    impl Observer for Seen {
        fn wants(&self, site: Site) -> bool {
            site.stage != Stage::FinalNorm
        }
        fn observe(&mut self, site: Site, start: usize, values: HostTensor) -> Result<()> {
            assert!(matches!(values.data, Data::F32(_)));
            self.0.push((site, start, values.shape[0]));
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
        for tokens in [&[1u32, 2, 3][..], &[4, 5], &[6]] {
            let mut x = traced.run(Site::model(Stage::Embedding), &Op::Embed { table: &table, tokens }).unwrap();
            for layer in 0..40 {
                x = traced.run(Site::layer(layer, Stage::LayerOut), &Op::Add { a: x.clone(), b: x }).unwrap();
            }
            let (start, rows) = (tokens.len() - 1, 1);
            let x = traced.run(Site::model(Stage::FinalNorm), &Op::Rows { x, start, rows }).unwrap();
            let x = traced.run(Site::model(Stage::FinalNorm), &Op::RouterProbs { logits: x }).unwrap();
            traced.run(Site::model(Stage::Logits), &Op::RouterProbs { logits: x }).unwrap();
        }
        let (ones, seen) = traced.finish().unwrap();
        assert_eq!(ones.log.iter().filter(|l| **l == "fetch").count(), 3 * 42, "only wanted stages are fetched");
        assert_eq!(ones.out, 0);
        assert!((20..=26).contains(&ones.most_out), "{} under way", ones.most_out);
        let runs: Vec<_> = seen.0.chunks(42).collect();
        assert_eq!(runs.len(), 3);
        for (run, (start, tokens)) in runs.iter().zip([(0, 3), (3, 2), (5, 1)]) {
            assert_eq!(run[0], (Site::model(Stage::Embedding), start, tokens));
            for layer in 0..40 {
                assert_eq!(run[1 + layer], (Site::layer(layer, Stage::LayerOut), start, tokens));
            }
            assert_eq!(run[41], (Site::model(Stage::Logits), start + tokens - 1, 1), "logits of the last row");
        }
    }

    #[test]
    fn bytes_under_way_are_bounded() {
        let tokens = vec![0u32; 1 << 20]; // 8 MiB a tensor at most
        let table = table();
        let mut traced = Traced::new(Ones::default(), Seen::default());
        let mut x = traced.run(Site::model(Stage::Embedding), &Op::Embed { table: &table, tokens: &tokens }).unwrap();
        for layer in 0..20 {
            x = traced.run(Site::layer(layer, Stage::LayerOut), &Op::Add { a: x.clone(), b: x }).unwrap();
        }
        let (ones, seen) = traced.finish().unwrap();
        assert_eq!(ones.most_out, IN_FLIGHT / (8 << 20));
        assert_eq!(seen.0.len(), 21);
    }

    #[test]
    fn a_run_that_starts_over_is_refused() {
        let table = table();
        let mut traced = Traced::new(Ones::default(), Seen::default());
        let mut call = |start| {
            let x = traced.run(Site::model(Stage::Embedding), &Op::Embed { table: &table, tokens: &[1, 2] })?;
            traced.run(Site::layer(0, Stage::QRope), &Op::Rope { x, start, head_dim: 2, base: 1e4 })
        };
        assert!(call(0).is_ok());
        assert!(call(0).unwrap_err().to_string().contains("starts at position 0, the tracer counted 2"));
    }
}
