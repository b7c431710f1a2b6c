//! Sets of coordinates along one axis: which ones the wrong elements suggest, what each costs to say, and how it is said.

use crate::diff::locate::{PatternKind, Region, Span};
use crate::op::GgmlType;

/// Row and column tiles of kernels, and periods that lanes, vectors and sub-blocks have.
const TILES: [usize; 6] = [8, 16, 32, 64, 128, 256];
/// Coordinates that are all named in words.
const LISTED: usize = 8;
const MODULI: [usize; 8] = [2, 4, 8, 16, 32, 64, 128, 256];

/// What a coordinate counts, in the order in which the parts of a pattern are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Axis {
    /// An expert's id.
    Expert,
    /// A query or KV head.
    Head,
    /// A token.
    Position,
    /// Where an expert stands among those chosen for a token.
    Slot,
    /// Dimension within a head.
    WithinHead,
    /// A row of the weight, where there is one.
    Column,
    /// A position that is attended to.
    Key,
}

impl Axis {
    /// Whether neighbours have nothing in common.
    fn is_category(self) -> bool {
        matches!(self, Axis::Expert | Axis::Head | Axis::Slot)
    }

    fn noun(self) -> &'static str {
        match self {
            Axis::Position => "position",
            Axis::Slot => "slot",
            Axis::Expert => "expert",
            Axis::Head => "head",
            Axis::WithinHead => "dimension",
            Axis::Column => "column",
            Axis::Key => "key",
        }
    }
}

/// What the words for a set of columns depend on besides the set.
#[derive(Clone, Copy, Debug)]
pub(super) struct Words {
    pub qtype: Option<GgmlType>,
    /// Whether columns are the weight's own columns (an embedding) rather than its rows.
    pub columns_of_weight: bool,
}

/// Elements, and those of them that are wrong, with the energy of their error.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub count: usize,
    /// How much the wrong ones count: one that is hardly beyond its floor little, one that is as far beyond as most of the error is, 1.
    pub weight: f64,
    pub energy: f64,
    pub total: usize,
}

impl Tally {
    pub fn plus(self, o: Tally) -> Tally {
        Tally {
            count: self.count + o.count,
            weight: self.weight + o.weight,
            energy: self.energy + o.energy,
            total: self.total + o.total,
        }
    }

    /// The elements of these that are not among `o`, a part of them.
    pub fn without(self, o: Tally) -> Tally {
        Tally {
            count: self.count - o.count,
            weight: (self.weight - o.weight).max(0.0),
            energy: (self.energy - o.energy).max(0.0),
            total: self.total - o.total,
        }
    }

    /// Bits to say which of `total` elements are wrong, of which there are as many as their weights come to: total·H(weight/total).
    pub fn surprise(self) -> f64 {
        let (k, n) = (self.weight, self.total as f64);
        let part = |x: f64| if x > 0.0 { x * (n / x).log2() } else { 0.0 };
        part(k) + part(n - k)
    }
}

/// Some of an axis's coordinates.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Set {
    One(usize),
    /// Two or more of them, ascending.
    Few(Vec<usize>),
    AllBut(usize),
    /// `from..to`
    Range(usize, usize),
    /// `i·width..(i+1)·width`
    Block {
        width: usize,
        i: usize,
    },
    /// From the last multiple of `tile` to the end, which is not one.
    PartialTile {
        tile: usize,
    },
    /// Remainders `from..to` by `modulus`, of the coordinate counted from the sequence's start.
    Residue {
        modulus: usize,
        from: usize,
        to: usize,
    },
}

/// A restriction of one axis.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Restriction {
    pub axis: Axis,
    /// Length of the axis.
    pub n: usize,
    /// What coordinate 0 is in words and data: the position of the call's first row; 0 on the other axes.
    pub origin: usize,
    pub set: Set,
}

/// The tallies of a stage's elements by their coordinate on one axis.
pub(super) struct Marginal {
    pub axis: Axis,
    pub origin: usize,
    pub tallies: Vec<Tally>,
}

