//! Mistakes in the residual sums and in the activation.

use super::case::{Evidence, Variant};
use crate::error::Result;
use crate::formula::embed::Embedding;
use crate::formula::pointwise::{Activation, Gated, Sum};
use crate::formula::precision::FORMATS;
use crate::op::{GgmlType, Op, Stage};

pub fn residual<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Op::Add { .. } = case.scene.op else { return Ok(vec![]) };
    let mut all = case.each_changed::<Sum<'a>, _>([
        ("the residual dropped: only what is added to it", |s| s.factors = [0.0, 1.0]),
        ("only the residual: nothing added to it", |s| s.factors = [1.0, 0.0]),
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
    let Op::Bias { weight, .. } = case.scene.op else { return Ok(vec![]) };
    let mut all = case.each_changed::<Sum<'a>, _>([
        ("the bias left out", |s| s.factors = [1.0, 0.0]),
        ("the bias added twice", |s| s.factors = [1.0, 2.0]),
        ("the bias subtracted", |s| s.factors = [1.0, -1.0]),
        ("the bias alone, without the product", |s| s.factors = [0.0, 1.0]),
    ])?;
    for other in case.other_weights(weight) {
        if other.ty == GgmlType::F32 {
            let values: Vec<f64> = other.f32s().map(f64::from).collect();
            let rows = |s: &mut Sum<'a>| {
                let rows = values.iter().copied().cycle().take(s.operands[0].len());
                s.operands[1] = rows.collect::<Vec<f64>>().into();
            };
            all.extend(case.changed(format!("{} as the bias", other.name), rows)?);
        }
    }
    Ok(all)
}

pub fn gate_and_up<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Op::SwiGlu { activation, .. } = *case.scene.op else { return Ok(vec![]) };
    let f = activation.short();
    type Mistake<'a> = fn(&mut Gated<'a>);
    let changes: [(String, Mistake<'a>); 6] = [
        (format!("gate and up swapped: gate · {f}(up)"), |g| std::mem::swap(&mut g.gate, &mut g.up)),
        (format!("{f}(gate) without up"), |g| g.up = vec![1.0; g.up.len()].into()),
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
        ("gelu, by sigmoid(1.702·x),", Activation::GeluBySigmoid),
        ("relu", Activation::Relu),
        ("relu²", Activation::ReluSquared),
        ("sigmoid", Activation::Sigmoid),
        ("tanh", Activation::Tanh),
    ] {
        if activation != stated.into() {
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
