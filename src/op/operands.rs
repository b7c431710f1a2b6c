//! What the operands of an operation must be: the one list of rules, which every backend keeps to.
//!
//! Design:
//! - **Shapes decide.** [`Op::check`] looks at shapes, at what kind of elements a tensor has and at scalars, so that it costs a
//!   call nothing that can be measured. Of the values it reads only ids, and those only where they are on the host.
//! - **One form of message**, `SITE (OPERATION): OPERAND is FOUND where EXPECTED was expected`, and one kind of error,
//!   [`Error::Usage`]: the operands are wrong, whatever the backend.
//! - What a backend cannot do with operands that are right, such as a type that it has no kernels for, is no rule of this list.
//!   The backend refuses it by itself, as [`Error::CannotRun`].

use std::fmt::{Arguments, Debug};

use crate::error::{Error, Result};
use crate::op::{Data, GgmlType, Groups, HostTensor, Op, OpKind, Site, Weight};

/// What the rules look at in a tensor.
#[derive(Clone, Copy, Debug)]
pub struct Operand<'a> {
    /// Its axes.
    pub shape: &'a [usize],
    /// What its elements are.
    pub elements: Elements<'a>,
}

/// What the elements of a tensor are. In which format a backend keeps its numbers is its own affair.
#[derive(Clone, Copy, Debug)]
pub enum Elements<'a> {
    /// f32 or f64.
    Numbers,
    /// Expert ids; the values where they are on the host.
    Ids(Option<&'a [u32]>),
}

impl HostTensor {
    /// What [`Op::check`] looks at.
    pub fn operand(&self) -> Operand<'_> {
        let elements = match &self.data {
            Data::F32(_) | Data::F64(_) => Elements::Numbers,
            Data::U32(ids) => Elements::Ids(Some(ids)),
        };
        Operand { shape: &self.shape, elements }
    }
}

/// The operation that is checked, and where: for messages.
struct Checked {
    site: Option<Site>,
    op: OpKind,
}

impl Checked {
    fn error(&self, message: impl std::fmt::Display) -> Error {
        Error::usage(match self.site {
            Some(site) => format!("{site} ({:?}): {message}", self.op),
            None => format!("{:?}: {message}", self.op),
        })
    }

    fn wrong(&self, operand: &str, found: impl Debug, expected: Arguments<'_>) -> Error {
        self.error(format_args!("{operand} is {found:?} where {expected} was expected"))
    }

    /// The axes of a shape, if there are N of them and they are as `fits` wants them.
    fn axes<const N: usize>(
        &self,
        operand: &str,
        shape: &[usize],
        expected: Arguments<'_>,
        fits: impl FnOnce([usize; N]) -> bool,
    ) -> Result<[usize; N]> {
        match shape.try_into() {
            Ok(axes) if fits(axes) => Ok(axes),
            _ => Err(self.wrong(operand, shape, expected)),
        }
    }

    /// The columns and rows of a weight that is one matrix.
    fn matrix(&self, weight: &Weight) -> Result<[usize; 2]> {
        match weight.experts {
            1 => Ok([weight.cols, weight.rows]),
            _ => Err(self.wrong(&weight.name, weight.dims(), format_args!("one matrix [cols, rows]"))),
        }
    }

    /// The error of a weight that is not the vector of f32 that it ought to be.
    fn not_f32s(&self, weight: &Weight, expected: Arguments<'_>) -> Error {
        self.error(format_args!("{} is {} {:?} where {expected} was expected", weight.name, weight.ty, weight.dims()))
    }

    fn head_dim(&self, head_dim: usize) -> Result<usize> {
        match head_dim {
            0 => Err(self.wrong("head_dim", 0, format_args!("at least 1"))),
            n => Ok(n),
        }
    }

    /// A window has a position's own key in it. Devices count in 32 bits.
    fn window(&self, window: Option<usize>) -> Result<()> {
        match window {
            Some(n) if n == 0 || n > u32::MAX as usize => Err(self.wrong("window", n, format_args!("at least 1 key"))),
            _ => Ok(()),
        }
    }

