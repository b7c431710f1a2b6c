//! What only some families have, made wrong by hand: pairing, scaling and factors of rope, YaRN, biases, shared experts,
//! what is Gemma's, what is gpt-oss's and what is GLM's.

use super::*;
use crate::op::{Pairing, Yarn};

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
fn yarn_in_parts() {
    let tiny = ModelShape::named("tiny").unwrap();
    let dense = FfnShape::Dense(256);
    let w = World::synthetic(&ModelShape { ffn: dense, rope_base: 1e4, context: 16_384, yarn: Some(4.0), ..tiny });
    let site = Site::layer(1, Stage::QRope);
    let with = |scale: f64, change: &dyn Fn(&mut Yarn)| {
        turned(&w, |r| {
            r.scale = scale;
            r.yarn.iter_mut().for_each(change);
        })
    };
    for (made, words) in [
        (with(0.25, &|y| y.magnitude = 1.0), "without its magnitude 1.1386"),
        (with(0.25, &|y| y.magnitude *= y.magnitude), "applied twice"),
        (with(0.25, &|y| y.ramp = 0.0), "every pair scaled by 4, without YaRN's ramp"),
        (with(1.0, &|_| ()), "frequencies that YaRN does not scale"),
        (with(1.0, &|y| y.magnitude = 1.0), "no YaRN at all"),
        (with(0.25, &|y| (y.ramp, y.magnitude) = (0.0, 1.0)), "a linear scaling by 4 for YaRN"),
        (with(0.25, &|y| y.context = 16_384.0), "original context of 16384, or one with the same ramp, for 4096"),
        (with(0.25, &|y| y.context = 64.0), "original context of 64, or one with the same ramp, for 4096"),
        (with(0.5, &|y| y.magnitude = 1.0 + 0.1 * 2f64.ln()), "YaRN with a factor of 2 for 4"),
        (with(0.125, &|_| ()), "YaRN with a factor of 8 for 4, and its magnitude as it is"),
        (
            with(0.25, &|y| (y.beta_fast, y.beta_slow) = (1.0, 32.0)),
            "betas 1 and 32, or one with the same ramp, for 32 and 1",
        ),
    ] {
        explained(&w, site, &made, "rope-scaling", words);
    }
    explained(&w, site, &turned(&w, |r| r.pairing = Pairing::Norm), "rope-pairing", "NORM");
    explained(&w, site, &turned(&w, |r| r.base = 1e6), "rope-base", "base 1000000 ");
    // Where the original context has the numbers right, a step for a ramp, or one by dimensions, is a wrong factor for some pairs.
    let kept: Vec<f64> = w.model.config.rotation.yarn.unwrap().kept(64, 1e4).collect();
    let half = kept.len();
    let by = |kept: Vec<f64>| {
        let scales = kept.iter().map(|k| 0.25 * (1.0 - k) + k).collect::<Vec<_>>();
        let Op::Rope { x, .. } = w.op(site) else { unreachable!() };
        let (x, cols, m) = (x.to_f64(), x.cols(), 1.0 + 0.1 * 4f64.ln());
        let element = |i: usize| {
            let (t, within) = (i / cols, i % cols % (2 * half));
            let (pair, sign) = if within < half { (within, -1.0) } else { (within - half, 1.0) };
            let partner = if within < half { i + half } else { i - half };
            let angle = t as f64 * scales[pair] * 1e4f64.powf(-(pair as f64) / half as f64);
            (m * (x[i] * angle.cos() + sign * x[partner] * angle.sin())) as f32
        };
        HostTensor::f32(&[x.len() / cols, cols], (0..x.len()).map(element).collect())
    };
    let e = w.explain(site, &by(kept.clone()));
    assert_eq!(e.tried, 0, "the scales are the right ones: {e}");
    explained(&w, site, &by(kept.iter().map(|k| 1.0 - k).collect()), "rope-scaling", "the other way");
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
    let context = f32s(evaluate(&Op::AttnContext { probs: &*probs, v: &*v, start, head_dim, window: None }).unwrap());
    explained(&w, site, &context, "attention-operand", "v before its bias");
}