impl Marginal {
    /// Sets that may hold the error: those around the coordinates where wrong elements are at least `density` times as dense
    /// as they typically are; all coordinates that have any, for 0. At most `few` coordinates are listed one by one. `tiles` are those of
    /// the kernels that make the stage.
    pub fn candidates(&self, density: f64, few: usize, tiles: &[usize]) -> Vec<Restriction> {
        let n = self.tallies.len();
        let active = dense(&self.tallies, density);
        let (Some(&first), Some(&last)) = (active.first(), active.last()) else { return Vec::new() };
        let mut sets = vec![];
        match active[..] {
            [one] => sets.push(Set::One(one)),
            // Experts 93 and 100, with none used between them, are two experts rather than a range.
            [_, .., _] if active.len() <= few && last - first + 1 > active.len() => sets.push(Set::Few(active.clone())),
            _ => {}
        }
        if !self.axis.is_category() || !matches!(sets.first(), Some(Set::Few(_))) {
            sets.extend([Set::Range(first, last + 1), Set::Range(first, n), Set::Range(0, last + 1)]);
            sets.retain(|s| !matches!(s, Set::Range(from, to) if to - from == 1));
        }
        let mut others = (0..n).filter(|i| self.tallies[*i].total > 0 && active.binary_search(i).is_err());
        if let (Some(other), None) = (others.next(), others.next()) {
            sets.push(Set::AllBut(other));
        }
        // Blocks and tiles mean something for columns, keys and positions, not for experts and heads.
        let tiled = matches!(self.axis, Axis::Column | Axis::Position | Axis::Key);
        for tile in TILES.into_iter().filter(|t| tiled && n > *t) {
            if first / tile == last / tile && (first / tile + 1) * tile <= n {
                sets.push(Set::Block { width: tile, i: first / tile });
            }
            if !n.is_multiple_of(tile) && tiles.contains(&tile) {
                sets.push(Set::PartialTile { tile });
            }
        }
        // Remainders by one of the usual periods, and by the stride that the coordinates themselves have. A stride, or a range
        // of remainders, says nothing of experts and heads.
        let widest = |modulus: usize| if self.axis.is_category() { 1 } else { modulus - 1 };
        for modulus in MODULI.into_iter().filter(|m| n >= 2 * m) {
            let mut folded = vec![Tally::default(); modulus];
            for (i, tally) in self.tallies.iter().enumerate() {
                let residue = &mut folded[(i + self.origin) % modulus];
                *residue = residue.plus(*tally);
            }
            let active = dense(&folded, density);
            if let (Some(&from), Some(&to)) = (active.first(), active.last())
                && to - from < widest(modulus)
            {
                sets.push(Set::Residue { modulus, from, to: to + 1 });
            }
        }
        // Strays between them hide what all have in common, not what most have.
        let common = active.iter().fold(0, |stride, i| gcd(stride, i - first));
        for stride in [common, usual_gap(&active)] {
            if active.len() > 2 && stride > 1 && !self.axis.is_category() && !MODULI.contains(&stride) {
                let mut residues = vec![0; stride];
                active.iter().for_each(|i| residues[(i + self.origin) % stride] += 1);
                let from = (0..stride).rev().max_by_key(|r| residues[*r]).unwrap_or(0);
                let set = Set::Residue { modulus: stride, from, to: from + 1 };
                if !sets.contains(&set) {
                    sets.push(set);
                }
            }
        }
        let restriction = |set| Restriction { axis: self.axis, n, origin: self.origin, set };
        sets.into_iter().map(restriction).filter(|r| (0..n).any(|i| !r.contains(i))).collect()
    }

    /// The tally of the elements within a set.
    pub fn within(&self, r: &Restriction) -> Tally {
        let inside = self.tallies.iter().enumerate().filter(|(i, _)| r.contains(*i));
        inside.fold(Tally::default(), |sum, (_, tally)| sum.plus(*tally))
    }
}

/// Ascending coordinates where wrong elements are at least `share` times as dense, by their weight, as they are where the average such
/// element lives: strays elsewhere do not widen a range, nor does what is hardly beyond its floor.
fn dense(tallies: &[Tally], share: f64) -> Vec<usize> {
    let density = |t: &Tally| if t.total == 0 { 0.0 } else { t.weight / t.total as f64 };
    let sum: f64 = tallies.iter().map(|t| t.weight).sum();
    let typical = tallies.iter().map(|t| t.weight * density(t)).sum::<f64>() / sum.max(f64::MIN_POSITIVE);
    let is_dense = |i: &usize| tallies[*i].count > 0 && density(&tallies[*i]) >= share * typical;
    (0..tallies.len()).filter(is_dense).collect()
}

