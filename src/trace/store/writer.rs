//! Writing a trace while the run goes on.

use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;
use std::path::Path;

use super::layer::{LayerFile, RowLayout};
use super::{
    Imported, MANIFEST, Missing, Run, SCHEMA, SiteStats, TraceManifest, TraceTensor, expert_rows_key, file_name,
};
use crate::atomic::dir::{AtomicDir, DirKind};
use crate::environment::Environment;
use crate::error::{Error, Result};
use crate::files::FileKind;
use crate::op::{At, Data, HostTensor, Site, Stage};
use crate::trace::positions_in;
use crate::trace::select::{Ranges, Selected, has_expert_rows};

/// What may be replaced by another one.
const KIND: DirKind = DirKind { name: "trace", is_one: is_trace };

/// A trace under way. Dropped without [`TraceWriter::finish`], it leaves nothing.
pub struct TraceWriter {
    dir: AtomicDir,
    selected: Selected,
    files: BTreeMap<Option<u32>, LayerFile>,
    /// The positions that each site's rows are, ascending.
    positions: BTreeMap<Site, Vec<RangeInclusive<usize>>>,
    /// With `--experts`: the router's choice in this call, by layer.
    routed: HashMap<u32, Routed>,
}

/// `ids` [T, K] of the call that starts at position `start`.
struct Routed {
    start: usize,
    slots: usize,
    ids: Vec<u32>,
}

impl TraceWriter {
    /// A trace that will be the directory `target`, which must not exist, or be empty, or be a trace if `force` is given.
    ///
    /// # Errors
    /// [`Error::Usage`] if there is something there that must not be replaced, [`Error::Input`] if the directory cannot be made.
    pub fn create(target: &Path, force: bool, selected: Selected) -> Result<Self> {
        Ok(Self {
            dir: AtomicDir::create(target, KIND, force)?,
            selected,
            files: BTreeMap::new(),
            positions: BTreeMap::new(),
            routed: HashMap::new(),
        })
    }

    /// Whether [`TraceWriter::create`] can begin the trace: to be asked before long work of which it is to take the result.
    ///
    /// # Errors
    /// As [`TraceWriter::create`].
    pub fn check(target: &Path, force: bool) -> Result<()> {
        AtomicDir::check(target, KIND, force)
    }

    /// Whether [`TraceWriter::add`] has a use for `site`.
    pub fn wants(&self, site: Site) -> bool {
        self.selected.wants(site) || self.needs_routing(site)
    }

    /// Whether `site` is the router's choice, and says which rows of other stages to keep.
    fn needs_routing(&self, site: Site) -> bool {
        site.stage == Stage::RouterIds
            && self.selected.experts().is_some()
            && self.selected.sites().any(|s| s.layer == site.layer && has_expert_rows(s.stage))
    }