#[test]
fn shared_expert_of_qwen2moe() {
    let moe = FfnShape::Moe(Moe { experts: 8, used: 2, width: 64 });
    let w = World::synthetic(&ModelShape { family: Family::Qwen2, ffn: moe, ..ModelShape::named("tiny").unwrap() });
    let site = Site::layer(1, Stage::SharedOut);
    let (down, router) = (w.value(site, Stage::SharedDown), w.value(site, Stage::SharedRouter).to_f32());
    let cols = down.cols();
    let with = |gate: &dyn Fn(usize) -> f32| {
        let out = down.to_f32().iter().enumerate().map(|(i, x)| x * gate(i / cols)).collect();
        HostTensor::f32(&down.shape, out)
    };
    let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
    explained(&w, site, &with(&|_| 1.0), "shared-gate", "without its gate");
    explained(&w, site, &with(&|t| router[t]), "shared-gate", "without the sigmoid");
    explained(&w, site, &with(&|t| router[t] * sigmoid(router[t])), "shared-gate", "silu(gate)");
    explained(&w, site, &with(&|t| sigmoid(-router[t])), "shared-gate", "1 − sigmoid");
    explained(&w, site, &with(&|_| sigmoid(router[0])), "shared-gate", "call's first position");
    // The sum: without it, or with it before its gate.
    let site = Site::layer(1, Stage::MoeSum);
    let routed = w.value(site, Stage::MoeOut);
    explained(&w, site, &routed, "residual", "the shared expert left out");
    let sum = routed.to_f32().iter().zip(down.to_f32()).map(|(a, b)| a + b).collect();
    explained(&w, site, &HostTensor::f32(&routed.shape, sum), "residual", "shared_down added to the residual");
    // Weights that are renormalised where they should not be.
    let site = Site::layer(1, Stage::RouterWeights);
    let Op::RouterWeights { probs, ids, .. } = w.op(site) else { unreachable!() };
    let wrong =
        evaluate(&Op::RouterWeights { probs: &*probs, ids: &*ids, renormalise: true, softmax: false, scale: 1.0 })
            .unwrap();
    explained(&w, site, &f32s(wrong), "renormalisation", "which this model does not do");
}

#[test]
fn norms_of_olmoe() {
    let moe = FfnShape::Moe(Moe { experts: 8, used: 2, width: 64 });
    let w = World::synthetic(&ModelShape { family: Family::Olmoe, ffn: moe, ..ModelShape::named("tiny").unwrap() });
    let site = Site::layer(1, Stage::QNorm);
    let (x, weight) = (w.value(site, Stage::QProj), w.weight(site).f32s().collect::<Vec<f32>>());
    let mut heads = x.to_f32();
    for (i, head) in heads.chunks_exact_mut(64).enumerate() {
        let scale = 1.0 / (head.iter().map(|x| x * x).sum::<f32>() / 64.0 + 1e-6).sqrt();
        head.iter_mut().zip(&weight[i * 64 % weight.len()..]).for_each(|(x, w)| *x *= scale * w);
    }
    explained(
        &w,
        site,
        &HostTensor::f32(&x.shape, heads),
        "norm-group",
        "each head's width instead of one over the row",
    );
}

