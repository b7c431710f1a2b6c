//! Every backend over the benchmark rows of the operation table: `cargo bench --bench kernels -- MatMul`.
//!
//! A time is that of one operation on operands that are where the backend wants them, up to the end of its work on the device.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};
use twinscope::backend::cases::bench_table;
use twinscope::backend::cpu::{CpuBackend, Level};
use twinscope::backend::gpu::{AdapterSelector, GpuBackend, GpuOptions};
use twinscope::backend::{Backend, Need};

fn bench<B: Backend>(c: &mut Criterion, mut backend: B) {
    let name = backend.info().backend;
    for case in bench_table() {
        let operands = case.build(1).expect("the table's types can be made");
        let op = operands.op();
        if let Some(w) = op.weight() {
            let need = Need { op: case.kind(), ty: w.ty, cols: w.cols, name: w.name.clone(), experts: None };
            let reasons = backend.unsupported(&[need]);
            if !reasons.is_empty() {
                println!("{name}: {case} not run: {}", reasons.join("; "));
                continue;
            }
            backend.prepare(std::slice::from_ref(w), &mut |_| {}).expect("weights fit");
        }
        let tensors = operands.upload(case.at(), &mut backend).expect("operands fit");
        let mut next = tensors.iter();
        let op = op.try_map(|_| Ok(next.next().expect("an upload for each operand").clone())).expect("never fails");
        let mut group = c.benchmark_group(format!("{:?}", case.kind()));
        group.throughput(Throughput::Elements(case.work()));
        group.bench_function(BenchmarkId::new(&name, case), |b| {
            b.iter(|| {
                let result = backend.run(case.at(), &op).expect("the case runs");
                backend.sync().expect("the device finishes");
                result
            });
        });
    }
}

fn main() {
    let mut c = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(10)
        .configure_from_args();
    for level in Level::available() {
        bench(&mut c, CpuBackend::new(Some(level), None).expect("an available level"));
    }
    bench(&mut c, GpuBackend::new(&AdapterSelector::Best, GpuOptions::default()).expect("an adapter"));
    c.final_summary();
}
