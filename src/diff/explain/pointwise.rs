//! Mistakes in the residual sums and in the activation.

use super::case::{Evidence, Variant};
use super::indices::of_few_experts;
use crate::error::Result;
use crate::formula::embed::Embedding;
use crate::formula::pointwise::{Activation, Gated, Sum, UNLIMITED};
use crate::formula::precision::FORMATS;
use crate::op::{CLAMPED_LIMIT, GateActivation, GgmlType, Op, Stage};

pub fn residual<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Op::Add { .. } = case.scene.op else { return Ok(vec![]) };
    let [dropped, alone] = match case.scene.site.stage {
        Stage::MoeSum => ["only the shared expert: those behind the router dropped", "the shared expert left out"],
        _ => ["the residual dropped: only what is added to it", "only the residual: nothing added to it"],
    };
    let mut all = case.each_changed::<Sum<'a>, _>([
        (dropped, |s| s.factors = [0.0, 1.0]),
        (alone, |s| s.factors = [1.0, 0.0]),
        ("the residual added twice", |s| s.factors = [2.0, 1.0]),
        ("the addend added twice", |s| s.factors = [1.0, 2.0]),
        ("a difference for a sum", |s| s.factors = [1.0, -1.0]),
        ("a difference for a sum, the other way round", |s| s.factors = [-1.0, 1.0]),
        ("a product for a sum", |s| {
            let [a, b] = &mut s.operands;
            a.to_mut().iter_mut().zip(&**b).for_each(|(a, b)| *a *= b);
            s.factors = [1.0, 0.0];
        }),
    ])?;
    // Other streams of the layer that could be taken for one of the two.
    let streams = [
        Stage::AttnNorm,
        Stage::AttnResidual,
        Stage::FfnNorm,
        Stage::AttnOut,
        Stage::MoeOut,
        Stage::SharedDown,
        Stage::SharedOut,
        Stage::FfnOut,
    ];
    let named = streams.iter().filter_map(|s| Some((s.name(), case.scene.earlier.get(*s)?)));
    let input = case.scene.earlier.input().map(|x| ("the layer's input", x));
    for (name, other) in named.chain(input).filter(|(_, other)| other.shape == case.scene.output.shape) {
        for (n, what) in ["as the residual", "added to the residual"].into_iter().enumerate() {
            let replace = |s: &mut Sum<'a>| s.operands[n] = other.to_f64().into();
            all.extend(case.changed(format!("{name} {what}"), replace)?);
        }
    }
    Ok(all)
}

/// A bias that is not what it should be.
pub fn bias<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let (Op::Bias { weight, .. } | Op::ExpertBias { weight, .. }) = case.scene.op else { return Ok(vec![]) };
    let mut all = case.each_changed::<Sum<'a>, _>([
        ("the bias left out", |s| s.factors = [1.0, 0.0]),
        ("the bias added twice", |s| s.factors = [1.0, 2.0]),
        ("the bias subtracted", |s| s.factors = [1.0, -1.0]),
        ("the bias alone, without the product", |s| s.factors = [0.0, 1.0]),
    ])?;
    for other in case.other_weights(weight) {
        if other.ty == GgmlType::F32 {
            let values: Vec<f64> = other.f32s().map(f64::from).collect();
            let change = |s: &mut Sum<'a>| s.operands[1] = values.into();
            all.extend(case.changed(format!("{} as the bias", other.name), change)?);
        }
    }
    Ok(all)
}

