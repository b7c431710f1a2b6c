//! The operations of linear attention against float64 over ragged shapes, with bounds derived as those of `ops`.

use std::sync::Arc;

use super::common::*;
use crate::families::open;
use twinscope::backend::cpu::{CpuBackend, Level};
use twinscope::backend::gpu::{GpuBackend, GpuOptions, GpuTensor};
use twinscope::backend::{AnyBackend, Backend, Erased, Need, cases};
use twinscope::diff::run::driver::{DiffOptions, Sides, diff};
use twinscope::model::{LogitRows, Model, Session, forward};
use twinscope::op::{GateActivation, GgmlType, HostTensor, Op, OpKind};

/// What rounding may make of sigmoid(x) · y: exp, a sum, a division, products.
fn sigmoid_factor(gpu: &GpuBackend, op: OpKind, x: f64) -> f64 {
    let contract = gpu.contract(op);
    gamma(contract.exp_base_ulp + contract.exp_slope_ulp * x.abs() + contract.div_ulp + 3.0)
}

/// `t` with this value at `at`.
fn with(t: &HostTensor, at: usize, value: f32) -> HostTensor {
    let mut values = t.to_f32();
    values[at] = value;
    HostTensor::f32(&t.shape, values)
}

#[test]
fn convolutions() {
    let pieces = gpu_with(GpuOptions { weight_binding: Some(1024), ..Default::default() });
    let mut sets = each_set();
    sets.push(("pieces", pieces));
    for (set, gpu) in &mut sets {
        let mut r = Random::new(31);
        for (positions, channels, kernel, start) in
            [(1, 1, 4, 0), (3, 65, 1, 2), (9, 130, 3, 0), (2, 64, 4, 300), (70, 33, 80, 1), (1, 20, 100, 3)]
        {
            let x = r.tensor(&[positions, channels]);
            // What is stored of the call's own positions, and after them, is not what is read.
            let cache = r.tensor(&[start + positions + 3, channels]);
            let weight = r.weight(GgmlType::F32, [kernel, channels, 1]);
            let op = Op::Conv { x: &x, cache: &cache, weight: &weight, start };
            let (x, cache) = (x.to_f64(), cache.to_f64());
            let taps: Vec<f32> = weight.f32s().collect();
            let bound = |i: usize| {
                let (t, c) = (i / channels, i % channels);
                let value = |s: usize| if s < start { cache[s * channels + c] } else { x[(s - start) * channels + c] };
                let terms = (0..kernel).filter_map(|j| {
                    let position = (start + t + j + 1).checked_sub(kernel)?;
                    Some(f64::from(taps[c * kernel + j]) * value(position))
                });
                let (sum, magnitude) = terms.fold((0.0, 0.0), |(sum, all), term| (sum + term, all + term.abs()));
                // silu's slope is at most 1.1; below 2^-126 a factor may be 0.
                1.1 * gamma(kernel as f64 + 1.0) * magnitude
                    + sigmoid_factor(gpu, OpKind::Conv, sum) * sum.abs()
                    + f64::from(f32::MIN_POSITIVE) * 1e4
            };
            let bounds: Vec<f64> = (0..positions * channels).map(bound).collect();
            let what = format!("{set}: {positions} positions from {start}, {channels} channels, kernel {kernel}");
            within(&what, &run(gpu, &op), &exact(&op), |i| bounds[i]);
        }
    }
}

#[test]
fn norms_of_heads() {
    let mut gpu = gpu();
    let mut r = Random::new(32);
    for (positions, cols, first, heads, head_dim) in
        [(1, 1, 0, 1, 1), (3, 70, 5, 1, 63), (2, 600, 128, 3, 128), (33, 85, 0, 5, 17), (1, 1024, 512, 2, 256)]
    {
        let x = r.tensor(&[positions, cols]);
        let op = Op::L2Norm { x: &x, first, heads, head_dim, eps: 1e-6 };
        let contract = gpu.contract(OpKind::L2Norm);
        // Half of the relative error of the sum + eps (squares, sum, sum), the root, a multiplication.
        let factor = gamma((contract.order.depth(head_dim) as f64 + 2.0) / 2.0 + contract.rsqrt_ulp + 1.0);
        let want = exact(&op);
        let what = format!("{positions} positions, {heads} heads of {head_dim} from column {first} of {cols}");
        within(&what, &run(&mut gpu, &op), &want, |i| factor * want[i].abs());
    }
    let zeros = HostTensor::f32(&[1, 64], vec![0.0; 64]);
    let got = run(&mut gpu, &Op::L2Norm { x: &zeros, first: 0, heads: 1, head_dim: 64, eps: 1e-6 });
    assert!(got.to_f32().iter().all(|v| *v == 0.0));
}