#[test]
fn what_is_gemmas() {
    let tiny = ModelShape::named("tiny").unwrap();
    let (ffn, window) = (FfnShape::Dense(256), Some([4, 2]));
    let hidden = 224; // √H is exact neither in bf16 nor in f16
    let w = World::synthetic(&ModelShape { family: Family::Gemma3, hidden, ffn, window, tied: true, ..tiny });
    let site = Site::model(Stage::Embedding);
    let Op::Embed { table, tokens, scale } = w.op(site) else { unreachable!() };
    let with = |scale: f64| f32s(evaluate(&Op::Embed { table, tokens, scale }).unwrap());
    explained(&w, site, &with(1.0), "embedding-scale", "no scale, where the model has 14.96");
    explained(&w, site, &with(scale * scale), "embedding-scale", "applied twice");
    explained(&w, site, &with(half::bf16::from_f64(scale).to_f64()), "embedding-scale", "rounded to bf16, 14.9375");
    // Layer 0 sees 4 keys, layer 1 all.
    for (layer, wrong, words) in [
        (0, None, "no window: every key seen, where this layer has 4"),
        (0, Some(5), "a window of 5 keys: this layer has 4"),
        (0, Some(3), "a window of 3 keys: this layer has 4"),
        (1, Some(4), "a window of 4 keys"),
    ] {
        let site = Site::layer(layer, Stage::AttnProbs);
        let Op::AttnProbs { scores, start, .. } = w.op(site) else { unreachable!() };
        let wrong = f32s(evaluate(&Op::AttnProbs { scores: &*scores, start, window: wrong, sinks: None }).unwrap());
        explained(&w, site, &wrong, "window", words);
    }
    let site = Site::layer(0, Stage::QRope);
    let Op::Rope { x, start, head_dim, rotation } = w.op(site) else { unreachable!() };
    let wrong = Op::Rope { x: &*x, start, head_dim, rotation: Rotation { base: 1e6, ..rotation } };
    explained(&w, site, &f32s(evaluate(&wrong).unwrap()), "rope-base", "base 1000000 for 10000");
    let site = Site::layer(1, Stage::FfnAct);
    let Op::SwiGlu { gate, up, .. } = w.op(site) else { unreachable!() };
    let wrong = Op::SwiGlu { gate: &*gate, up: &*up, activation: GateActivation::Silu };
    explained(&w, site, &f32s(evaluate(&wrong).unwrap()), "activation", "silu for gelu");
    let swapped = Op::SwiGlu { gate: &*up, up: &*gate, activation: GateActivation::GeluTanh };
    explained(&w, site, &f32s(evaluate(&swapped).unwrap()), "gate-up", "gate · gelu(up)");
    // A norm that is skipped, and a residual that takes the value before it.
    let site = Site::layer(1, Stage::AttnPostNorm);
    explained(&w, site, &w.value(site, Stage::AttnOut), "norm-missing", "the input itself");
    let site = Site::layer(1, Stage::AttnResidual);
    let (x, out) = (w.value(site, Stage::LayerOut), w.value(site, Stage::AttnOut));
    let sum = x.to_f32().iter().zip(out.to_f32()).map(|(a, b)| a + b).collect();
    explained(&w, site, &HostTensor::f32(&x.shape, sum), "residual", "attn_out added to the residual");
}

/// A model of gpt-oss's kind, of which gate and up are beyond their limits in places.
fn gpt_oss() -> World {
    let ffn = FfnShape::Moe(Moe { experts: 8, used: 4, width: 64 });
    let tiny = ModelShape::named("tiny").unwrap();
    let (family, yarn, window) = (Family::GptOss, Some(32.0), Some([4, 2]));
    World::synthetic(&ModelShape { family, ffn, yarn, window, context: 131_072, rope_base: 1.5e5, ..tiny })
}