/// The bias of another expert than the row's.
pub fn expert_bias<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Op::ExpertBias { ids, weight, .. } = case.scene.op else { return Ok(vec![]) };
    let (k, experts) = (ids.cols().max(1), weight.rows.max(1));
    let ids: Vec<usize> = ids.ids().iter().map(|id| *id as usize).collect();
    let cols = case.cols();
    let with = |what: String, of: &dyn Fn(usize) -> usize| {
        case.changed(what, |s: &mut Sum<'a>| s.rows = Some(ids.iter().map(|id| of(*id)).collect()))
    };
    if let Some(few) = of_few_experts(case, "the biases", |i| ids[i / cols], experts, with)? {
        return Ok(vec![few]);
    }
    // Of a slot, its expert and how many there are.
    let mut others: Vec<(String, Vec<usize>)> = vec![
        ("the bias of the slot's number, not of its expert".into(), (0..ids.len()).map(|i| i % k).collect()),
        ("the bias of the first chosen expert in every slot".into(), (0..ids.len()).map(|i| ids[i / k * k]).collect()),
        (
            "the bias of the last chosen expert in every slot".into(),
            (0..ids.len()).map(|i| ids[i / k * k + k - 1]).collect(),
        ),
        ("the biases of the slots in reverse".into(), (0..ids.len()).map(|i| ids[i / k * k + k - 1 - i % k]).collect()),
        ("the biases of the first position's experts".into(), (0..ids.len()).map(|i| ids[i % k]).collect()),
    ];
    for expert in 0..experts.min(64) {
        others.push((format!("the bias of expert {expert} for every expert"), vec![expert; ids.len()]));
    }
    for by in (1..experts).filter(|by| *by <= 4 || experts - by <= 4) {
        let what = if by * 2 <= experts { format!("{by} higher") } else { format!("{} lower", experts - by) };
        others.push((format!("the bias of the expert {what}"), ids.iter().map(|id| (id + by) % experts).collect()));
    }
    let mut all = Vec::new();
    for (what, ids) in others {
        all.extend(case.changed(what, |s: &mut Sum<'a>| s.rows = Some(ids))?);
    }
    Ok(all)
}

/// What limits gate and up, and what is added to up, where the activation is clamped.
pub fn clamps<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Op::SwiGlu { activation: GateActivation::Clamped, .. } = case.scene.op else { return Ok(vec![]) };
    const M: f64 = CLAMPED_LIMIT;
    let mut all = case.each_changed::<Gated<'a>, _>([
        ("gate and up without their limits", |g| g.limits = [UNLIMITED; 2]),
        ("the gate without its limit", |g| g.limits[0] = UNLIMITED),
        ("up without its limits", |g| g.limits[1] = UNLIMITED),
        ("the gate held to ±7, not only to at most 7", |g| g.limits[0] = [-M, M]),
        ("up held to at most 7, not to ±7", |g| g.limits[1] = [f64::NEG_INFINITY, M]),
        ("gate and up with each other's limits", |g| g.limits.reverse()),
        ("up without 1 added", |g| g.plus = 0.0),
        ("up without 1 added, gate and up without their limits", |g| (g.plus, g.limits) = (0.0, [UNLIMITED; 2])),
        ("1 taken from up, not added", |g| g.plus = -1.0),
        ("1 added to up before its limits", |g| {
            g.limits[1] = [-M - 1.0, M - 1.0];
        }),
        ("silu: the sigmoid of the gate, not of 1.702 times it", |g| g.activation = Activation::Swish(1.0)),
        ("silu(gate) · up, without limits and without 1 added to up", |g| {
            (g.activation, g.plus, g.limits) = (Activation::Swish(1.0), 0.0, [UNLIMITED; 2]);
        }),
        ("silu(gate) · (up + 1), without limits", |g| {
            (g.activation, g.limits) = (Activation::Swish(1.0), [UNLIMITED; 2]);
        }),
        ("silu(gate) · up, without 1 added to up", |g| (g.activation, g.plus) = (Activation::Swish(1.0), 0.0)),
        ("1.7 for 1.702", |g| g.activation = Activation::Swish(1.7)),
        ("1 added to the gate, not to up", |g| {
            let [least, most] = g.limits[0];
            g.gate.to_mut().iter_mut().for_each(|x| *x = 1.0 + x.clamp(least, most));
            (g.limits[0], g.plus) = (UNLIMITED, 0.0);
        }),
    ])?;
    for limit in [6.0, 8.0, 5.0, 10.0, 7.5] {
        let what = format!("limits of {limit} for 7");
        let limits = [[f64::NEG_INFINITY, limit], [-limit, limit]];
        all.extend(case.changed(what, |g: &mut Gated<'a>| g.limits = limits)?);
    }
    Ok(all)
}

pub fn gate_and_up<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Op::SwiGlu { activation, .. } = *case.scene.op else { return Ok(vec![]) };
    let f = activation.short();
    type Mistake<'a> = fn(&mut Gated<'a>);
    let changes: [(String, Mistake<'a>); 6] = [
        (format!("gate and up swapped: gate · {f}(up)"), |g| std::mem::swap(&mut g.gate, &mut g.up)),
        (format!("{f}(gate) without up"), |g| (g.up, g.plus) = (vec![1.0; g.up.len()].into(), 0.0)),
        (format!("up without {f}(gate)"), |g| g.activation = Activation::One),
        (format!("{f}(gate) + up"), |g| g.added = true),
        (format!("{f}(gate) · gate"), |g| g.up = g.gate.clone()),
        (format!("{f}(up) · up"), |g| g.gate = g.up.clone()),
    ];
    changes.into_iter().filter_map(|(what, change)| case.changed(what, change).transpose()).collect()
}

