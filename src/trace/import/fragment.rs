//! A tensor, or a part of one, that is a stage at some positions.

use super::names::Reading;
use super::{Item, whole};
use crate::model::Config;
use crate::op::{Data, Dim, HostTensor, Site, Stage};
use crate::trace::MOST_POSITIONS;
use crate::trace::select::Ranges;

/// A stage's values at some positions, as an item has them.
pub struct Fragment {
    /// The index of the item.
    pub item: usize,
    /// Which call of the run made it, as far as that is known.
    pub call: Option<usize>,
    /// The position of each row, ascending; `None` until it is known.
    pub positions: Option<Vec<usize>>,
    reading: Reading,
    /// The item's axes in the order of the stage's, before they are fitted.
    arranged: Vec<usize>,
    /// The axes that the stage table gives the values.
    shape: Vec<usize>,
}

impl Fragment {
    /// What `reading` says of an item; `rows` is how many positions it has, if that is known.
    ///
    /// # Errors
    /// If the item's shape cannot be the stage's.
    pub fn new(index: usize, item: &Item, reading: Reading, rows: Option<usize>) -> Result<Self, String> {
        let stage = reading.site.stage;
        let mut arranged = item.shape.clone();
        // Rows without values could be as many as one likes.
        if item.shape.contains(&0) {
            return Err(format!("shape {:?}: one or more values expected", item.shape));
        }
        item.shape.iter().try_fold(1usize, |n, axis| n.checked_mul(*axis)).ok_or_else(|| too_large(&item.shape))?;
        if let Some(axes) = &reading.axes {
            if axes.len() != arranged.len() {
                return Err(format!("{} axes in the rule where the shape is {:?}", axes.len(), item.shape));
            }
            arranged = axes.iter().map(|axis| item.shape[*axis]).collect();
        }
        if let Some(axis) = reading.position {
            if axis >= arranged.len() {
                return Err(format!("positions on axis {axis} where the shape is {arranged:?}"));
            }
            let rows = arranged.remove(axis);
            arranged.insert(stage.position_axis().min(arranged.len()), rows);
        }
        let mut narrowed = arranged.clone();
        if let Some(columns) = &reading.columns {
            let width = narrowed.last_mut().filter(|width| columns.end <= **width);
            let width = width.ok_or_else(|| format!("columns {columns:?} where the shape is {arranged:?}"))?;
            *width = columns.len();
        }
        let shape = fit(stage, &narrowed, rows)?;
        if let Some(rows) = shape.get(stage.position_axis()).filter(|rows| **rows > MOST_POSITIONS) {
            return Err(format!("at most {MOST_POSITIONS} positions expected, found {rows}"));
        }
        let call = reading.call.or(item.call);
        let positions = item.positions.clone();
        Ok(Self { item: index, call, positions, reading, arranged, shape })
    }

    pub fn site(&self) -> Site {
        self.reading.site
    }
    /// How many positions it has.
    pub fn rows(&self) -> usize {
        self.shape[self.site().stage.position_axis()]
    }
    /// How many experts the layer has, if it is the router's values of each.
    pub fn experts(&self) -> Option<usize> {
        matches!(self.site().stage, Stage::RouterLogits | Stage::RouterBias | Stage::RouterProbs | Stage::RouterChoice)
            .then(|| self.shape[1])
    }
    /// Whether a rule says which positions the rows are.
    pub fn ruled(&self) -> bool {
        self.reading.positions.is_some()
    }
    /// Behind its last position.
    pub fn end(&self) -> usize {
        self.positions.as_ref().and_then(|p| p.last()).map_or(0, |last| last + 1)
    }