    /// S = start + T. Positions are counted in 32 bits: no model's context is as long, and devices have no wider integers.
    fn seen(&self, start: usize, positions: usize) -> Result<usize> {
        let most = u32::MAX as usize;
        start.checked_add(positions).filter(|seen| *seen <= most).ok_or_else(|| {
            self.wrong("start", start, format_args!("a position with room for {positions} below {most}"))
        })
    }

    /// The KV cache `name` has the positions seen, and heads that divide the `heads` query heads.
    fn cache(&self, name: &str, cache: &[usize], seen: usize, heads: usize, head_dim: usize) -> Result<()> {
        let expected = format_args!(
            "[S ≥ {seen}, kv_heads·{head_dim}], with a number of kv_heads that divides {heads} query heads,"
        );
        self.axes(name, cache, expected, |[capacity, cols]| {
            capacity >= seen && cols.is_multiple_of(head_dim) && heads.is_multiple_of(cols / head_dim)
        })?;
        Ok(())
    }

    /// [T, heads·D].
    fn heads(&self, operand: &str, shape: &[usize], head_dim: usize) -> Result<[usize; 2]> {
        self.axes(operand, shape, format_args!("[T, heads·{head_dim}]"), |[_, cols]| cols.is_multiple_of(head_dim))
    }

    /// [heads, T, S].
    fn scores(&self, operand: &str, shape: &[usize], start: usize) -> Result<[usize; 3]> {
        let fits = |[_, t, seen]: [usize; 3]| start.checked_add(t) == Some(seen);
        self.axes(operand, shape, format_args!("[heads, T, {start} + T]"), fits)
    }

    /// Two operands of one shape, of a value or a row for each position.
    fn same(&self, [(a, a_shape), (b, b_shape)]: [(&str, &[usize]); 2]) -> Result<Vec<usize>> {
        if !matches!(a_shape.len(), 2 | 3) {
            return Err(self.wrong(a, a_shape, format_args!("[T, n] or [T, K, n]")));
        }
        if a_shape != b_shape {
            return Err(self.wrong(b, b_shape, format_args!("{a_shape:?}, as {a} is,")));
        }
        Ok(a_shape.to_vec())
    }

    /// Each of the ids [T, K] names one of the experts of `whose`.
    fn experts(&self, ids: Operand<'_>, experts: usize, whose: &str) -> Result<()> {
        let Elements::Ids(Some(values)) = ids.elements else { return Ok(()) };
        match values.iter().position(|id| *id as usize >= experts) {
            None => Ok(()),
            Some(i) => {
                let k = ids.shape[ids.shape.len() - 1];
                let slot = format!("ids[{}, {}]", i / k, i % k);
                Err(self.wrong(&slot, values[i], format_args!("one of the {experts} experts of {whose}")))
            }
        }
    }
}