/// Also where e^−|x| is too small for 1 + e^−|x| to differ from 1, and where it is no number at all.
#[test]
fn decays_at_every_size() {
    let mut gpu = gpu();
    let mut r = Random::new(33);
    let cols = 65;
    let weight = r.weight(GgmlType::F32, [cols, 1, 1]);
    let steps: Vec<f32> = (0..cols * 40).map(|i| (i as f32 - 1300.0) * 0.08).collect();
    let random = r.tensor(&[7, cols]);
    for x in [HostTensor::f32(&[40, cols], steps), random] {
        let op = Op::Decay { x: &x, weight: &weight };
        let contract = gpu.contract(OpKind::Decay);
        let (want, x) = (exact(&op), x.to_f64());
        let bound = |i: usize| {
            // exp, 5 ULP of the logarithm, a sum, a product. Below 2^-126 the exponential may be 0.
            let exp = contract.exp_base_ulp + contract.exp_slope_ulp * x[i].abs();
            gamma(exp + 5.0 + 2.0) * want[i].abs() + f64::from(f32::MIN_POSITIVE) * 1e2
        };
        within("decay", &run(&mut gpu, &op), &want, bound);
    }
    let x = HostTensor::f32(&[1, 3], vec![f32::INFINITY, f32::NEG_INFINITY, f32::NAN]);
    let ones =
        twinscope::op::Weight::from_vec("ones", GgmlType::F32, [3, 1, 1], [1f32; 3].map(f32::to_le_bytes).concat());
    let got = run(&mut gpu, &Op::Decay { x: &x, weight: &ones.unwrap() }).to_f32();
    assert!(got[0] == f32::INFINITY && got[1] == 0.0 && got[2].is_nan(), "{got:?}");
}

/// A position's error of a column of the state is passed on and never grows, because e^decay ≤ 1, beta < 1 and k has length 1: the error of
/// each position, of the size of the state and of what is added, is added to those before.
#[test]
fn delta_rules() {
    let mut gpu = gpu();
    let contract = gpu.contract(OpKind::DeltaRule);
    let delta_rules = cases::table().into_iter().filter(|case| case.kind() == OpKind::DeltaRule);
    for (i, case) in delta_rules.enumerate() {
        let operands = case.build(900 + i as u64).unwrap();
        let op = operands.op();
        let Op::DeltaRule { q, v, decay, beta, start, head_dim, .. } = op else { unreachable!() };
        let (positions, heads, depth) = (q.shape[0], decay.cols(), contract.order.depth(head_dim) as f64);
        let (cols, first) = (v.cols(), v.cols() - heads * head_dim);
        let [v, decay, beta] = [v, decay, beta].map(HostTensor::to_f64);
        let mut bounds = vec![0.0; positions * heads * head_dim];
        for column in 0..heads * head_dim {
            let head = column / head_dim;
            let (mut length, mut error) = (0.0, 0.0);
            for s in 0..start + positions {
                let (added, at) = (v[s * cols + first + column].abs(), s * heads + head);
                length += beta[at] * added;
                let exp = contract.exp_base_ulp + contract.exp_slope_ulp * decay[at].abs();
                // The exponential and its product, Sᵀk in its order, v − Sᵀk, its product with beta, and that with k and its sum.
                error += gamma(exp + depth + 8.0) * 2.0 * (length + added);
                if s >= start {
                    let of_sum = gamma(depth + 3.0) * length;
                    bounds[(s - start) * heads * head_dim + column] = (error + of_sum) / (head_dim as f64).sqrt();
                }
            }
        }
        within(&case.to_string(), &cases::run(&mut gpu, case.at(), &operands).unwrap(), &exact(&op), |i| {
            bounds[i] + f64::from(f32::MIN_POSITIVE) * 1e4
        });
    }
}

/// Rows of q, k, v, decay and beta of a sequence, and its caches of the last four.
struct DeltaRows {
    head_dim: usize,
    tiled: bool,
    rows: [HostTensor; 5],
    caches: [GpuTensor; 4],
}