    /// Whether the model has such a stage, of these widths.
    ///
    /// # Errors
    /// What the model has instead.
    pub fn suits(&self, config: &Config) -> Result<(), String> {
        let Site { layer, stage } = self.site();
        if layer.is_some_and(|n| n as usize >= config.layers) {
            return Err(format!(
                "layer {} where {} has {} layers",
                layer.unwrap_or_default(),
                config.name,
                config.layers
            ));
        }
        if !stage.info().scope.occurs(config.layout().of(layer)) {
            return Err(match stage.info().scope.occurs(config.layout()) {
                true => {
                    format!("{stage}, which does not occur in layer {} of {}", layer.unwrap_or_default(), config.name)
                }
                false => format!("{stage}, which does not occur in {}", config.name),
            });
        }
        for (dim, found) in stage.info().shape.iter().zip(&self.shape) {
            let expected = match dim {
                Dim::T | Dim::S => continue,
                Dim::H => Some(config.hidden),
                Dim::Heads => Some(config.heads),
                Dim::Q => Some(config.q_width()),
                Dim::Kv => Some(config.kv_width()),
                Dim::Context => Some(config.context_width()),
                Dim::QRank => config.mla.and_then(|mla| mla.q_rank),
                Dim::Absorbed => config.mla.map(|mla| config.heads * mla.row()),
                Dim::Latent => config.mla.map(|mla| config.heads * mla.rank),
                Dim::V => Some(config.vocab),
                Dim::E => config.moe.as_ref().map(|moe| moe.experts),
                Dim::K => config.moe.as_ref().map(|moe| moe.used),
                Dim::Shared => config.moe.as_ref().map(|moe| moe.shared),
                Dim::One => Some(1),
                Dim::Channels => config.linear.map(|linear| linear.channels()),
                Dim::KeyHeads => config.linear.map(|linear| linear.key_width()),
                Dim::ValueHeads => config.linear.map(|linear| linear.value_width()),
                Dim::Values => config.linear.map(|linear| linear.value_heads),
                Dim::F => Some(config.ffn_of(layer.unwrap_or(0) as usize)),
            };
            if expected.is_some_and(|n| n != *found) {
                return Err(format!(
                    "{stage} of shape {:?} where {} has {dim:?} = {}",
                    self.shape,
                    config.name,
                    expected.unwrap_or(0)
                ));
            }
        }
        Ok(())
    }

    /// Says which positions the rows are: those that a rule selects, or else `positions`, all of them from `from` on.
    ///
    /// # Errors
    /// If they are not as many as the rows, do not ascend, or are not in the run of `run` positions.
    pub fn at(&mut self, positions: Vec<usize>, from: usize, run: usize) -> Result<(), String> {
        let positions = match &self.reading.positions {
            Some(text) => Ranges::parse(text, run).map_err(|e| e.to_string())?.iter().take(run).collect(),
            None => positions,
        };
        if positions.len() != self.rows() {
            return Err(format!("{} rows where {} positions are said", self.rows(), positions.len()));
        }
        let fits = positions.is_sorted_by(|a, b| a < b)
            && positions.first().is_none_or(|p| *p >= from)
            && positions.last().is_none_or(|p| *p < run);
        if positions.is_empty() || !fits {
            return Err(format!("ascending positions from {from} on and below {run} expected"));
        }
        let end = positions[positions.len() - 1] + 1;
        if self.site().stage.is_attention_matrix() && self.shape[2] < end {
            return Err(format!("{} keys where position {} sees {end}", self.shape[2], end - 1));
        }
        self.positions = Some(positions);
        Ok(())
    }

    /// The rows by runs of consecutive positions: the first position, and the rows.
    pub fn runs(&self) -> Vec<(usize, Vec<usize>)> {
        let positions = self.positions.as_deref().unwrap_or_default();
        let mut row = 0;
        positions
            .chunk_by(|a, b| a + 1 == *b)
            .map(|run| {
                let rows = (row..row + run.len()).collect();
                row += run.len();
                (run[0], rows)
            })
            .collect()
    }

    /// The stage's values, out of those of the item.
    ///
    /// # Errors
    /// If they are of a type that does not suit the stage.
    pub fn values(&self, read: HostTensor) -> Result<HostTensor, String> {
        let stage = self.site().stage;
        let mut values = read;
        if let Some(axes) = &self.reading.axes {
            values = permuted(&values, axes);
        }
        if let Some(axis) = self.reading.position {
            let mut axes: Vec<usize> = (0..values.shape.len()).filter(|a| *a != axis).collect();
            axes.insert(stage.position_axis().min(axes.len()), axis);
            values = permuted(&values, &axes);
        }
        debug_assert_eq!(values.shape, self.arranged);
        if let Some(columns) = &self.reading.columns {
            values = values.take(values.shape.len() - 1, &Vec::from_iter(columns.clone()));
        }
        let mut values = HostTensor { shape: self.shape.clone(), data: suit(stage, values.data)? };
        if let Some(scale) = self.reading.scale {
            scaled(&mut values, scale);
        }
        if stage.is_attention_matrix() {
            let end = self.end();
            if values.shape[2] > end {
                values = values.take(2, &Vec::from_iter(0..end)); // a cache has room for more keys than there are
            }
            if stage == Stage::AttnScores {
                self.clear_unseen(&mut values);
            }
        }
        Ok(values)
    }