impl<T> Op<'_, T> {
    /// Holds the operands against each other and against what [`Op`] says of them; `look` says what a handle is a handle to.
    /// Returns the shape of the result, whose elements are ids for [`Op::RouterTopK`] and numbers otherwise.
    ///
    /// # Errors
    /// [`Error::Usage`] that names the site, the operation, the operand, what it is and what was expected.
    pub fn check<'a>(
        &'a self,
        site: impl Into<Option<Site>>,
        look: impl Fn(&'a T) -> Operand<'a>,
    ) -> Result<Vec<usize>> {
        let at = Checked { site: site.into(), op: self.kind() };
        for (name, tensor) in self.operands() {
            let Operand { shape, elements } = look(tensor);
            match (elements, name == "ids") {
                (Elements::Ids(_), false) => {
                    return Err(at.wrong(name, shape, format_args!("a tensor of numbers, not ids,")));
                }
                (Elements::Numbers, true) => {
                    return Err(at.wrong(name, shape, format_args!("a tensor of ids, not numbers,")));
                }
                _ => {}
            }
            if shape.is_empty() || shape.contains(&0) {
                return Err(at.wrong(name, shape, format_args!("a tensor with values")));
            }
        }
        if let Some(weight) = self.weight()
            && weight.cols * weight.rows * weight.experts == 0
        {
            return Err(at.wrong(&weight.name, weight.dims(), format_args!("a weight with values")));
        }
        if let Some(weight) = self.weight().filter(|w| !w.scales.is_empty())
            && !matches!(self, Op::MatMul { .. } | Op::ExpertMatMul { .. })
        {
            let expected = format_args!("a weight without them; products are what scales are of");
            return Err(at.wrong(&format!("scales of {}", weight.name), &weight.scales, expected));
        }
        let shape = |tensor| look(tensor).shape;
        Ok(match self {
            Op::Embed { table, tokens, .. } => {
                let [cols, rows] = at.matrix(table)?;
                if tokens.is_empty() {
                    return Err(at.wrong("tokens", tokens, format_args!("at least one token")));
                }
                if let Some(i) = tokens.iter().position(|token| *token as usize >= rows) {
                    let expected = format_args!("one of the {rows} rows of {}", table.name);
                    return Err(at.wrong(&format!("tokens[{i}]"), tokens[i], expected));
                }
                vec![tokens.len(), cols]
            }
            &Op::RmsNorm { ref x, weight, keep, .. } => {
                let n = weight.cols;
                if weight.rows * weight.experts != 1 {
                    return Err(at.wrong(&weight.name, weight.dims(), format_args!("a vector [cols, 1]")));
                }
                let fits = |[_, cols]: [usize; 2]| cols > keep && (cols - keep).is_multiple_of(n);
                match keep {
                    0 => at.axes("x", shape(x), format_args!("[T, groups·{n}] for {}", weight.name), fits),
                    _ => at.axes("x", shape(x), format_args!("[T, groups·{n} + {keep}] for {}", weight.name), fits),
                }?
                .to_vec()
            }
            Op::MatMul { x, weight } => {
                let [k, n] = at.matrix(weight)?;
                let expected = format_args!("[T, {k}] for {} {:?}", weight.name, weight.dims());
                let [t, _] = at.axes("x", shape(x), expected, |[_, cols]| cols == k)?;
                vec![t, n]
            }
            &Op::HeadMatMul { ref x, weight, head_dim, keep } => {
                let [k, n, heads] = [weight.cols, weight.rows, weight.experts];
                if at.head_dim(head_dim)? < k {
                    let expected = format_args!("at least {k} for {} {:?}", weight.name, weight.dims());
                    return Err(at.wrong("head_dim", head_dim, expected));
                }
                let expected =
                    format_args!("[T, {heads}·{head_dim}] or [T, {head_dim}] for {} {:?}", weight.name, weight.dims());
                let [t, _] = at.axes("x", shape(x), expected, |[_, cols]| {
                    cols == head_dim || heads.checked_mul(head_dim) == Some(cols)
                })?;
                vec![t, heads * (n + if keep { head_dim - k } else { 0 })]
            }
            Op::Bias { x, weight } => {
                let n = weight.cols;
                if weight.rows * weight.experts != 1 || weight.ty != GgmlType::F32 {
                    return Err(at.not_f32s(weight, format_args!("an F32 vector [N, 1]")));
                }
                at.axes("x", shape(x), format_args!("[T, {n}] for {}", weight.name), |[_, cols]| cols == n)?.to_vec()
            }
            &Op::Rope { ref x, start, head_dim, ref rotation } => {
                let turned = rotation.turned(head_dim);
                if let Some(factors) = rotation.factors
                    && (factors.ty != GgmlType::F32 || factors.dims() != [turned / 2, 1])
                {
                    let expected = format_args!("an F32 vector [{}, 1], one for each pair of a head,", turned / 2);
                    return Err(at.not_f32s(factors, expected));
                }
                if at.head_dim(head_dim)? % 2 != 0 {
                    return Err(at.wrong("head_dim", head_dim, format_args!("an even number")));
                }
                if turned == 0 || turned % 2 != 0 || turned > head_dim {
                    return Err(at.wrong("dims", turned, format_args!("an even number from 2 to {head_dim}")));
                }
                if rotation.first > head_dim - turned {
                    let expected = format_args!("at most {}", head_dim - turned);
                    return Err(at.wrong("the first dimension that turns", rotation.first, expected));
                }
                let [t, cols] = at.heads("x", shape(x), head_dim)?;
                at.seen(start, t)?;
                vec![t, cols]
            }
            &Op::Store { ref cache, ref x, start } => {
                let [capacity, n] = at.axes("cache", shape(cache), format_args!("[capacity, n]"), |_| true)?;
                let room = capacity.saturating_sub(start);
                let expected = format_args!("[T ≤ {room}, ≥ {n}] at {start} of {capacity}");
                at.axes("x", shape(x), expected, |[t, cols]| cols >= n && t <= room)?;
                vec![capacity, n]
            }
            &Op::AttnScores { ref q, ref k, start, head_dim, window, .. } => {
                at.window(window)?;
                let [t, cols] = at.heads("q", shape(q), at.head_dim(head_dim)?)?;
                let (heads, seen) = (cols / head_dim, at.seen(start, t)?);
                at.cache("k", shape(k), seen, heads, head_dim)?;
                vec![heads, t, seen]
            }
            &Op::AttnProbs { ref scores, start, window, sinks } => {
                at.window(window)?;
                let [heads, t, seen] = at.scores("scores", shape(scores), start)?;
                if let Some(sinks) = sinks
                    && (sinks.ty != GgmlType::F32 || sinks.dims() != [heads, 1])
                {
                    return Err(at.not_f32s(sinks, format_args!("an F32 vector [{heads}, 1], one for each head,")));
                }
                vec![heads, t, seen]
            }
            &Op::AttnContext { ref probs, ref v, start, head_dim, window } => {
                at.window(window)?;
                let [heads, t, seen] = at.scores("probs", shape(probs), start)?;
                at.cache("v", shape(v), seen, heads, at.head_dim(head_dim)?)?;
                // The cache's columns are as many heads as this or fewer, so the product fits.
                vec![t, heads * head_dim]
            }
            Op::Add { a, b } => at.same([("a", shape(a)), ("b", shape(b))])?,
            Op::SwiGlu { gate, up, .. } => at.same([("gate", shape(gate)), ("up", shape(up))])?,
            Op::SigmoidGate { x, gate } => {
                let [t, n] = at.axes("x", shape(x), format_args!("[T, n]"), |_| true)?;
                at.axes("gate", shape(gate), format_args!("[{t}, 1]"), |axes| axes == [t, 1])?;
                vec![t, n]
            }
            Op::RouterProbs { logits, .. } => {
                at.axes("logits", shape(logits), format_args!("[T, E]"), |[_, _]| true)?.to_vec()
            }
            &Op::RouterTopK { ref probs, k, groups } => {
                let [t, experts] = at.axes("probs", shape(probs), format_args!("[T, E]"), |_| true)?;
                if !(1..=experts).contains(&k) {
                    return Err(at.wrong("k", k, format_args!("1 to {experts}, as many as there are experts,")));
                }
                if let Some(groups @ Groups { count, used, .. }) = groups {
                    // Two of a group at least, as its score may be that of two.
                    if count == 0 || !experts.is_multiple_of(count) || experts / count < 2 {
                        let expected = format_args!("a number of groups of two or more of {experts} experts");
                        return Err(at.wrong("groups", count, expected));
                    }
                    if used == 0 || used > count || k > groups.left(experts) {
                        let expected = format_args!("1 to {count} groups, with {k} experts or more,");
                        return Err(at.wrong("groups used", used, expected));
                    }
                }
                vec![t, k]
            }
            &Op::RouterWeights { ref probs, ref ids, softmax, scale, .. } => {
                if softmax && scale != 1.0 {
                    return Err(at.wrong("scale", scale, format_args!("1, as a softmax over the chosen has it,")));
                }
                let [t, experts] = at.axes("probs", shape(probs), format_args!("[T, E]"), |_| true)?;
                let [_, k] = at.axes("ids", shape(ids), format_args!("[{t}, K]"), |[rows, _]| rows == t)?;
                at.experts(look(ids), experts, "probs")?;
                vec![t, k]
            }
            Op::ExpertMatMul { x, ids, weight } => {
                let [t, k] = at.axes("ids", shape(ids), format_args!("[T, K]"), |_| true)?;
                let n = weight.cols;
                if *shape(x) != [t, n] && *shape(x) != [t, k, n] {
                    let expected =
                        format_args!("[{t}, {n}] or [{t}, {k}, {n}] for {} {:?}", weight.name, weight.dims());
                    return Err(at.wrong("x", shape(x), expected));
                }
                at.experts(look(ids), weight.experts, &weight.name)?;
                vec![t, k, weight.rows]
            }
            Op::ExpertBias { x, ids, weight } => {
                let n = weight.cols;
                if weight.experts != 1 || weight.ty != GgmlType::F32 {
                    return Err(at.not_f32s(weight, format_args!("an F32 matrix [N, experts]")));
                }
                let expected = format_args!("[T, K, {n}] for {} {:?}", weight.name, weight.dims());
                let [t, k, n] = at.axes("x", shape(x), expected, |[_, _, cols]| cols == n)?;
                at.axes("ids", shape(ids), format_args!("[{t}, {k}]"), |axes| axes == [t, k])?;
                at.experts(look(ids), weight.rows, &weight.name)?;
                vec![t, k, n]
            }
            &Op::Conv { ref x, ref cache, weight, start } => {
                let channels = weight.rows;
                if weight.experts != 1 || weight.ty != GgmlType::F32 {
                    return Err(at.not_f32s(weight, format_args!("an F32 matrix [L, C]")));
                }
                let expected = format_args!("[T, {channels}] for {} {:?}", weight.name, weight.dims());
                let [t, _] = at.axes("x", shape(x), expected, |[_, cols]| cols == channels)?;
                let seen = at.seen(start, t)?;
                let expected = format_args!("[S ≥ {seen}, {channels}]");
                at.axes("cache", shape(cache), expected, |[capacity, cols]| capacity >= seen && cols == channels)?;
                vec![t, channels]
            }
            &Op::L2Norm { ref x, first, heads, head_dim, .. } => {
                let width = at.head_dim(head_dim)?.checked_mul(heads).filter(|width| *width > 0);
                let end = width.and_then(|width| first.checked_add(width));
                let expected = format_args!("[T, ≥ {first} + {heads}·{head_dim}], of at least one head,");
                let [t, _] = at.axes("x", shape(x), expected, |[_, cols]| end.is_some_and(|end| end <= cols))?;
                vec![t, heads * head_dim]
            }
            Op::Decay { x, weight } => {
                let n = weight.cols;
                if weight.rows * weight.experts != 1 || weight.ty != GgmlType::F32 {
                    return Err(at.not_f32s(weight, format_args!("an F32 vector [N, 1]")));
                }
                at.axes("x", shape(x), format_args!("[T, {n}] for {}", weight.name), |[_, cols]| cols == n)?.to_vec()
            }
            &Op::DeltaRule { ref q, ref k, ref v, ref decay, ref beta, start, head_dim, .. } => {
                let [t, key_cols] = at.heads("q", shape(q), at.head_dim(head_dim)?)?;
                let seen = at.seen(start, t)?;
                let expected = format_args!("[S ≥ {seen}, {key_cols}], as wide as q,");
                at.axes("k", shape(k), expected, |[capacity, cols]| capacity >= seen && cols == key_cols)?;
                let key_heads = key_cols / head_dim;
                let expected = format_args!("[S ≥ {seen}, value heads], a multiple of the {key_heads} key heads,");
                let [_, heads] = at.axes("decay", shape(decay), expected, |[capacity, heads]| {
                    capacity >= seen && heads.is_multiple_of(key_heads)
                })?;
                let expected = format_args!("[S ≥ {seen}, {heads}], as decay is,");
                at.axes("beta", shape(beta), expected, |[capacity, n]| capacity >= seen && n == heads)?;
                let expected = format_args!("[S ≥ {seen}, ≥ {heads}·{head_dim}]");
                at.axes("v", shape(v), expected, |[capacity, cols]| {
                    capacity >= seen && heads.checked_mul(head_dim).is_some_and(|width| width <= cols)
                })?;
                vec![t, heads * head_dim]
            }
            Op::Combine { down, weights } => {
                let [t, k, n] = at.axes("down", shape(down), format_args!("[T, K, H]"), |_| true)?;
                at.axes("weights", shape(weights), format_args!("[{t}, {k}]"), |axes| axes == [t, k])?;
                vec![t, n]
            }
            &Op::Rows { ref x, start, rows } => {
                if rows == 0 {
                    return Err(at.wrong("rows", 0, format_args!("at least 1")));
                }
                let expected = format_args!("[T ≥ {start} + {rows}, n]");
                let [_, n] =
                    at.axes("x", shape(x), expected, |[t, _]| start.checked_add(rows).is_some_and(|end| end <= t))?;
                vec![rows, n]
            }
        })
    }
}
