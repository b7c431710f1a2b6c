//! What only some families have, made wrong by hand: pairing, scaling and factors of rope, and biases.

use super::*;
use crate::op::Pairing;

/// The rotation of q in layer 1 with another rotation.
fn turned<'w>(w: &'w World, change: impl Fn(&mut Rotation<&'w std::sync::Arc<Weight>>)) -> HostTensor {
    let Op::Rope { x, start, head_dim, mut rotation } = w.op(Site::layer(1, Stage::QRope)) else { unreachable!() };
    change(&mut rotation);
    f32s(evaluate(&Op::Rope { x: &*x, start, head_dim, rotation }).unwrap())
}

#[test]
fn rope_of_llama() {
    let site = Site::layer(1, Stage::QRope);
    let w = World::family("llama"); // NORM pairing, linear scaling by 4, base 1e4
    explained(
        &w,
        site,
        &turned(&w, |r| r.pairing = Pairing::Neox),
        "rope-pairing",
        "NEOX pairing (i with i + D/2) for NORM",
    );
    explained(&w, site, &turned(&w, |r| r.scale = 1.0), "rope-scaling", "without its linear scaling by 4");
    explained(&w, site, &turned(&w, |r| r.scale = 4.0), "rope-scaling", "multiplied by 4");
    explained(&w, site, &turned(&w, |r| r.base = 1e6), "rope-base", "base 1000000 ");
    explained(&w, site, &turned(&w, |r| r.base = 77_000.0), "rope-base", "base 77000 ");
    let w = World::family("llama3"); // frequency factors
    explained(&w, site, &turned(&w, |r| r.factors = None), "rope-scaling", "without its frequency factors");
    explained(&w, site, &turned(&w, |r| r.scale = 0.125), "rope-scaling", "linear scaling by 8 where there is none");
    explained(&w, site, &turned(&w, |r| r.pairing = Pairing::Neox), "rope-pairing", "NEOX");
}

#[test]
fn biases_of_qwen2() {
    let w = World::family("qwen2");
    for (stage, projection) in [(Stage::QBias, Stage::QProj), (Stage::VBias, Stage::VProj)] {
        let site = Site::layer(1, stage);
        let x = w.value(site, projection);
        explained(&w, site, &x, "bias", "the bias left out");
        let bias: Vec<f32> = w.weight(site).f32s().collect();
        let with = |factor: f32| {
            let sums = x.to_f32().iter().zip(bias.iter().cycle()).map(|(x, b)| x + factor * b).collect();
            HostTensor::f32(&x.shape, sums)
        };
        explained(&w, site, &with(2.0), "bias", "added twice");
        explained(&w, site, &with(-1.0), "bias", "subtracted");
    }
    let site = Site::layer(1, Stage::VBias);
    let Op::Bias { x, .. } = w.op(site) else { unreachable!() };
    let weight = w.weight(Site::layer(1, Stage::KBias));
    explained(
        &w,
        site,
        &f32s(evaluate(&Op::Bias { x: &*x, weight }).unwrap()),
        "bias",
        "blk.1.attn_k.bias as the bias",
    );
    // A value that went into the cache without its bias.
    let site = Site::layer(1, Stage::AttnContext);
    let Op::AttnContext { probs, start, head_dim, .. } = w.op(site) else { unreachable!() };
    let v = w.value(site, Stage::VProj);
    let context = f32s(evaluate(&Op::AttnContext { probs: &*probs, v: &*v, start, head_dim }).unwrap());
    explained(&w, site, &context, "attention-operand", "v before its bias");
}