#[test]
fn sinks_of_gpt_oss() {
    let w = gpt_oss();
    for layer in [0, 1] {
        let site = Site::layer(layer, Stage::AttnProbs);
        let Op::AttnProbs { scores, start, window, sinks } = w.op(site) else { unreachable!() };
        let sinks = sinks.unwrap();
        let own: Vec<f32> = sinks.f32s().collect();
        let with = |change: &dyn Fn(usize) -> f32| {
            let values = (0..own.len()).flat_map(|head| change(head).to_le_bytes()).collect();
            let sinks = Weight::from_vec("sinks", sinks.ty, [own.len(), 1, 1], values).unwrap();
            f32s(evaluate(&Op::AttnProbs { scores: &*scores, start, window, sinks: Some(&sinks) }).unwrap())
        };
        let none = f32s(evaluate(&Op::AttnProbs { scores: &*scores, start, window, sinks: None }).unwrap());
        explained(&w, site, &none, "attention-sink", "no sinks");
        let heads = own.len();
        for (made, words) in [
            (with(&|head| own[(head + 1) % heads]), "the sink of the next head"),
            (with(&|head| own[heads - 1 - head]), "the sinks of the heads in reverse"),
            (with(&|_| 0.0), "sinks of 0"),
            (with(&|head| -own[head]), "sinks with the other sign"),
            (with(&|head| own[head] / 8.0), "sinks scaled by 1/√D"),
        ] {
            explained(&w, site, &made, "attention-sink", words);
        }
        // The exponential of the sink is not shifted by the largest score of its row.
        let (t, s, x) = (scores.shape[1], scores.cols(), scores.to_f64());
        let mut unshifted = none.to_f64();
        for (i, row) in unshifted.chunks_exact_mut(s).enumerate() {
            let seen: Vec<f64> = row.iter().zip(&x[i * s..]).filter(|(p, _)| **p > 0.0).map(|(_, x)| *x).collect();
            let largest = seen.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = seen.iter().map(|x| (x - largest).exp()).sum();
            row.iter_mut().for_each(|p| *p *= sum / (sum + f64::from(own[i / t]).exp()));
        }
        let made = f32s(HostTensor::f64(&scores.shape, unshifted));
        explained(&w, site, &made, "attention-sink", "without the largest score taken from it");
        // Layer 0 sees 4 keys, and its sinks are there with any window.
        let other = if layer == 0 { None } else { Some(4) };
        let wrong = Op::AttnProbs { scores: &*scores, start, window: other, sinks: Some(sinks) };
        explained(
            &w,
            site,
            &f32s(evaluate(&wrong).unwrap()),
            "window",
            if layer == 0 { "no window" } else { "4 keys" },
        );
    }
}

#[test]
fn clamped_activation_of_gpt_oss() {
    let w = gpt_oss();
    let site = Site::layer(1, Stage::ExpertAct);
    let Op::SwiGlu { gate, up, .. } = w.op(site) else { unreachable!() };
    let (gates, ups) = (gate.to_f64(), up.to_f64());
    assert!(gates.iter().any(|g| *g > 7.0) && ups.iter().any(|u| *u < -7.0) && ups.iter().any(|u| *u > 7.0));
    let made = |f: &dyn Fn(f64, f64) -> f64| {
        let values = gates.iter().zip(&ups).map(|(g, u)| f(*g, *u) as f32).collect();
        HostTensor::f32(&gate.shape, values)
    };
    let swish = |alpha: f64, g: f64| g / (1.0 + (-alpha * g).exp());
    let (top, both) = (|g: f64| g.min(7.0), |u: f64| u.clamp(-7.0, 7.0));
    explained(&w, site, &made(&|g, u| swish(1.702, g) * (1.0 + u)), "clamp", "gate and up without their limits");
    explained(&w, site, &made(&|g, u| swish(1.702, g) * (1.0 + both(u))), "clamp", "the gate without its limit");
    explained(&w, site, &made(&|g, u| swish(1.702, top(g)) * (1.0 + u)), "clamp", "up without its limits");
    explained(
        &w,
        site,
        &made(&|g, u| swish(1.702, top(g)) * (1.0 + top(u))),
        "clamp",
        "up held to at most 7, not to ±7",
    );
    explained(&w, site, &made(&|g, u| swish(1.0, top(g)) * (1.0 + both(u))), "clamp", "not of 1.702 times it");
    explained(&w, site, &made(&|g, u| swish(1.702, top(g)) * both(u)), "clamp", "up without 1 added");
    explained(&w, site, &made(&|g, u| swish(1.0, g) * u), "clamp", "silu(gate) · up, without limits");
    explained(&w, site, &made(&|g, u| swish(1.702, top(u)) * (1.0 + both(g))), "gate-up", "gate and up swapped");
}