pub fn other_activation<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Op::SwiGlu { activation: stated, .. } = *case.scene.op else { return Ok(vec![]) };
    let mut all = Vec::new();
    for (what, activation) in [
        ("silu", Activation::Silu),
        ("gelu, by tanh,", Activation::GeluByTanh),
        ("gelu, by erf,", Activation::GeluByErf),
        ("gelu, by sigmoid(1.702·x),", Activation::Swish(1.702)),
        ("relu", Activation::Relu),
        ("relu²", Activation::ReluSquared),
        ("sigmoid", Activation::Sigmoid),
        ("tanh", Activation::Tanh),
    ] {
        // Of the clamped one, the sigmoid of the gate alone is `clamps`'.
        if activation != stated.into() && !(activation == Activation::Silu && stated == GateActivation::Clamped) {
            let what = format!("{what} for {}", stated.name());
            all.extend(case.changed(what, |g: &mut Gated<'a>| g.activation = activation)?);
        }
    }
    let mut with = |what: &str, change: fn(&mut Gated<'a>)| {
        all.extend(case.changed(what, change)?);
        Ok::<_, crate::error::Error>(())
    };
    with("no activation: gate · up", |g| g.activation = Activation::Identity)?;
    with(&format!("{}(−gate)", stated.short()), |g| g.gate.to_mut().iter_mut().for_each(|x| *x = -*x))?;
    Ok(all)
}

/// A gate that is one number for each position.
pub fn shared_gate<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let mut all = case.each_changed::<Gated<'a>, _>([
        ("the shared expert without its gate", |g| g.activation = Activation::One),
        ("the shared expert times its gate, without the sigmoid", |g| g.activation = Activation::Identity),
        ("the shared expert times silu(gate), not sigmoid(gate)", |g| g.activation = Activation::Silu),
        ("the shared expert times tanh(gate), not sigmoid(gate)", |g| g.activation = Activation::Tanh),
        ("the shared expert times 1 − sigmoid(gate)", |g| g.gate.to_mut().iter_mut().for_each(|x| *x = -*x)),
        ("the shared expert with the gate of the call's first position", |g| {
            g.gate = g.gate[..g.cols].repeat(g.gate.len() / g.cols).into();
        }),
        ("the shared expert with the gate of the position before", |g| {
            g.gate = [&g.gate[..g.cols], &g.gate[..g.gate.len() - g.cols]].concat().into();
        }),
    ])?;
    // A router's weight in the gate's place.
    if let Some(weights) = case.scene.earlier.get(Stage::RouterWeights).filter(|w| w.shape[0] == case.shapes[0][0]) {
        let (k, first) = (weights.cols().max(1), weights.to_f64());
        let change = |g: &mut Gated<'a>| {
            let cols = g.cols;
            g.activation = Activation::Identity;
            g.gate = first.iter().step_by(k).flat_map(|w| std::iter::repeat_n(*w, cols)).collect::<Vec<f64>>().into();
        };
        all.extend(case.changed("the shared expert with the weight of the first chosen expert", change)?);
    }
    Ok(all)
}

/// An embedding that is scaled, otherwise.
pub fn embedding_scale<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let hidden = case.scene.config.hidden as f64;
    let Some(Embedding { scale: stated, .. }) = case.stated()? else { return Ok(vec![]) };
    let mut scales = vec![("√H, which this model does not scale by".to_string(), hidden.sqrt())];
    if stated != 1.0 {
        scales = vec![
            (format!("no scale, where the model has {stated:.4}"), 1.0),
            ("its scale applied twice".into(), stated * stated),
            ("one over its scale".into(), 1.0 / stated),
        ];
        for format in FORMATS {
            let rounded = (format.round)(stated);
            if rounded != stated {
                scales.push((format!("its scale rounded to {}, {rounded} for {stated:.4}", format.name), rounded));
            }
        }
    }
    let mut all = Vec::new();
    for (what, scale) in scales {
        all.extend(case.changed(format!("the embedding with {what}"), |e: &mut Embedding<'a>| e.scale = scale)?);
    }
    Ok(all)
}
