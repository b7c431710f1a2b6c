//! Rows that are read at another distance than they are apart: that of another head count, or of a tensor that holds several operands; and
//! weights that hold several projections, taken apart in another order than theirs.

use super::case::{Evidence, Variant};
use super::linear_attention;
use crate::error::Result;
use crate::formula::attention::{Context, Scores, Sizes};
use crate::formula::linear::{Decode, Linear, as_it_is};
use crate::formula::norm::Norm;
use crate::formula::pointwise::Gated;
use crate::formula::rope::Rope;
use crate::model::{Ffn, Mixer};
use crate::op::{Op, Stage, Weight};

/// Rows of `cols` values, of which one begins every `stride` values of something, the first at `start`.
#[derive(Clone, Copy)]
struct Rows {
    start: usize,
    rows: usize,
    cols: usize,
    stride: usize,
}

impl Rows {
    /// The rows; zeros where there is nothing.
    fn of(self, from: &[f64]) -> Vec<f64> {
        let source = |i: usize| self.start + i / self.cols * self.stride + i % self.cols;
        (0..self.rows * self.cols).map(|i| from.get(source(i)).copied().unwrap_or(0.0)).collect()
    }

    /// Whether a row lies within `len` values up to its column `end`.
    fn within(self, row: usize, end: usize, len: usize) -> bool {
        self.start + row * self.stride + end <= len
    }
}

/// The heads in a row of q, of k and v, and of all three in one tensor, without `own`; and what that is called. Inside a segment, where each
/// takes a run of the rest of it, not the last.
fn strides(case: &Evidence<'_>, heads: usize, kv_heads: usize, own: usize) -> Vec<(usize, &'static str)> {
    let all = [
        (heads, "the query heads'"),
        (kv_heads, "the KV heads'"),
        (heads + 2 * kv_heads, "that of q, k and v in one tensor"),
    ];
    let tried = if case.unseen { &all[..2] } else { &all[..] };
    let mut found: Vec<(usize, &'static str)> = tried.iter().copied().filter(|(n, _)| *n != own).collect();
    found.dedup_by_key(|(n, _)| *n);
    found
}

/// An operand's rows at the stride of something else.
pub fn other_rows<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    match (case.scene.op, case.scene.site.stage) {
        (Op::AttnScores { .. } | Op::AttnContext { .. }, _) => attention(case),
        (Op::Rope { .. }, _) | (_, Stage::QNorm | Stage::KNorm) => heads(case),
        (Op::SwiGlu { .. }, Stage::ExpertAct | Stage::FfnAct) => gate_and_up(case),
        _ => Ok(vec![]),
    }
}

fn attention<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let mut all = Vec::new();
    if let Some(Scores { sizes, cache, .. }) = case.stated::<Scores<'a>>()? {
        let Sizes { heads, kv_heads, head_dim: d, tokens, keys, .. } = sizes;
        for (stride, of) in strides(case, heads, kv_heads, heads) {
            let rows = Rows { start: 0, rows: tokens, cols: heads * d, stride: stride * d };
            let unknown = move |i: usize| {
                let (head, token) = (i / keys / tokens, i / keys % tokens);
                !rows.within(token, (head + 1) * d, tokens * heads * d)
            };
            let change = |s: &mut Scores<'a>| {
                s.q = rows.of(&s.q).into();
                s.ties[0] = s.ties[0].take().map(|ties| rows.of(&ties));
            };
            let what = format!("q in rows of {stride} heads, {of}, for {heads}");
            all.extend(case.changed(what, change)?.map(|variant| variant.unknown_at(unknown)));
        }
        for (stride, of) in strides(case, heads, kv_heads, kv_heads) {
            let (rows, len) =
                (Rows { start: 0, rows: keys, cols: kv_heads * d, stride: stride * d }, keys * kv_heads * d);
            let kv_head = cache.kv_head.clone();
            let unknown = move |i: usize| !rows.within(i % keys, (kv_head[i / keys / tokens] + 1) * d, len);
            let change = |s: &mut Scores<'a>| {
                s.k = rows.of(&s.k[..len]).into();
                s.ties[1] = s.ties[1].take().map(|ties| rows.of(&ties[..len]));
            };
            let what = format!("k in rows of {stride} heads, {of}, for {kv_heads}");
            all.extend(case.changed(what, change)?.map(|variant| variant.unknown_at(unknown)));
        }
    }
    if let Some(Context { sizes, cache, .. }) = case.stated::<Context<'a>>()? {
        let Sizes { heads, kv_heads, head_dim: d, keys, .. } = sizes;
        for (stride, of) in strides(case, heads, kv_heads, kv_heads) {
            let (rows, len) =
                (Rows { start: 0, rows: keys, cols: kv_heads * d, stride: stride * d }, keys * kv_heads * d);
            let (seen, kv_head) = (cache.seen, cache.kv_head.clone());
            // A sum is known if the last row that it reads is.
            let unknown = move |i: usize| {
                let last = seen.of(i / d / heads, keys).next_back().unwrap_or(0);
                !rows.within(last, (kv_head[i / d % heads] + 1) * d, len)
            };
            let change = |c: &mut Context<'a>| {
                c.v = rows.of(&c.v[..len]).into();
                c.ties[1] = c.ties[1].take().map(|ties| rows.of(&ties[..len]));
            };
            let what = format!("v in rows of {stride} heads, {of}, for {kv_heads}");
            all.extend(case.changed(what, change)?.map(|variant| variant.unknown_at(unknown)));
        }
    }
    Ok(all)
}