impl DeltaRows {
    /// Of 2 key heads and 4 value heads.
    fn new(gpu: &mut GpuBackend, seed: u64, positions: usize, head_dim: usize) -> Self {
        let mut r = Random::new(seed);
        let mut rows = [2 * head_dim, 2 * head_dim, 5 * head_dim, 4, 4].map(|cols| r.tensor(&[positions, cols]));
        rows[3] = HostTensor::f32(&[positions, 4], (0..4 * positions).map(|_| -r.unit().abs()).collect());
        rows[4] = HostTensor::f32(&[positions, 4], (0..4 * positions).map(|_| r.unit().abs()).collect());
        for keys in &mut rows[..2] {
            let values = keys.to_f32().iter().map(|x| x.clamp(-1.0, 1.0) / (head_dim as f32).sqrt()).collect();
            *keys = HostTensor::f32(&keys.shape, values);
        }
        let caches = [1, 2, 3, 4].map(|n| gpu.alloc(&rows[n].shape).unwrap());
        Self { head_dim, tiled: true, rows, caches }
    }

    fn store(&self, gpu: &mut GpuBackend, n: usize, start: usize, positions: usize) {
        let x = self.rows[n].take(0, &(start..start + positions).collect::<Vec<_>>());
        let x = gpu.upload(&x).unwrap();
        gpu.run(at(), &Op::Store { cache: self.caches[n - 1].clone(), x, start }).unwrap();
    }

    /// The delta rule at `positions` from `start` on, of what is stored, and at how many of the positions before them its kernel did not begin.
    fn run(&self, gpu: &mut GpuBackend, start: usize, positions: usize) -> (HostTensor, u32) {
        let q = self.rows[0].take(0, &(start..start + positions).collect::<Vec<_>>());
        let q = gpu.upload(&q).unwrap();
        let [k, v, decay, beta] = self.caches.clone();
        let op = Op::DeltaRule { q, k, v, decay, beta, start, head_dim: self.head_dim, tiled: self.tiled };
        gpu.record().unwrap();
        let y = gpu.run(at(), &op).unwrap();
        let dispatches = gpu.recorded().unwrap();
        let [dispatch] = &dispatches[..] else { panic!("{} dispatches", dispatches.len()) };
        assert_eq!((dispatch.kernel.as_str(), dispatch.params[5]), ("delta_rule", start as u32));
        (gpu.read(&y).unwrap(), dispatch.params[4])
    }

    /// The same of a sequence that was just filled with what is stored in this one.
    fn anew(&self, gpu: &mut GpuBackend, start: usize, positions: usize) -> HostTensor {
        let caches = self.caches.clone().map(|cache| {
            let values = gpu.read(&cache).unwrap();
            gpu.upload(&values).unwrap()
        });
        let (y, kept) = Self { caches, rows: self.rows.clone(), ..*self }.run(gpu, start, positions);
        assert_eq!(kept, 0, "nothing is known of other caches");
        y
    }

    /// Stores the rows of a call, runs it, and holds it to the same computed from the first position on.
    fn call(&self, gpu: &mut GpuBackend, start: usize, positions: usize) -> u32 {
        (1..5).for_each(|n| self.store(gpu, n, start, positions));
        self.held(gpu, start, positions)
    }

    fn held(&self, gpu: &mut GpuBackend, start: usize, positions: usize) -> u32 {
        let (y, kept) = self.run(gpu, start, positions);
        assert!(y == self.anew(gpu, start, positions), "{positions} positions from {start}, of which {kept} were kept");
        kept
    }
}