    /// Stores what is selected of `values`, whose first row is position `at.start`. The rows of a site come in order.
    ///
    /// # Errors
    /// If the values do not have the stage's rank, repeat a position, or cannot be written.
    pub fn add(&mut self, at: At, values: &HostTensor) -> Result<()> {
        let At { site, start } = at;
        let dims = site.stage.info().shape;
        if values.shape.len() != dims.len() {
            return Err(Error::cannot_run(format!(
                "{site}: a tensor of shape {:?} where {dims:?} is expected",
                values.shape
            )));
        }
        if self.needs_routing(site) {
            self.route(at, values)?;
        }
        if !self.selected.wants(site) {
            return Ok(());
        }
        let count = positions_in(site.stage, values);
        let rows: Vec<usize> = (0..count).filter(|row| self.selected.positions().contains(start + row)).collect();
        let (Some(first), Some(last)) = (rows.first(), rows.last()) else { return Ok(()) };
        let seen = self.positions.entry(site).or_default();
        if seen.last().is_some_and(|range| *range.end() >= start + first) {
            return Err(Error::cannot_run(format!("{site}: position {} came twice", start + first)));
        }
        let cols = last + start + 1; // of scores: what the last of the rows may see
        for row in &rows {
            match seen.last_mut() {
                Some(range) if range.end() + 1 == start + row => *range = *range.start()..=start + row,
                _ => seen.push(start + row..=start + row),
            }
        }
        let key = site.key();
        if site.stage.is_attention_matrix() {
            let (heads, s) = (values.shape[0], values.shape[2]);
            let cols = cols.min(s);
            let parts = (0..heads).flat_map(|head| {
                rows.iter().map(move |row| {
                    let at = (head * count + row) * s;
                    at..at + cols
                })
            });
            return self.file(site)?.append(&key, RowLayout::Heads { heads }, (rows.len(), cols), &values.data, parts);
        }
        if let (Some(experts), true) = (self.selected.experts(), has_expert_rows(site.stage)) {
            let (slots, width) = (values.shape[1], values.shape[2]);
            let routed = self.routed.get(&site.layer.unwrap_or_default());
            let routed = routed.filter(|r| r.start == start && r.slots == slots && r.ids.len() == count * slots);
            let routed = routed.ok_or_else(|| {
                Error::cannot_run(format!(
                    "{site}: router_ids of these positions did not come before it, so --experts cannot choose"
                ))
            })?;
            let kept = chosen(routed, &rows, experts);
            let parts: Vec<_> = kept
                .iter()
                .map(|[row, slot, _]| (row * slots + slot) * width..(row * slots + slot + 1) * width)
                .collect();
            let layout = RowLayout::Rows { inner: vec![width] };
            return self.file(site)?.append(&key, layout, (kept.len(), width), &values.data, parts.into_iter());
        }
        let inner = values.shape[1..].to_vec();
        let width = inner.iter().product();
        // Whole where all rows are wanted; the file writes runs of rows as they lie.
        let parts = runs(&rows).map(|run| run.start * width..run.end * width);
        self.file(site)?.append(&key, RowLayout::Rows { inner }, (rows.len(), width), &values.data, parts)
    }

    /// Notes which rows of this call's expert stages to keep, and writes which they are.
    fn route(&mut self, At { site, start }: At, values: &HostTensor) -> Result<()> {
        let (Data::U32(ids), Some(layer)) = (&values.data, site.layer) else {
            return Err(Error::cannot_run(format!("{site}: {} where expert ids are expected", values.dtype())));
        };
        let routed = Routed { start, slots: values.shape[1], ids: ids.clone() };
        let rows: Vec<usize> =
            (0..values.shape[0]).filter(|row| self.selected.positions().contains(start + row)).collect();
        let kept = chosen(&routed, &rows, self.selected.experts().unwrap_or_default());
        self.routed.insert(layer, routed);
        if rows.is_empty() {
            return Ok(());
        }
        let table: Vec<u32> =
            kept.iter().flat_map(|[row, slot, id]| [start + row, *slot, *id].map(|n| n as u32)).collect();
        let data = Data::U32(table);
        let all = std::iter::once(0..kept.len() * 3);
        self.file(site)?.append(
            &expert_rows_key(layer),
            RowLayout::Rows { inner: vec![3] },
            (kept.len(), 3),
            &data,
            all,
        )
    }

    fn file(&mut self, site: Site) -> Result<&mut LayerFile> {
        let dir = &self.dir;
        Ok(match self.files.entry(site.layer) {
            std::collections::btree_map::Entry::Occupied(e) => e.into_mut(),
            std::collections::btree_map::Entry::Vacant(e) => e.insert(LayerFile::create(dir, &file_name(site.layer))?),
        })
    }

