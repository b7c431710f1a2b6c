use std::time::Instant;
use twinscope::backend::Backend;
use twinscope::backend::cases::{self, bench_table};
use twinscope::backend::gpu::{AdapterSelector, GpuBackend, GpuOptions};
fn main() {
    let filter = std::env::args().nth(1).unwrap_or_default();
    for lanes in [false, true] {
        let mut gpu = GpuBackend::new(
            &AdapterSelector::Best,
            GpuOptions { checks: Some(false), lanes: Some(lanes), ..Default::default() },
        )
        .unwrap();
        for case in bench_table() {
            let name = format!("{case}");
            if !name.contains(&filter) {
                continue;
            }
            let operands = case.build(1).unwrap();
            let tensors = operands.upload(case.site(), &mut gpu).unwrap();
            let mut next = tensors.iter();
            let op = operands.op().try_map(|_| Ok(next.next().unwrap().clone())).unwrap();
            let r = gpu.run(case.site(), &op).unwrap();
            let v = gpu.read(&r).unwrap();
            let hash =
                v.to_f64().iter().fold(0u64, |h, x| (h ^ x.to_bits()).wrapping_mul(0x100000001b3).rotate_left(5));
            let mut best = f64::MAX;
            let start = Instant::now();
            let mut n = 0;
            while start.elapsed().as_secs_f64() < 1.5 || n < 5 {
                let t = Instant::now();
                gpu.run(case.site(), &op).unwrap();
                gpu.sync().unwrap();
                best = best.min(t.elapsed().as_secs_f64());
                n += 1;
            }
            println!("{lanes} {hash:016x} {:9.3} ms {name}", best * 1e3);
        }
    }
    // every case of the table, by hash: bits before and after
    if filter.is_empty() {
        for lanes in [false, true] {
            let mut gpu = GpuBackend::new(
                &AdapterSelector::Best,
                GpuOptions { checks: Some(false), lanes: Some(lanes), ..Default::default() },
            )
            .unwrap();
            for (i, case) in cases::table().iter().enumerate() {
                if format!("{case}").contains("Nan") {
                    continue;
                }
                let Ok(operands) = case.build(7) else { continue };
                let Ok(v) = cases::run(&mut gpu, case.site(), &operands) else { continue };
                let hash =
                    v.to_f64().iter().fold(0u64, |h, x| (h ^ x.to_bits()).wrapping_mul(0x100000001b3).rotate_left(5));
                let _ = i;
                println!("T{lanes} {hash:016x} {case}");
            }
        }
    }
}