/// A call that begins where another ended begins with the state that it left, the same to the bit, and with none once that is of other rows.
#[test]
fn a_state_is_kept_until_its_rows_change() {
    for poison in [false, true] {
        for head_dim in [20, 128] {
            let mut gpu = gpu_with(GpuOptions { poison, ..Default::default() });
            let gpu = &mut gpu;
            let mut a = DeltaRows::new(gpu, 36, 24, head_dim);
            let b = DeltaRows::new(gpu, 37, 24, head_dim);
            // A prompt in chunks, then decoding; another sequence meanwhile.
            assert_eq!([a.call(gpu, 0, 7), b.call(gpu, 0, 5), a.call(gpu, 7, 5), a.call(gpu, 12, 1)], [0, 0, 7, 12]);
            assert_eq!([a.call(gpu, 13, 1), b.call(gpu, 5, 1), a.call(gpu, 14, 1)], [13, 5, 14]);
            // The same call once more: its end is kept, not its beginning. What follows is the same.
            assert_eq!([a.call(gpu, 14, 1), a.held(gpu, 14, 1), a.call(gpu, 15, 1)], [0, 0, 15]);
            // A row of the past is written again: of k, v, decay or beta, the first or the last.
            for (n, row) in [(1, 0), (2, 15), (3, 3), (4, 7)] {
                assert_eq!(a.call(gpu, 16, 1), if n == 1 { 16 } else { 0 });
                let other = a.rows[n].take(0, &[row + 1]);
                let x = gpu.upload(&other).unwrap();
                gpu.run(at(), &Op::Store { cache: a.caches[n - 1].clone(), x, start: row }).unwrap();
                assert_eq!(a.call(gpu, 17, 1), 0, "operand {n}, row {row}");
            }
            // One that comes after is none of the state's.
            assert_eq!([a.call(gpu, 17, 1), a.call(gpu, 18, 1)], [0, 18]);
            a.store(gpu, 1, 20, 2);
            assert_eq!(a.call(gpu, 19, 2), 19);
            // Back to an earlier position, and on from there; a beginning in the middle of nowhere.
            assert_eq!([a.call(gpu, 4, 3), a.call(gpu, 7, 2), a.call(gpu, 20, 1), b.call(gpu, 6, 1)], [0, 7, 0, 6]);
            // Another order of heads has other states.
            a.tiled = false;
            assert_eq!([a.call(gpu, 21, 1), a.call(gpu, 22, 1)], [0, 22]);
        }
    }
}

/// A backend that has decoded gives what a new one gives.
#[test]
fn a_prompt_after_another() {
    fn bits(gpu: &mut GpuBackend, model: &Model, tokens: &[u32]) -> Vec<HostTensor> {
        let mut session = Session::new(gpu, &model.config, tokens.len()).unwrap();
        let (prompt, decoded) = tokens.split_at(tokens.len() / 2);
        let calls = prompt.chunks(3).chain(decoded.chunks(1));
        calls
            .map(|part| {
                let logits = forward(gpu, model, &mut session, part, LogitRows::All).unwrap();
                gpu.read(&logits).unwrap()
            })
            .collect()
    }
    for family in ["qwen3next", "qwen35moe", "qwen35"] {
        let (model, golden) = open(family);
        let backwards: Vec<u32> = golden.tokens.iter().rev().copied().collect();
        for poison in [false, true] {
            let new = || gpu_with(GpuOptions { poison, ..Default::default() });
            let mut used = new();
            for tokens in [&golden.tokens, &backwards, &golden.tokens] {
                let found = bits(&mut used, &model, tokens);
                assert!(found == bits(&mut new(), &model, tokens), "{family}, poison {poison}");
            }
        }
    }
}

/// A kernel that loses what is kept is wrong where it was to begin with it, and only there: decoding shows it, one call does not.
#[test]
fn a_state_that_is_lost_between_calls_is_named() {
    let patch = |name: &str, source: String| match name {
        "delta_rule" => {
            let load = "state[i] = before[quads_at + quad * 4u * p.quads];";
            assert_eq!(source.matches(load).count(), 1);
            source.replace(load, "state[i] = 0.0 * before[quads_at + quad * 4u * p.quads];")
        }
        _ => source,
    };
    for family in ["qwen3next", "qwen35"] {
        let (model, golden) = open(family);
        let found = |decode: usize| {
            let options = GpuOptions { patch: Some(Arc::new(patch)), ..Default::default() };
            let mut subject: AnyBackend = Box::new(Erased(gpu_with(options)));
            let cpu = CpuBackend::new(Some(Level::Scalar), Some(2)).unwrap();
            let mut reference: AnyBackend = Box::new(Erased(cpu));
            let sides = Sides { reference: &mut reference, subject: &mut subject, judged: true };
            diff(&model, sides, &DiffOptions { decode, ..DiffOptions::new(golden.tokens.clone()) }).unwrap()
        };
        assert!(found(0).agrees(), "{family}: {:?}", found(0).notes);
        let decoded = found(1);
        let fault = decoded.fault().unwrap_or_else(|| panic!("{family}: nothing is blamed"));
        assert_eq!((fault.site.stage.name(), fault.site.layer), ("linear_attn_delta", Some(0)), "{family}");
        let cause = fault.cause.as_ref().filter(|cause| cause.reproduced).unwrap();
        assert_eq!(cause.id, "delta-state", "{family}");
    }
}