/// The commonest distance of neighbours.
fn usual_gap(ascending: &[usize]) -> usize {
    let mut gaps: Vec<usize> = ascending.windows(2).map(|pair| pair[1] - pair[0]).collect();
    gaps.sort_unstable();
    gaps.chunk_by(|a, b| a == b).max_by_key(|same| same.len()).map_or(0, |same| same[0])
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl Restriction {
    pub fn contains(&self, i: usize) -> bool {
        match &self.set {
            Set::One(v) => i == *v,
            Set::Few(v) => v.contains(&i),
            Set::AllBut(v) => i != *v,
            Set::Range(from, to) => (*from..*to).contains(&i),
            Set::Block { width, i: block } => i / width == *block,
            Set::PartialTile { tile } => i >= self.n / tile * tile,
            Set::Residue { modulus, from, to } => (*from..*to).contains(&((i + self.origin) % modulus)),
        }
    }

    /// The first and the last coordinate of a range that others lie beyond.
    pub fn ends(&self) -> Vec<usize> {
        let Set::Range(from, to) = self.set else { return Vec::new() };
        let (first, last) = ((from > 0).then_some(from), (to < self.n).then_some(to - 1));
        first.into_iter().chain(last).collect()
    }

    /// Bits to name the set among those of its family, and the family.
    pub fn bits(&self) -> f64 {
        let log = |x: usize| (x.max(1) as f64).log2();
        let n = log(self.n);
        match &self.set {
            // The last position is where decoding looks: a name of its own.
            Set::One(v) if self.axis == Axis::Position && *v + 1 == self.n => 2.0,
            Set::One(_) => 3.0 + n,
            // Experts and heads have no order that means much: "all but head 0" rather than "heads ≥ 1".
            Set::Range(from, to) if (*from == 0 || *to == self.n) && self.axis.is_category() => 5.0 + n,
            Set::Range(from, to) if *from == 0 || *to == self.n => 3.0 + n,
            Set::PartialTile { .. } => 3.0 + log(TILES.len()),
            Set::Block { width, .. } => 3.0 + log(TILES.len()) + log(self.n / width),
            Set::AllBut(_) => 4.0 + n,
            Set::Range(..) => 3.0 + 2.0 * n,
            Set::Residue { modulus, .. } if !MODULI.contains(modulus) => 4.0 + 2.0 * n,
            Set::Residue { modulus, .. } => 4.0 + log(MODULI.len()) + 2.0 * log(*modulus),
            Set::Few(v) => 5.0 + v.len() as f64 * n,
        }
    }

    pub fn kind(&self) -> PatternKind {
        use PatternKind as P;
        let one = matches!(self.set, Set::One(_));
        let but = matches!(self.set, Set::AllBut(_));
        match (self.axis, &self.set) {
            (_, Set::PartialTile { .. }) => P::LastPartialTile,
            (Axis::Position, Set::One(v)) if *v + 1 == self.n => P::LastPosition,
            (Axis::Position, Set::Residue { .. }) => P::PositionResidue,
            (Axis::Position, _) if one => P::Position,
            (Axis::Position, _) if but => P::AllButPosition,
            (Axis::Position, _) => P::PositionRange,
            (Axis::Expert, _) if one => P::Expert,
            (Axis::Expert, _) if but => P::AllButExpert,
            (Axis::Expert, _) => P::Experts,
            (Axis::Slot, _) => P::Slot,
            (Axis::Head, _) if one => P::Head,
            (Axis::Head, _) if but => P::AllButHead,
            (Axis::Head, _) => P::Heads,
            (Axis::WithinHead, _) => P::WithinHead,
            (Axis::Column | Axis::Key, Set::Block { .. }) => P::ColumnBlock,
            (Axis::Column | Axis::Key, Set::Residue { modulus, from, to }) => {
                if *modulus == 256 && (to - from).is_multiple_of(16) { P::SubBlock } else { P::ColumnResidue }
            }
            (Axis::Column | Axis::Key, _) if one => P::Column,
            (Axis::Column | Axis::Key, _) if but => P::AllButColumn,
            (Axis::Column | Axis::Key, _) => P::ColumnRange,
        }
    }

    /// Whether every coordinate that has elements in `marginal` and lies in this set lies in `other` too.
    pub fn is_within(&self, other: &Restriction, marginal: &Marginal) -> bool {
        (0..self.n).all(|i| !self.contains(i) || other.contains(i) || marginal.tallies[i].total == 0)
    }

    /// In words. Positions are those of the sequence.
    pub fn describe(&self, w: Words) -> String {
        let noun = self.axis.noun();
        let of_each = if self.axis == Axis::WithinHead { " of each head" } else { "" };
        let at = |i: usize| i + self.origin;
        let span = |from: usize, to: usize| match to - from {
            1 => format!("{noun} {}", at(from)),
            _ => format!("{noun}s {}–{}", at(from), at(to - 1)),
        };
        match &self.set {
            Set::One(v) if self.axis == Axis::Position && *v + 1 == self.n => "last position only".into(),
            Set::One(v) => format!("{noun} {} only{of_each}", at(*v)),
            Set::Few(v) if v.len() > LISTED => {
                let first: Vec<String> = v[..3].iter().map(|i| at(*i).to_string()).collect();
                format!("{} {noun}s only{of_each}: {}, … {}", v.len(), first.join(", "), at(v[v.len() - 1]))
            }
            Set::Few(v) => {
                let (last, rest) = v.split_last().expect("a few are at least two");
                let rest: Vec<String> = rest.iter().map(|i| at(*i).to_string()).collect();
                format!("{noun}s {} and {} only{of_each}", rest.join(", "), at(*last))
            }
            Set::AllBut(v) => format!("all but {noun} {}{of_each}", at(*v)),
            Set::Range(from, to)
                if self.axis == Axis::WithinHead && self.n.is_multiple_of(2) && *from == 0 && 2 * to == self.n =>
            {
                "first half of each head".into()
            }
            Set::Range(from, to) if self.axis == Axis::WithinHead && 2 * from == self.n && *to == self.n => {
                "second half of each head".into()
            }
            Set::Range(from, to) if *to == self.n && to - from > 1 => format!("{noun}s ≥ {}{of_each}", at(*from)),
            Set::Range(0, to) if *to > 1 => format!("{noun}s < {}{of_each}", at(*to)),
            Set::Range(from, to) => format!("{}{of_each}", span(*from, *to)),
            Set::PartialTile { tile } => {
                let axis = if self.axis == Axis::Position { "rows" } else { "columns" };
                let from = at(self.n / tile * tile);
                format!("last partial tile of {axis}: {noun}s ≥ {from} ({} in tiles of {tile})", self.n)
            }
            Set::Block { width, i } => {
                let which = if (i + 1) * width == self.n {
                    "the last".into()
                } else if *i == 0 {
                    "the first".into()
                } else {
                    format!("the {}", ordinal(i + 1))
                };
                let quant = w.qtype.filter(|t| t.block_len() == *width);
                let what = match quant {
                    Some(ty) if w.columns_of_weight => format!("{which} {ty} block"),
                    Some(ty) => format!("{which} block of {width}, the length of a {ty} block"),
                    None => format!("{which} block of {width}"),
                };
                format!("{}, {what}", span(i * width, (i + 1) * width))
            }
            Set::Residue { modulus: 2, from, .. } => {
                format!("{} {noun}s{of_each}", if *from == 0 { "even" } else { "odd" })
            }
            Set::Residue { modulus, from, to } => {
                let each = match to - from {
                    1 => format!("{noun}s {from} mod {modulus}{of_each}"),
                    _ => format!("{noun}s {from}–{} of each {modulus}{of_each}", to - 1),
                };
                let sub = w.qtype.filter(|t| t.block_len() == *modulus).map(sub_block_len);
                match sub.filter(|s| from.is_multiple_of(*s) && to.is_multiple_of(*s) && self.axis == Axis::Column) {
                    Some(s) if to - from == s => format!("sub-block {} of every block: {each}", from / s),
                    Some(s) => format!("sub-blocks {}–{} of every block: {each}", from / s, to / s - 1),
                    None => each,
                }
            }
        }
    }

    /// Writes the set into its field of `region`.
    pub fn restrict(&self, region: &mut Region) {
        let members = || (0..self.n).filter(|i| self.contains(*i)).collect::<Vec<_>>();
        let span = || {
            let all = members();
            let (modulus, residues) = match self.set {
                Set::Residue { modulus, from, to } => (Some(modulus), Some([from, to - 1])),
                _ => (None, None),
            };
            let from = all.first().copied().unwrap_or(0);
            let to = all.last().copied().unwrap_or(0);
            let except = match (&self.set, modulus) {
                (_, Some(_)) => vec![],
                _ => (from..to).filter(|i| !self.contains(*i)).map(|i| i + self.origin).collect(),
            };
            Span { from: from + self.origin, to: to + self.origin, modulus, residues, except }
        };
        match self.axis {
            Axis::Position => region.positions = Some(span()),
            Axis::Slot => region.slots = Some(members()),
            Axis::Expert => region.experts = Some(members()),
            Axis::Head => region.heads = Some(members()),
            Axis::WithinHead => region.within_head = Some(span()),
            Axis::Column => region.columns = Some(span()),
            Axis::Key => region.keys = Some(span()),
        }
    }
}

fn ordinal(n: usize) -> String {
    let ending = match (n % 10, n % 100) {
        (_, 11..=13) => "th",
        (1, _) => "st",
        (2, _) => "nd",
        (3, _) => "rd",
        _ => "th",
    };
    format!("{n}{ending}")
}

/// Weights that share a scale.
fn sub_block_len(ty: GgmlType) -> usize {
    use GgmlType::*;
    match ty {
        Q2_K | Q3_K | Q6_K | IQ2_XS | IQ2_S | IQ1_M | NVFP4 => 16,
        Q4_K | Q5_K | IQ4_XS | IQ2_XXS | IQ3_XXS | IQ3_S | IQ1_S => 32,
        _ => ty.block_len(),
    }
}
