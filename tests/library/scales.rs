//! Scales beside weights: on every backend what a product is multiplied by last, by one rounding; what else reads a weight refuses them.

use std::sync::Arc;

use twinscope::backend::Backend;
use twinscope::backend::cpu::{CpuBackend, Level};
use twinscope::backend::gpu::{AdapterSelector, GpuBackend, GpuOptions};
use twinscope::op::{At, GgmlType, HostTensor, Op, Stage, Weight};
use twinscope::synth::{Mix, ModelShape, Plan};

/// The tensors of a model of random weights of this type, as a stack [256, 70, 6] and a matrix.
fn weights(ty: GgmlType) -> [Arc<Weight>; 2] {
    let shape = ModelShape { hidden: 256, layers: 1, vocab: 420, tied: true, ..ModelShape::named("tiny").unwrap() };
    let bytes = Plan::new("m", &shape, &Mix::pure(ty).unwrap(), 3).unwrap().to_bytes().unwrap();
    let file = twinscope::gguf::Gguf::from_bytes("m", Arc::new(bytes)).unwrap();
    let data = file.data(file.tensor("token_embd.weight").unwrap()).to_vec();
    let stack = Weight::from_vec("stack", ty, [256, 70, 6], data.clone()).unwrap();
    let matrix = Weight::from_vec("matrix", ty, [256, 420, 1], data).unwrap();
    [stack, matrix]
}

/// Numbers from -1 to 1.
fn values(shape: &[usize], seed: u64) -> HostTensor {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    HostTensor::f32(shape, (0..shape.iter().product()).map(|_| next()).collect())
}

fn run<B: Backend>(backend: &mut B, op: &Op<'_, &HostTensor>) -> HostTensor {
    let op = op.try_map(|t| backend.upload(t)).unwrap();
    let result = backend.run(At::layer(0, Stage::AttnOut, 0), &op).unwrap();
    backend.read(&result).unwrap()
}

const SCALES: [f32; 6] = [0.37, 1.0, -2.5, 1e-3, 700.0, 0.0];

/// Each product with scales is the one without, times the scale, to the bit.
fn check<B: Backend>(what: &str, backend: &mut B) {
    for ty in [GgmlType::F32, GgmlType::Q4_K, GgmlType::Q8_0, GgmlType::IQ1_M, GgmlType::NVFP4] {
        let [stack, matrix] = weights(ty);
        let scaled_stack = stack.scaled(SCALES.to_vec()).unwrap();
        for positions in [1, 3, 33] {
            let x = values(&[positions, 256], positions as u64);
            let ids = HostTensor::u32(&[positions, 4], (0..positions as u32 * 4).map(|i| i * 5 % 6).collect());
            let plain = run(backend, &Op::ExpertMatMul { x: &x, ids: &ids, weight: &stack }).to_f32();
            let scaled = run(backend, &Op::ExpertMatMul { x: &x, ids: &ids, weight: &scaled_stack }).to_f32();
            for (i, (y, plain)) in scaled.iter().zip(plain).enumerate() {
                assert_eq!(*y, plain * SCALES[ids.ids()[i / 70] as usize], "{what}: {ty}, {positions} positions, {i}");
            }
            let plain = run(backend, &Op::MatMul { x: &x, weight: &matrix }).to_f32();
            let scaled = matrix.scaled(vec![SCALES[0]]).unwrap();
            let scaled = run(backend, &Op::MatMul { x: &x, weight: &scaled }).to_f32();
            for (y, plain) in scaled.iter().zip(plain) {
                assert_eq!(*y, plain * SCALES[0], "{what}: {ty}, {positions} positions");
            }
        }
    }
}

#[test]
fn the_cpu_rounds_once_more_at_every_level() {
    for level in [Level::Scalar, Level::Avx2, Level::Avx512] {
        match CpuBackend::new(Some(level), Some(2)) {
            Ok(mut cpu) => check(&format!("{level:?}"), &mut cpu),
            Err(e) => println!("{level:?}: not on this processor: {e}"),
        }
        if let Ok(mut int8) = CpuBackend::int8(Some(level), Some(2)) {
            check(&format!("{level:?}, int8"), &mut int8);
        }
    }
}

/// Of every set of kernels, whole, in pieces, and passing through a budget.
#[test]
fn the_gpu_rounds_once_more_in_pieces_too() {
    let new = |options| GpuBackend::new(&AdapterSelector::Best, options);
    let lanes = new(GpuOptions { lanes: Some(true), ..Default::default() }).is_ok();
    for lanes in [Some(false), lanes.then_some(true)].into_iter().flatten() {
        for (weight_binding, weight_memory) in [(None, None), (Some(60_000), None), (None, Some(1 << 20))] {
            let options = GpuOptions { lanes: Some(lanes), weight_binding, weight_memory, ..Default::default() };
            check(&format!("lanes {lanes}, {weight_binding:?} {weight_memory:?}"), &mut new(options).unwrap());
        }
    }
}

#[test]
fn a_binding_without_room_for_scales_is_refused() {
    let [stack, _] = weights(GgmlType::Q8_0);
    let scaled = stack.scaled(SCALES.to_vec()).unwrap();
    // A row is 272 bytes, six scales are two vec4.
    for (binding, fits) in [(272 + 32, true), (272 + 31, false)] {
        let options = GpuOptions { weight_binding: Some(binding), ..Default::default() };
        let mut gpu = GpuBackend::new(&AdapterSelector::Best, options).unwrap();
        match gpu.prepare(std::slice::from_ref(&scaled), &mut |_| ()) {
            Ok(()) => assert!(fits, "{binding}"),
            Err(e) => {
                assert!(!fits && e.to_string().contains("tensor stack") && e.to_string().contains("32 bytes"), "{e}")
            }
        }
    }
}

#[test]
fn only_products_take_scales() {
    let [stack, matrix] = weights(GgmlType::F32);
    assert!(stack.scaled(vec![1.0; 5]).unwrap_err().to_string().contains("5 scales for 6 experts"));
    let scaled = matrix.scaled(vec![2.0]).unwrap();
    let mut cpu = CpuBackend::new(Some(Level::Scalar), Some(1)).unwrap();
    let op = Op::Embed { table: &scaled, tokens: &[1, 2], scale: 1.0 };
    let error = cpu.run(At::layer(0, Stage::AttnOut, 0), &op).err().expect("an embedding has no scale").to_string();
    assert!(error.contains("scales of matrix"), "{error}");
    let heads = values(&[2, 6 * 256], 1);
    let x = cpu.upload(&heads).unwrap();
    let scaled = stack.scaled(SCALES.to_vec()).unwrap();
    let op = Op::HeadMatMul { x, weight: &scaled, head_dim: 256, keep: false };
    let error = cpu.run(At::layer(0, Stage::AttnOut, 0), &op).err().expect("heads have no scale").to_string();
    assert!(error.contains("scales of stack"), "{error}");
}