/// The heads of q or k where they are normed or turned: rows at another stride, and where they are first read, at their own stride from a
/// tensor of q, k and v.
fn heads<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let (config, cols) = (case.scene.config, case.cols());
    let d = match case.stated::<Rope<'a>>()? {
        Some(rope) => rope.head_dim,
        None => config.head_dim,
    };
    // What needs the whole row of another is unknown where that row is.
    let group = case.stated::<Norm<'a>>()?.map_or(d, |norm| norm.n);
    let (tokens, len) = (case.output.len() / cols, case.output.len());
    let with = |what: String, x: Vec<f64>| match case.scene.op {
        Op::Rope { .. } => case.changed(what, |r: &mut Rope<'a>| r.x = x.into()),
        _ => case.changed(what, |n: &mut Norm<'a>| n.x = x.into()),
    };
    let mut all = Vec::new();
    for (stride, of) in strides(case, config.heads, config.kv_heads, cols / d) {
        let rows = Rows { start: 0, rows: tokens, cols, stride: stride * d };
        let what = format!("rows of {stride} heads, {of}, for {}", cols / d);
        let unknown = move |i: usize| !rows.within(i / cols, (i % cols / group + 1) * group, len);
        all.extend(with(what, rows.of(&case.inputs[0]))?.map(|variant| variant.unknown_at(unknown)));
    }
    use Stage::*;
    let layout = config.layout();
    let later = matches!(case.scene.op, Op::Rope { .. }) && QNorm.info().scope.occurs(layout);
    let stages = if layout.qkv_bias { [QBias, KBias, VBias] } else { [QProj, KProj, VProj] };
    let parts: Option<Vec<Vec<f64>>> = stages.iter().map(|s| Some(case.scene.earlier.get(*s)?.to_f64())).collect();
    if let (Some(parts), false) = (parts, later || case.unseen) {
        let widths: Vec<usize> = parts.iter().map(|part| part.len() / tokens).collect();
        let row = |t: usize| parts.iter().zip(&widths).flat_map(move |(part, n)| &part[t * n..][..*n]);
        let joint: Vec<f64> = (0..tokens).flat_map(row).copied().collect();
        let start = if matches!(case.scene.site.stage, KNorm | KRope) { widths[0] } else { 0 };
        let x = Rows { start, rows: tokens, cols, stride: cols }.of(&joint);
        all.extend(with("its own stride in a tensor that has q, k and v".into(), x)?);
    }
    Ok(all)
}

/// Gate and up as one tensor, by halves or by turns, read as if it were not so.
fn gate_and_up<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let (cols, len) = (case.cols(), case.output.len());
    let (gate, up) = (&case.inputs[0], &case.inputs[1]);
    if gate.len() != len || up.len() != len {
        return Ok(vec![]);
    }
    let halves: Vec<f64> =
        gate.chunks(cols).zip(up.chunks(cols)).flat_map(|(g, u)| [g, u]).flatten().copied().collect();
    let turns: Vec<f64> = gate.iter().zip(up).flat_map(|(g, u)| [*g, *u]).collect();
    let read = |from: &[f64], of: &dyn Fn(usize, usize) -> usize| -> [Vec<f64>; 2] {
        [0, 1].map(|part| (0..len).map(|i| from.get(of(part, i)).copied().unwrap_or(0.0)).collect())
    };
    let both = move |row: usize, column: usize| 2 * row * cols + column;
    let mut ways = vec![
        (
            "gate and up by turns in one tensor, read as its halves",
            read(&turns, &|part, i| both(i / cols, part * cols + i % cols)),
        ),
        (
            "gate and up as the halves of one tensor, read by turns",
            read(&halves, &|part, i| both(i / cols, 2 * (i % cols) + part)),
        ),
    ];
    let several = len > cols && !case.unseen;
    if several {
        ways.push((
            "gate and up as the halves of one tensor, read in rows of a half",
            read(&halves, &|part, i| part * cols + i),
        ));
    }
    let mut all = Vec::new();
    for (what, [gate, up]) in ways {
        all.extend(case.changed(what, |g: &mut Gated<'a>| (g.gate, g.up) = (gate.into(), up.into()))?);
    }
    if several {
        let rows = Rows { start: 0, rows: len / cols, cols, stride: 2 * cols };
        let what = "gate and up in rows twice as long, those of one tensor of both";
        let change = |g: &mut Gated<'a>| (g.gate, g.up) = (rows.of(&g.gate).into(), rows.of(&g.up).into());
        let unknown = move |i: usize| !rows.within(i / cols, i % cols + 1, len);
        all.extend(case.changed(what, change)?.map(|variant| variant.unknown_at(unknown)));
    }
    Ok(all)
}

/// A projection's rows where one weight holds several, taken apart in another order than theirs.
pub fn joint_rows<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let mut all = linear_attention::joint_rows(case)?;
    let (Some(weight), Some(layer)) = (case.scene.op.weight(), case.scene.site.layer) else { return Ok(all) };
    let Some(layer) = case.scene.weights.layers.get(layer as usize) else { return Ok(all) };
    if let Mixer::Attention(of) = &layer.mixer
        && of.gate.is_none()
    {
        let d = case.scene.config.head_dim;
        all.extend(qkv(case, weight, [&*of.q, &*of.k, &*of.v], d)?);
    }
    let mut pairs: Vec<[&'a Weight; 2]> = Vec::new();
    match &layer.ffn {
        Ffn::Dense { gate, up, .. } => pairs.push([&**gate, &**up]),
        Ffn::Moe(moe) => {
            pairs.push([&*moe.gate, &*moe.up]);
            pairs.extend(moe.shared.as_ref().map(|shared| [&*shared.gate, &*shared.up]));
        }
    }
    for [gate, up] in pairs {
        let Some(part) = [gate, up].iter().position(|w| w.id == weight.id).filter(|_| gate.rows == up.rows) else {
            continue;
        };
        let rows = gate.rows;
        let turns = move |row: usize| {
            let joint = part * rows + row;
            (if joint.is_multiple_of(2) { gate } else { up }, joint / 2)
        };
        let what = "gate and up in one weight, whose rows take turns, taken for its halves";
        all.extend(rows_from(case, what, turns)?);
        let halves = move |row: usize| {
            let joint = 2 * row + part;
            if joint < rows { (gate, joint) } else { (up, joint - rows) }
        };
        let what = "gate and up as the halves of one weight, taken for rows that take turns";
        all.extend(rows_from(case, what, halves)?);
    }
    Ok(all)
}

/// q, k and v in one weight: one after the other, or for each KV head the query heads that share it, its k and its v; each taken for the other.
fn qkv<'a>(case: &'a Evidence<'a>, weight: &'a Weight, parts: [&'a Weight; 3], d: usize) -> Result<Vec<Variant<'a>>> {
    let Some(part) = parts.iter().position(|w| w.id == weight.id) else { return Ok(vec![]) };
    let [heads, kv_heads, _] = parts.map(|w| w.rows / d);
    if parts.iter().any(|w| w.cols != weight.cols || !w.rows.is_multiple_of(d)) || kv_heads < 2 {
        return Ok(vec![]);
    }
    let group = heads / kv_heads;
    let begins = [0, heads, heads + kv_heads];
    // Of a head of the joint weight: whose it is, and which of those.
    let in_turn = move |joint: usize| match (joint / (group + 2), joint % (group + 2)) {
        (of, within) if within < group => (0, of * group + within),
        (of, within) => (within - group + 1, of),
    };
    let one_by_one = move |joint: usize| {
        let part = begins.iter().rposition(|begin| *begin <= joint).unwrap_or(0);
        (part, joint - begins[part])
    };
    // Where a head of this projection is looked for.
    let place_in_turn = move |head: usize| match part {
        0 => head / group * (group + 2) + head % group,
        part => head * (group + 2) + group + part - 1,
    };
    let of = move |(part, head): (usize, usize), row: usize| (parts[part], head * d + row % d);
    let mut all = Vec::new();
    let what = "q, k and v in one weight by groups of heads, taken for one after the other";
    all.extend(rows_from(case, what, move |row| of(in_turn(begins[part] + row / d), row))?);
    let what = "q, k and v in one weight one after the other, taken for groups of heads";
    all.extend(rows_from(case, what, move |row| of(one_by_one(place_in_turn(row / d)), row))?);
    Ok(all)
}

/// The product with rows that are each of some weight.
fn rows_from<'a>(
    case: &'a Evidence<'a>,
    what: &str,
    of: impl Fn(usize) -> (&'a Weight, usize) + Send + Sync + 'a,
) -> Result<Option<Variant<'a>>> {
    let mut decode: Decode<'a> = Box::new(move |expert, row, product, offset| {
        let (weight, row) = of(row);
        as_it_is(weight)(expert, row, product, offset)
    });
    case.emulation.round(&mut decode);
    case.changed(what, |l: &mut Linear<'a>| l.decode = decode)
}