#[test]
fn biases_and_weights_of_gpt_oss() {
    let w = gpt_oss();
    for (stage, product) in [
        (Stage::ExpertGateBias, Stage::ExpertGate),
        (Stage::ExpertUpBias, Stage::ExpertUp),
        (Stage::ExpertDownBias, Stage::ExpertDown),
    ] {
        let site = Site::layer(1, stage);
        let Op::ExpertBias { x, ids, weight } = w.op(site) else { unreachable!() };
        assert_eq!(x.to_f32(), w.value(site, product).to_f32());
        explained(&w, site, &x, "bias", "the bias left out");
        let with = |expert: &dyn Fn(usize, u32) -> u32| {
            let other = ids.ids().iter().enumerate().map(|(slot, id)| expert(slot % ids.cols(), *id)).collect();
            let ids = HostTensor::u32(&ids.shape, other);
            f32s(evaluate(&Op::ExpertBias { x: &*x, ids: &ids, weight }).unwrap())
        };
        explained(&w, site, &with(&|_, id| (id + 1) % 8), "expert-bias", "the bias of the expert 1 higher");
        explained(&w, site, &with(&|slot, _| slot as u32), "expert-bias", "the slot's number");
        explained(&w, site, &with(&|_, _| 0), "expert-bias", "the bias of expert 0 for every expert");
    }
    let site = Site::layer(1, Stage::ExpertGateBias);
    let Op::ExpertBias { x, ids, .. } = w.op(site) else { unreachable!() };
    let other = &w.moe(1).bias.as_ref().unwrap().up;
    let wrong = f32s(evaluate(&Op::ExpertBias { x: &*x, ids: &*ids, weight: other }).unwrap());
    explained(&w, site, &wrong, "bias", "blk.1.ffn_up_exps.bias as the bias");
    for (stage, product) in [(Stage::RouterBias, Stage::RouterLogits), (Stage::AttnOutBias, Stage::AttnOut)] {
        let site = Site::layer(1, stage);
        explained(&w, site, &w.value(site, product), "bias", "the bias left out");
    }
    // A residual that takes attention's output before its bias.
    let site = Site::layer(1, Stage::AttnResidual);
    let (x, out) = (w.value(site, Stage::LayerOut), w.value(site, Stage::AttnOut));
    let sum = x.to_f32().iter().zip(out.to_f32()).map(|(a, b)| a + b).collect();
    explained(&w, site, &HostTensor::f32(&x.shape, sum), "residual", "attn_out added to the residual");
    // The softmax is over the chosen experts.
    let site = Site::layer(1, Stage::RouterWeights);
    let Op::RouterWeights { probs: logits, ids, .. } = w.op(site) else { unreachable!() };
    let shares = evaluate(&Op::RouterProbs { logits: &*logits, sigmoid: false }).unwrap();
    let of = |probs: &HostTensor, renormalise, softmax| {
        f32s(evaluate(&Op::RouterWeights { probs, ids: &ids, renormalise, softmax, scale: 1.0 }).unwrap())
    };
    explained(&w, site, &of(&shares, false, false), "renormalisation", "a softmax over all experts");
    explained(&w, site, &of(&shares, false, true), "renormalisation", "a softmax of the chosen experts' shares");
    explained(&w, site, &of(&logits, false, false), "renormalisation", "the chosen experts' logits themselves");
    let unbiased = w.value(site, Stage::RouterLogits);
    explained(&w, site, &of(&unbiased, true, true), "renormalisation", "logits without their bias");
    let site = Site::layer(1, Stage::RouterIds);
    let chosen = evaluate(&Op::RouterTopK { probs: &*unbiased, k: 4, groups: None }).unwrap();
    explained(&w, site, &chosen, "router-choice", "logits without their bias");
    let site = Site::layer(1, Stage::QRope);
    let whole = turned(&w, |r| r.yarn.iter_mut().for_each(|yarn| yarn.between = false));
    explained(&w, site, &whole, "rope-scaling", "its ends rounded to whole pairs, as llama.cpp has it");
}