    /// Sets scores of keys behind a row's own position to 0, as the stage has it: engines leave masks, or nothing of meaning,
    /// there. Probabilities stay as they are, for what is not 0 there is a fault.
    fn clear_unseen(&self, values: &mut HostTensor) {
        let [heads, rows, cols] = values.shape[..] else { return };
        let positions = self.positions.as_deref().unwrap_or_default();
        for (head, (row, position)) in (0..heads).flat_map(|h| positions.iter().enumerate().map(move |p| (h, p))) {
            let unseen = (head * rows + row) * cols + (position + 1).min(cols)..(head * rows + row + 1) * cols;
            match &mut values.data {
                Data::F32(v) => v[unseen].fill(0.0),
                Data::F64(v) => v[unseen].fill(0.0),
                Data::U32(_) => {}
            }
        }
    }
}

fn too_large(shape: &[usize]) -> String {
    format!("shape {shape:?} is too large")
}

/// The axes in another order: axis i of the result is axis `axes[i]`.
fn permuted(values: &HostTensor, axes: &[usize]) -> HostTensor {
    let mut strides = vec![1; values.shape.len()];
    for axis in (1..values.shape.len()).rev() {
        strides[axis - 1] = strides[axis] * values.shape[axis];
    }
    let shape: Vec<usize> = axes.iter().map(|axis| values.shape[*axis]).collect();
    let strides: Vec<usize> = axes.iter().map(|axis| strides[*axis]).collect();
    let place = |index: usize| {
        let mut rest = index;
        let mut at = 0;
        for (n, stride) in shape.iter().zip(&strides).rev() {
            at += rest % n * stride;
            rest /= n;
        }
        at
    };
    values.gather(shape.clone(), 1, (0..values.len()).map(place))
}

/// Multiplies. By a power of two f32 stays f32, which is exact; otherwise the products are kept in f64.
fn scaled(values: &mut HostTensor, scale: f64) {
    let exact = scale.to_bits() & ((1 << 52) - 1) == 0 && scale.abs() > 1e-6 && scale.abs() < 1e6;
    match &mut values.data {
        Data::F32(v) if exact => v.iter_mut().for_each(|x| *x *= scale as f32),
        Data::F64(v) => v.iter_mut().for_each(|x| *x *= scale),
        _ => values.data = Data::F64(values.to_f64().into_iter().map(|x| x * scale).collect()),
    }
}

/// The stage's shape for values of `shape`, without moving any: a batch of one is dropped, heads and head size are merged,
/// and a single position's missing axis is put in.
pub fn fit(stage: Stage, shape: &[usize], rows: Option<usize>) -> Result<Vec<usize>, String> {
    let dims = stage.info().shape;
    let mut fitted = shape.to_vec();
    // llama.cpp's weights by a softmax over the chosen are a column for each position, [T, K, 1].
    if let (Stage::RouterWeights, [_, _, 1]) = (stage, shape) {
        fitted.pop();
    }
    // Its numbers of value heads are a column for each, [T, Hv, 1], or [Hv, 1] of one position.
    if let ([_, Dim::Values], [.., 1]) = (dims, shape)
        && shape.len() > 1
        && !(shape.len() == 2 && rows == Some(shape[0]))
    {
        fitted.pop();
    }
    // One position of several heads, [1, heads, D], is not a batch of one.
    let of_heads = matches!(dims, [_, dim] if dim.is_of_heads());
    let heads_apart = of_heads && matches!(shape, [1, n, _] if rows == Some(1) && *n != 1);
    while fitted.len() > dims.len() && fitted[0] == 1 && !heads_apart {
        fitted.remove(0);
    }
    if let (true, &[t, heads, size]) = (of_heads, &fitted[..]) {
        let width = heads.checked_mul(size).ok_or_else(|| format!("shape {shape:?} is too large"))?;
        fitted = vec![t, width];
    }
    if fitted.len() + 1 == dims.len() {
        fitted.insert(stage.position_axis(), 1);
    }
    if fitted.len() != dims.len() {
        return Err(format!("shape {shape:?} where {dims:?} is expected"));
    }
    Ok(fitted)
}

/// The values in a type that suits the stage: expert ids are u32, whatever whole number they came as; others are not whole.
fn suit(stage: Stage, data: Data) -> Result<Data, String> {
    let id = |x: f64| whole(x).ok_or_else(|| format!("{x} is no expert id"));
    match (stage.is_ids(), data) {
        (true, Data::F32(v)) => Ok(Data::U32(v.into_iter().map(|x| id(x as f64)).collect::<Result<_, _>>()?)),
        (true, Data::F64(v)) => Ok(Data::U32(v.into_iter().map(id).collect::<Result<_, _>>()?)),
        (false, Data::U32(_)) => Err(format!("whole numbers where the values of {stage} are expected")),
        (_, data) => Ok(data),
    }
}