#[test]
fn sigmoid_gates() {
    let mut gpu = gpu();
    let mut r = Random::new(34);
    for shape in [&[1usize, 1][..], &[3, 65], &[700, 100]] {
        let (a, b) = (r.tensor(shape), r.tensor(shape));
        let op = Op::SwiGlu { gate: &a, up: &b, activation: GateActivation::Sigmoid };
        let (want, gate) = (exact(&op), a.to_f64());
        let bound = |i: usize| {
            sigmoid_factor(&gpu, OpKind::SwiGlu, gate[i]) * want[i].abs() + f64::from(f32::MIN_POSITIVE) * 1e2
        };
        let bounds: Vec<f64> = (0..want.len()).map(bound).collect();
        within("sigmoid", &run(&mut gpu, &op), &want, |i| bounds[i]);
    }
}

/// A NaN reaches what it is part of, and nothing else: not the heads, channels and positions beside it.
#[test]
fn nan_stays_in_its_head_and_its_channel() {
    let mut gpu = gpu();
    let mut r = Random::new(35);
    let weight = r.weight(GgmlType::F32, [3, 70, 1]);
    let x = with(&r.tensor(&[6, 70]), 70 + 9, f32::NAN);
    let cache = with(&r.tensor(&[9, 70]), 70 + 11, f32::NAN);
    let got = run(&mut gpu, &Op::Conv { x: &x, cache: &cache, weight: &weight, start: 2 }).to_f32();
    for (i, v) in got.iter().enumerate() {
        let expected = match i % 70 {
            9 => (1..4).contains(&(i / 70)),
            11 => i / 70 < 2, // of position 1, which the first two see
            _ => false,
        };
        assert_eq!(v.is_nan(), expected, "[{i}] is {v}");
    }
    let x = with(&r.tensor(&[2, 100]), 50, f32::NAN);
    let got = run(&mut gpu, &Op::L2Norm { x: &x, first: 20, heads: 2, head_dim: 30, eps: 1e-6 }).to_f32();
    assert!(got.iter().enumerate().all(|(i, v)| v.is_nan() == (30..60).contains(&i)), "{got:?}");

    let (positions, heads, d) = (3, 2, 16);
    let [q, k] = [(); 2].map(|()| r.tensor(&[positions, d]));
    let v = with(&r.tensor(&[positions + 1, heads * d]), heads * d + d + 5, f32::NAN); // position 1, head 1, column 5
    let zeros = HostTensor::f32(&[positions, heads], vec![0.0; positions * heads]);
    let op = Op::DeltaRule { q: &q, k: &k, v: &v, decay: &zeros, beta: &zeros, start: 0, head_dim: d, tiled: true };
    let got = run(&mut gpu, &op).to_f32();
    let expected = |i: usize| i / (heads * d) >= 1 && i % (heads * d) == d + 5;
    assert!(got.iter().enumerate().all(|(i, v)| v.is_nan() == expected(i)), "{got:?}");
}

#[test]
fn a_head_that_has_no_kernel_is_refused_before_the_run() {
    let mut gpu = gpu();
    for (head_dim, refused) in [(4, false), (256, false), (6, true), (260, true)] {
        let name = "qwen3next.ssm.state_size".to_string();
        let lines =
            gpu.unsupported(&[Need { op: OpKind::DeltaRule, ty: GgmlType::F32, cols: head_dim, name, experts: None }]);
        assert_eq!(lines.len(), usize::from(refused), "{lines:?}");
        let words = format!("a multiple of 4 and at most 256, not {head_dim}");
        assert!(lines.iter().all(|line| line.contains("ssm.state_size") && line.contains(&words)), "{lines:?}");
        let x = gpu.upload(&HostTensor::f32(&[1, head_dim], vec![0.5; head_dim])).unwrap();
        let one = gpu.upload(&HostTensor::f32(&[1, 1], vec![0.5])).unwrap();
        let [q, k, v] = [x.clone(), x.clone(), x];
        let [decay, beta] = [one.clone(), one];
        let op = Op::DeltaRule { q, k, v, decay, beta, start: 0, head_dim, tiled: false };
        match gpu.run(at(), &op) {
            Ok(_) => assert!(!refused, "{head_dim}"),
            Err(e) => assert!(refused && e.exit_code() == 125 && e.to_string().contains(&words), "{e}"),
        }
    }
}