/// What only GLM has: sigmoids, the bias of the choice, a scale of weights, and rope on half of each head.
#[test]
fn routers_and_rope_of_glm4moe() {
    let ffn = FfnShape::Moe(Moe { experts: 8, used: 3, width: 64 });
    let w = World::synthetic(&ModelShape { family: Family::Glm4Moe, ffn, ..ModelShape::named("tiny").unwrap() });
    let site = |stage| Site::layer(1, stage);
    let at = site(Stage::RouterProbs);
    let Op::RouterProbs { logits, sigmoid: true } = w.op(at) else { unreachable!() };
    let bias: Vec<f32> = w.moe(1).choice_bias.as_ref().unwrap().f32s().collect();
    let biased = |x: &HostTensor, sign: f32| {
        let sum = x.to_f32().into_iter().zip(bias.iter().cycle()).map(|(x, b)| x + sign * b).collect();
        HostTensor::f32(&x.shape, sum)
    };
    let probs = |logits: &HostTensor, sigmoid| f32s(evaluate(&Op::RouterProbs { logits, sigmoid }).unwrap());
    explained(&w, at, &probs(&logits, false), "router-softmax", "a softmax over all experts instead of sigmoids");
    explained(&w, at, &logits, "router-softmax", "the logits themselves");
    explained(&w, at, &probs(&biased(&logits, 1.0), true), "choice-bias", "added to the logits");
    let right = w.value(at, Stage::RouterProbs);
    let at = site(Stage::RouterChoice);
    explained(&w, at, &right, "bias", "the bias left out");
    explained(&w, at, &biased(&right, -1.0), "bias", "the bias subtracted");
    explained(&w, at, &biased(&logits, 1.0), "choice-bias", "not to their sigmoids");
    let at = site(Stage::RouterIds);
    let unbiased = evaluate(&Op::RouterTopK { probs: &*right, k: 3, groups: None }).unwrap();
    explained(&w, at, &unbiased, "choice-bias", "without the bias");
    let at = site(Stage::RouterWeights);
    let Op::RouterWeights { probs, ids, renormalise: true, softmax: false, scale } = w.op(at) else { unreachable!() };
    let of = |probs: &HostTensor, renormalise, scale| {
        let softmax = false;
        f32s(evaluate(&Op::RouterWeights { probs, ids: &ids, renormalise, softmax, scale }).unwrap())
    };
    assert_eq!(scale, 2.5);
    explained(&w, at, &of(&probs, true, 1.0), "weights-scale", "not multiplied by 2.5");
    explained(&w, at, &of(&probs, true, 6.25), "weights-scale", "multiplied by 2.5 twice");
    explained(&w, at, &of(&probs, false, 1.0), "weights-scale", "neither divided by their sum nor multiplied");
    explained(&w, at, &of(&probs, false, scale), "renormalisation", "not renormalised");
    explained(&w, at, &of(&biased(&probs, 1.0), true, scale), "choice-bias", "in the weights");
    // Of 64 dimensions 32 turn.
    let at = site(Stage::QRope);
    explained(&w, at, &turned(&w, |r| r.dims = None), "rope-part", "all 64 dimensions of a head, of which 32 turn");
    explained(&w, at, &turned(&w, |r| r.base = r.base.sqrt()), "rope-part", "exponents 2i/64 for 2i/32");
    explained(&w, at, &turned(&w, |r| r.pairing = Pairing::Norm), "rope-pairing", "NORM");
    let Op::Rope { x, start, head_dim, rotation } = w.op(at) else { unreachable!() };
    // The last half: heads with their halves exchanged, turned, and exchanged back.
    let exchanged = |x: &HostTensor| {
        let halves = x.to_f32().chunks(64).flat_map(|head| [&head[32..], &head[..32]].concat()).collect();
        HostTensor::f32(&x.shape, halves)
    };
    let other = evaluate(&Op::Rope { x: &exchanged(&x), start, head_dim, rotation }).unwrap();
    explained(&w, at, &exchanged(&f32s(other)), "rope-part", "the last 32 of a head's 64 dimensions");
    explained(&w, at, &x, "rope-missing", "no rope at all");
}
