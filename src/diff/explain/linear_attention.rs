//! Mistakes in what linear attention does before its state: the convolution, the norms of queries and keys, the decay; and in the rows of a
//! weight that is two.

use super::case::{Evidence, Variant};
use crate::diff::locate::Axis;
use crate::error::Result;
use crate::formula::linear::{Decode, Linear, as_it_is};
use crate::formula::linear_attention::{Convolution, Decay, Growth, taps};
use crate::formula::norm::{Norm, Scale, columns, values};
use crate::formula::pointwise::{Activation, Gated, Sum};
use crate::model::Mixer;
use crate::op::{GateActivation, GgmlType, Op, Stage, Weight};

/// The convolution's weights, and the position of each.
pub fn kernel<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let (Some(stated), Some(weight)) = (case.stated::<Convolution<'a>>()?, case.scene.op.weight()) else {
        return Ok(vec![]);
    };
    let (taps_each, channels) = (stated.kernel, stated.channels);
    let mut all = case.each_changed::<Convolution<'a>, _>([
        ("the kernel reversed in time", |c| c.w.chunks_exact_mut(c.kernel).for_each(|w| w.reverse())),
        ("the kernel read by columns", |c| {
            let w = c.w.clone();
            c.w = (0..w.len()).map(|i| w[i % c.kernel * c.channels + i / c.kernel]).collect();
        }),
        ("no convolution: the position's own values times the last weight", |c| {
            let last = c.kernel - 1;
            c.w.iter_mut().enumerate().filter(|(i, _)| i % c.kernel != last).for_each(|(_, w)| *w = 0.0);
        }),
        ("no convolution: the position's own values", |c| {
            let last = c.kernel - 1;
            c.w.iter_mut().enumerate().for_each(|(i, w)| *w = if i % c.kernel == last { 1.0 } else { 0.0 });
        }),
    ])?;
    let moved = case.each_changed::<Convolution<'a>, _>([
        ("a convolution that is a position late: it ends with the position before", |c| c.later = -1),
        ("a convolution that reads one position of the future", |c| c.later = 1),
    ])?;
    all.extend(moved.into_iter().map(|variant| variant.in_runs(&[Axis::Position])));
    for tap in 0..taps_each {
        let what = format!("a convolution without the {} weight of each channel", ordinal(tap));
        all.extend(case.changed(what, |c: &mut Convolution<'a>| {
            c.w.iter_mut().skip(tap).step_by(taps_each).for_each(|w| *w = 0.0);
        })?);
    }
    // Channels by so many on: to a neighbour, or from queries to keys and to values.
    let mut steps = vec![1, channels - 1];
    steps.extend(case.scene.config.linear.iter().flat_map(|l| [l.key_width(), 2 * l.key_width(), l.value_width()]));
    steps.retain(|by| *by > 0 && *by < channels);
    steps.sort_unstable();
    steps.dedup();
    for by in steps {
        let what = format!("the kernel of the channel {by} on");
        all.extend(case.changed(what, |c: &mut Convolution<'a>| c.w.rotate_left(by * taps_each))?);
    }
    for other in case.other_weights(weight).into_iter().filter(|other| other.ty == GgmlType::F32) {
        let w = taps(other)?;
        all.extend(case.changed(format!("{} as the kernel", other.name), |c: &mut Convolution<'a>| c.w = w)?);
    }
    Ok(all)
}

fn ordinal(n: usize) -> String {
    match n {
        0 => "first".into(),
        1 => "second".into(),
        2 => "third".into(),
        n => format!("{}th", n + 1),
    }
}

/// What a call finds of the positions before it.
pub fn conv_state<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Some(Convolution { start, kernel, row, .. }) = case.stated()? else { return Ok(vec![]) };
    if start == 0 {
        return Ok(vec![]);
    }
    let positions = row.len();
    type Row = fn(usize, usize) -> Option<usize>;
    let mut all = Vec::new();
    for (what, of) in [
        ("a convolution that begins anew with the call: zeros before it", (|_, _| None) as Row),
        ("a convolution whose earlier rows are one position late", |p, _| p.checked_sub(1)),
        ("a convolution whose earlier rows are one position early", |p, _| Some(p + 1)),
        ("a convolution whose row before the call is empty", |p, start| Some(p).filter(|p| p + 1 < start)),
        ("a convolution that has the call's first row for those before it", |_, start| Some(start)),
        ("a convolution that has the first position for those before the call", |_, _| Some(0)),
    ] {
        let rows = (0..positions).map(|p| if p < start { of(p, start) } else { Some(p) }).collect();
        all.extend(case.changed(what, |c: &mut Convolution<'a>| c.row = rows)?);
    }
    let reversed = (0..positions).map(|p| match (start..start + kernel).contains(&(p + kernel)) {
        true => Some(2 * start - kernel - p).filter(|row| *row < start),
        false => Some(p),
    });
    let reversed = reversed.collect();
    let what = "a convolution whose earlier rows are in reverse";
    all.extend(case.changed(what, |c: &mut Convolution<'a>| c.row = reversed)?);
    Ok(all)
}

pub fn conv_activation<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    case.each_changed::<Convolution<'a>, _>([
        ("a convolution without its silu", |c| c.activation = Activation::Identity),
        ("the sigmoid of the convolution for its silu", |c| c.activation = Activation::Sigmoid),
        ("relu for silu after the convolution", |c| c.activation = Activation::Relu),
        ("gelu, by tanh, for silu after the convolution", |c| c.activation = Activation::GeluByTanh),
        ("tanh for silu after the convolution", |c| c.activation = Activation::Tanh),
    ])
}

/// The norms of queries and of keys.
pub fn l2_norm<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Op::L2Norm { x, first, heads, head_dim, .. } = case.scene.op else { return Ok(vec![]) };
    let (first, heads, head_dim) = (*first, *heads, *head_dim);
    let (width, d) = (heads * head_dim, head_dim as f64);
    let mut all = case.each_changed::<Norm<'a>, _>([
        ("no norm: the head itself", |n| n.scale = Scale::One),
        ("an RMS norm, which is √D times as large", |n| n.divisor = n.n as f64),
        ("a norm without eps", |n| n.eps = 0.0),
        ("a norm with eps · D", |n| n.eps *= n.n as f64),
        ("a norm with eps / D", |n| n.eps /= n.n as f64),
        ("a norm with eps added to the root instead of under it", |n| n.scale = Scale::EpsOutside),
        ("a norm by the root or eps, whichever is larger", |n| n.scale = Scale::AtLeastEps),
        ("a norm by the root or √eps, whichever is larger", |n| {
            (n.scale, n.eps) = (Scale::AtLeastEps, n.eps.sqrt());
        }),
        ("a norm with the mean subtracted first", |n| n.centred = true),
    ])?;
    for (what, factor) in [("√D", d.sqrt()), ("1/√D", 1.0 / d.sqrt()), ("1/D", 1.0 / d)] {
        let what = format!("the norm times {what}");
        all.extend(case.changed(what, |n: &mut Norm<'a>| n.weight = vec![factor])?);
    }
    if heads > 1 {
        let over = |n: &mut Norm<'a>| {
            n.over(width);
            n.divisor = 1.0;
        };
        all.extend(case.changed("one norm over all heads", over)?);
    }
    for by in [1, 2].map(|parts| head_dim / parts / 2).into_iter().filter(|n| *n > 0 && head_dim % n == 0) {
        let what = format!("norms of {by} values each, not of the head's {head_dim}");
        all.extend(case.changed(what, |n: &mut Norm<'a>| {
            n.over(by);
            n.divisor = 1.0;
        })?);
    }
    // Columns of another part of the row: queries, keys, values.
    for (what, from) in [("queries", 0), ("keys", width), ("values", 2 * width)] {
        if from != first && from + width <= x.cols() {
            let other = columns(&case.inputs[0], x.cols(), from, width);
            all.extend(case.changed(format!("the norm of the {what}"), |n: &mut Norm<'a>| n.x = other)?);
        }
    }
    if let Some(qkv) = case.scene.earlier.get(Stage::LinearAttnQkv).filter(|qkv| qkv.shape == x.shape) {
        let before = columns(&qkv.to_f64(), qkv.cols(), first, width).into_owned();
        let what = "the norm of what goes into the convolution";
        all.extend(case.changed(what, |n: &mut Norm<'a>| n.x = before.into())?);
    }
    Ok(all)
}

/// The logarithm of the decay.
pub fn decay<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let (Some(stated), Some(weight)) = (case.stated::<Decay<'a>>()?, case.scene.op.weight()) else {
        return Ok(vec![]);
    };
    let mut all = case.each_changed::<Decay<'a>, _>([
        ("exp(x) for softplus(x)", |d| d.growth = Growth::Exp),
        ("relu(x) for softplus(x)", |d| d.growth = Growth::Relu),
        ("x for softplus(x)", |d| d.growth = Growth::Itself),
        ("sigmoid(x) for softplus(x)", |d| d.growth = Growth::Sigmoid),
        ("the weight with the other sign: a state that grows", |d| d.w.iter_mut().for_each(|w| *w = -*w)),
        ("softplus without the weight", |d| d.w.fill(1.0)),
        ("−softplus: every head's weight −1", |d| d.w.fill(-1.0)),
        ("−exp(weight) for the weight, which the file's is already", |d| d.w.iter_mut().for_each(|w| *w = -w.exp())),
        ("the logarithm of the weight's size for the weight", |d| d.w.iter_mut().for_each(|w| *w = w.abs().ln())),
        ("exp(−x) in softplus's place of exp(x)", |d| d.x.to_mut().iter_mut().for_each(|x| *x = -*x)),
        ("the decay itself, not its logarithm", |d| d.exponential = true),
        ("the weight of the next head", |d| d.w.rotate_left(1)),
        ("the weight of the head before", |d| d.w.rotate_right(1)),
        ("the weight of head 0 for every head", |d| d.w = vec![d.w[0]; d.w.len()]),
        ("the heads' weights in reverse", |d| d.w.reverse()),
    ])?;
    for (what, order) in orders(case, stated.w.len()) {
        let w = order.iter().map(|head| stated.w[*head]).collect();
        all.extend(case.changed(format!("the heads' weights {what}"), |d: &mut Decay<'a>| d.w = w)?);
    }
    if let Some(a) = case.scene.earlier.get(Stage::LinearAttnA).filter(|a| a.len() == stated.x.len()) {
        let what = "softplus of the projection, without its bias";
        all.extend(case.changed(what, |d: &mut Decay<'a>| d.x = a.to_f64().into())?);
    }
    for other in case.other_weights(weight).into_iter().filter(|other| other.ty == GgmlType::F32) {
        let w = values(other)?;
        all.extend(case.changed(format!("{} as the weight", other.name), |d: &mut Decay<'a>| d.w = w)?);
    }
    Ok(all)
}

/// For each value head, the one that has its place where key heads' value heads follow each other and they should alternate, and the reverse.
pub(super) fn orders(case: &Evidence<'_>, heads: usize) -> Vec<(&'static str, Vec<usize>)> {
    let Some(linear) = case.scene.config.linear.filter(|l| l.value_heads == heads) else { return Vec::new() };
    let (keys, each) = (linear.key_heads, heads / linear.key_heads);
    if keys == 1 || each == 1 {
        return Vec::new();
    }
    vec![
        ("in the order of key heads", (0..heads).map(|h| h % keys * each + h / keys).collect()),
        ("in the order that key heads alternate in", (0..heads).map(|h| h % each * keys + h / each).collect()),
    ]
}

/// A projection's rows where the file has two projections in one weight, whose rows take turns.
pub fn joint_rows<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Some(weight) = case.scene.op.weight() else { return Ok(vec![]) };
    let Some(([a, b], together)) = joint(case) else { return Ok(vec![]) };
    let (part, rows) = (usize::from(weight.id == b.id), weight.rows);
    type Row = fn(usize, usize, usize) -> usize;
    let mut all = Vec::new();
    for (what, of) in [
        ("the joint weight's halves, where the rows of heads take turns", (|part, row, rows| part * rows + row) as Row),
        ("the joint weight's halves, the other of them", |part, row, rows| (1 - part) * rows + row),
        ("every other row of the joint weight, where the rows of heads take turns", |part, row, _| 2 * row + part),
        ("every other row of the joint weight, the others of them", |part, row, _| 2 * row + 1 - part),
    ] {
        // The row of the file's weight, and where it went.
        let mut decode: Decode<'a> = Box::new(move |expert, row, product, offset| {
            let joint = of(part, row, rows);
            let weight = if joint / together % 2 == 0 { a } else { b };
            as_it_is(weight)(expert, joint / (2 * together) * together + joint % together, product, offset)
        });
        case.emulation.round(&mut decode);
        all.extend(case.changed(what, |l: &mut Linear<'a>| l.decode = decode)?);
    }
    Ok(all)
}

/// The two weights that are one in the file, of which the stage's is one, and how many of its rows in turn are of each.
fn joint<'a>(case: &'a Evidence<'a>) -> Option<([&'a Weight; 2], usize)> {
    let config = case.scene.config;
    let (pair, together) = match &case.scene.weights.layers.get(case.scene.site.layer? as usize)?.mixer {
        Mixer::Attention(w) => ([&*w.q, w.gate.as_deref()?], config.head_dim),
        Mixer::Latent(_) => return None,
        Mixer::Linear(w) => {
            let linear = config.linear.filter(|_| config.architecture.linear.is_some_and(|rule| rule.joint_beta))?;
            ([&*w.b, &*w.a], linear.value_heads / linear.key_heads)
        }
    };
    let [a, b] = pair;
    let is_one = case.scene.op.weight().is_some_and(|weight| pair.iter().any(|of| of.id == weight.id));
    (is_one && (a.rows, a.ty) == (b.rows, b.ty) && a.rows.is_multiple_of(together)).then_some((pair, together))
}

/// What is done to an output by a gate of its own width, read elsewhere.
pub fn gate_place<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Op::SwiGlu { gate, .. } = case.scene.op else { return Ok(vec![]) };
    let config = case.scene.config;
    let d = match (case.scene.site.stage, config.linear) {
        (Stage::AttnGated, _) => config.head_dim,
        (Stage::LinearAttnGated, Some(linear)) => linear.head_dim,
        _ => return Ok(vec![]),
    };
    let (cols, heads) = (gate.cols(), gate.cols() / d.max(1));
    let reading = |of: &dyn Fn(usize, usize) -> Option<usize>| {
        let values = (0..gate.len()).map(|i| of(i / cols, i % cols).map_or(0.0, |from| case.inputs[0][from]));
        values.collect::<Vec<f64>>()
    };
    let head = |of: &dyn Fn(usize) -> usize| reading(&|t, i| Some(t * cols + of(i / d) * d + i % d));
    let mut places = vec![
        ("the gate of the position before", reading(&|t, i| t.checked_sub(1).map(|t| t * cols + i))),
        ("the gate of the call's first position", reading(&|_, i| Some(i))),
    ];
    if heads > 1 {
        places.extend([
            ("the gate of the next head", head(&|h| (h + 1) % heads)),
            ("the gate of the head before", head(&|h| (h + heads - 1) % heads)),
            ("the gate of head 0 in every head", head(&|_| 0)),
            ("the gates of the heads in reverse", head(&|h| heads - 1 - h)),
            ("one gate for each head, its first", reading(&|t, i| Some(t * cols + i / d * d))),
        ]);
    }
    for (what, order) in orders(case, heads) {
        let what = if what.ends_with("key heads") { "gates in the order of key heads" } else { "gates in turn" };
        places.push((what, head(&|h| order[h])));
    }
    let mut all = Vec::new();
    for (what, values) in places {
        all.extend(case.changed(what, |g: &mut Gated<'a>| g.gate = values.into())?);
    }
    if let (Op::SwiGlu { activation: GateActivation::Sigmoid, .. }, Some(q)) =
        (case.scene.op, case.scene.earlier.get(Stage::QProj).filter(|q| q.shape == gate.shape))
    {
        all.extend(case.changed("q in the gate's place", |g: &mut Gated<'a>| g.gate = q.to_f64().into())?);
    }
    Ok(all)
}

/// The bias of a decay, of another head.
pub fn decay_bias<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let mut all = case.each_changed::<Sum<'a>, _>([
        ("the bias of the next head", |s| s.operands[1].to_mut().rotate_left(1)),
        ("the bias of the head before", |s| s.operands[1].to_mut().rotate_right(1)),
        ("the bias of head 0 for every head", |s| {
            let first = s.operands[1][0];
            s.operands[1].to_mut().fill(first);
        }),
    ])?;
    for (what, order) in orders(case, case.cols()) {
        let reorder = |s: &mut Sum<'a>| s.operands[1] = order.iter().map(|h| s.operands[1][*h]).collect();
        all.extend(case.changed(format!("the heads' biases {what}"), reorder)?);
    }
    Ok(all)
}