    /// Puts everything in order and gives the directory its name.
    ///
    /// # Errors
    /// [`Error::Usage`] if `--experts` kept no row at all, or the target has come to be something that must not be replaced.
    pub fn finish(mut self, run: Run, imported: Option<Imported>, statistics: Vec<SiteStats>) -> Result<TraceManifest> {
        let shapes: BTreeMap<String, (String, Vec<usize>)> = (self.files.values().flat_map(LayerFile::tensors))
            .map(|(key, dtype, shape)| (key.to_string(), (format!("{dtype:?}").to_lowercase(), shape)))
            .collect();
        let entry = |key: String, site: Site, stage: &str, positions: String, rows: Option<String>| {
            let (dtype, shape) = shapes.get(&key)?.clone();
            Some(TraceTensor {
                key,
                layer: site.layer,
                stage: stage.into(),
                file: file_name(site.layer),
                dtype,
                shape,
                positions,
                rows,
            })
        };
        let (mut tensors, mut missing) = (Vec::new(), Vec::new());
        for site in self.selected.sites() {
            let rows = self.positions.get(&site).map(|ranges| Ranges::new(ranges.clone()));
            let limited = self.selected.experts().is_some() && has_expert_rows(site.stage);
            let rows_key = site.layer.filter(|_| limited).map(expert_rows_key);
            match rows.and_then(|r| entry(site.key(), site, site.stage.name(), r.to_string(), rows_key)) {
                Some(tensor) => tensors.push(tensor),
                None => {
                    let why = "the run made no value of this stage at the selected positions".to_string();
                    missing.push(Missing { key: site.key(), why });
                }
            }
        }
        if let Some(experts) = self.selected.experts() {
            let kept: usize = tensors.iter().filter(|t| t.rows.is_some()).map(|t| t.shape[0]).sum();
            if kept == 0 {
                return Err(Error::usage(format!(
                    "--experts {experts:?}: no selected position of a selected layer was routed to any of them"
                )));
            }
        }
        let manifest = TraceManifest {
            schema: SCHEMA.into(),
            program: concat!("twinscope ", env!("CARGO_PKG_VERSION")).into(),
            environment: Some(Environment::here()),
            imported,
            run,
            experts: self.selected.experts().map(<[u32]>::to_vec),
            tensors,
            missing,
            statistics,
        };
        for file in std::mem::take(&mut self.files).into_values() {
            file.finish()?;
        }
        let text = serde_json::to_vec_pretty(&manifest).map_err(|e| Error::cannot_run(format!("the manifest: {e}")))?;
        self.dir.write(MANIFEST, &text)?;
        self.dir.commit()?;
        Ok(manifest)
    }
}

/// `[row, slot, expert]` for each of the `rows` of `routed` that went to one of `experts`, in order.
fn chosen(routed: &Routed, rows: &[usize], experts: &[u32]) -> Vec<[usize; 3]> {
    let mut kept = Vec::new();
    for &row in rows {
        for (slot, id) in routed.ids[row * routed.slots..][..routed.slots].iter().enumerate() {
            if experts.contains(id) {
                kept.push([row, slot, *id as usize]);
            }
        }
    }
    kept
}

/// The runs of consecutive numbers in `rows`, which ascend.
fn runs(rows: &[usize]) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
    rows.chunk_by(|a, b| a + 1 == *b).map(|run| run[0]..run[run.len() - 1] + 1)
}

/// Whether the directory has a manifest with this schema, and nothing that a trace does not have.
fn is_trace(dir: &Path) -> bool {
    #[derive(serde::Deserialize)]
    struct Schema {
        schema: String,
    }
    let schema: Option<Schema> = FileKind::TRACE_MANIFEST.read_json(&dir.join(MANIFEST)).ok();
    let ours = |name: &str| name == MANIFEST || name.ends_with(".safetensors");
    let only_ours = std::fs::read_dir(dir)
        .is_ok_and(|mut entries| entries.all(|e| e.is_ok_and(|e| e.file_name().to_str().is_some_and(ours))));
    schema.is_some_and(|s| s.schema == SCHEMA) && only_ours
}
