//! What of a run is wanted: stages, layers, positions, experts.
//!
//! Design:
//! - A [`Selection`] is what the user wrote; [`Selection::resolve`] holds it against one run and gives a [`Selected`],
//!   which answers in O(log n) and names nothing that does not exist.
//! - A word is a stage's own name, or else an alias (which may name several stages), or a glob. A glob is matched against
//!   the stages' own names, and against aliases only when no own name matches: so `ffn_*` does not reach `attn_residual`
//!   through its alias `ffn_inp`, and `ffn_moe_*` still works.
//! - llama.cpp's suffix `attn_norm-3` means that layer, whatever `--layers` says. Whole-model stages belong to no layer, so
//!   `--layers` neither selects nor excludes them.
//! - `--experts` selects rows of the `expert_*` stages; the router's own stages stay whole.
//! - Every word must select something. What does not is an error that lists the nearest names.

use std::collections::{BTreeSet, HashSet};
use std::ops::RangeInclusive;

use crate::error::{Error, Result};
use crate::op::{Dim, LayerLayout, STAGES, Scope, Site, Stage, StageInfo};

/// What a user asked for, not yet held against a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Selection {
    /// The flag that the stages were given by, which errors begin with; empty where there is none.
    flag: &'static str,
    stages: Vec<Word>,
    layers: Numbers,
    positions: Numbers,
    experts: Numbers,
}

/// One word of `--stages`: the text, the stages that it names, and the layer of its suffix.
#[derive(Clone, Debug, PartialEq)]
struct Word {
    text: String,
    stages: Vec<Stage>,
    layer: Option<usize>,
}

/// A list of numbers and ranges; negative numbers count from the end, -1 being the last.
#[derive(Clone, Debug, PartialEq)]
enum Numbers {
    All,
    /// The text that it came from, and the ranges in it, in the order given.
    Some(String, Vec<(i64, i64)>),
}

/// A selection that holds for one run.
#[derive(Clone, Debug, PartialEq)]
pub struct Selected {
    sites: BTreeSet<Site>,
    positions: Ranges,
    experts: Option<Vec<u32>>,
}

/// Sorted, disjoint, non-adjacent ranges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranges(Vec<RangeInclusive<usize>>);

/// Whether the stage has one row per chosen expert: `--experts` applies to it.
pub fn has_expert_rows(stage: Stage) -> bool {
    let shape = stage.info().shape;
    shape.len() == 3 && shape[1] == Dim::K
}

impl Selection {
    /// Everything, at every position.
    pub fn all() -> Self {
        Self::parse("all", "all", "all", "all").expect("`all` is a selection")
    }

    /// Reads stages, `--layers`, `--positions` and `--experts`; each is `all`, or a list with commas.
    ///
    /// # Errors
    /// [`Error::Usage`] for an unknown stage (with the nearest names) or something that is not a number or a range.
    pub fn parse(stages: &str, layers: &str, positions: &str, experts: &str) -> Result<Self> {
        Self::parse_flag("", stages, layers, positions, experts)
    }

    /// As [`Selection::parse`], where `flag` says the stages: errors in them begin with it.
    ///
    /// # Errors
    /// As [`Selection::parse`].
    pub fn parse_flag(flag: &'static str, stages: &str, layers: &str, positions: &str, experts: &str) -> Result<Self> {
        let stages = stages.split(',').map(|word| Word::parse(word.trim())).collect::<Result<Vec<_>>>();
        Ok(Self {
            flag,
            stages: stages.map_err(|e| of_flag(flag, e))?,
            layers: Numbers::parse("--layers", layers)?,
            positions: Numbers::parse("--positions", positions)?,
            experts: Numbers::parse("--experts", experts)?,
        })
    }

    /// Holds the selection against a run of `n_positions` positions on a model of `n_layers` layers of this layout, which have
    /// `n_experts` experts if they have some.
    ///
    /// # Errors
    /// [`Error::Usage`] if a word, layer, position or expert selects nothing there.
    pub fn resolve(
        &self,
        n_layers: usize,
        n_positions: usize,
        n_experts: usize,
        layout: LayerLayout,
    ) -> Result<Selected> {
        let layers = self.layers.resolve("--layers", "layer", n_layers)?;
        let positions = self.positions.resolve("--positions", "position", n_positions)?;
        let sites = self.sites(&layers, n_layers, layout).map_err(|e| of_flag(self.flag, e))?;
        let experts = match &self.experts {
            Numbers::All => None,
            Numbers::Some(text, _) if !layout.moe => {
                return Err(Error::usage(format!("--experts {text}: the model has no experts")));
            }
            Numbers::Some(text, _) => {
                if !sites.iter().any(|s| has_expert_rows(s.stage)) {
                    let names: Vec<_> = STAGES.iter().map(|s| s.stage).filter(|s| has_expert_rows(*s)).collect();
                    return Err(Error::usage(format!(
                        "--experts {text} selects rows of {}; none of these stages is selected",
                        names.iter().map(|s| s.name()).collect::<Vec<_>>().join(", ")
                    )));
                }
                let chosen = self.experts.resolve("--experts", "expert", n_experts)?;
                Some(chosen.iter().map(|e| e as u32).collect())
            }
        };
        Ok(Selected { sites, positions, experts })
    }

    /// The stages of the layers that are selected, and of those that words name.
    fn sites(&self, layers: &Ranges, n_layers: usize, layout: LayerLayout) -> Result<BTreeSet<Site>> {
        let exists = |s: &StageInfo| s.scope.occurs(layout);
        let mut sites = BTreeSet::new();
        for word in &self.stages {
            let here: Vec<Stage> = word.stages.iter().copied().filter(|s| exists(s.info())).collect();
            if here.is_empty() {
                let names = nearest(&word.text, STAGES.iter().filter(|s| exists(s)).map(|s| s.name));
                return Err(Error::usage(format!(
                    "stage `{}` does not occur in this model, which has {layout}; the nearest that do: {names}",
                    word.text
                )));
            }
            let mut somewhere = false;
            for stage in here {
                match (stage.info().scope, word.layer) {
                    (Scope::Model, None) => {
                        somewhere = true;
                        sites.insert(Site::model(stage));
                    }
                    (Scope::Model, Some(_)) => {
                        return Err(Error::usage(format!(
                            "stage `{}`: {stage} belongs to the whole model and has no layer",
                            word.text
                        )));
                    }
                    (_, None) => {
                        let here = layers.iter().map(|n| Site::layer(n, stage));
                        let mut here = here.filter(|site| stage.info().scope.occurs(layout.of(site.layer))).peekable();
                        somewhere |= here.peek().is_some();
                        sites.extend(here);
                    }
                    (_, Some(n)) if n < n_layers => {
                        let site = Site::layer(n, stage);
                        if !stage.info().scope.occurs(layout.of(site.layer)) {
                            return Err(Error::usage(format!(
                                "stage `{}`: {stage} does not occur in layer {n} of this model, which has {layout}",
                                word.text
                            )));
                        }
                        somewhere = true;
                        sites.insert(site);
                    }
                    (_, Some(n)) => {
                        return Err(Error::usage(format!(
                            "stage `{}`: the model has no layer {n}, its layers are 0 to {}",
                            word.text,
                            n_layers.saturating_sub(1)
                        )));
                    }
                }
            }
            if !somewhere && layers.iter().next().is_some() {
                return Err(Error::usage(format!(
                    "stage `{}` does not occur in the layers that are selected; this model has {layout}",
                    word.text
                )));
            }
        }
        Ok(sites)
    }
}

/// An error in what a flag says, which begins with the flag.
fn of_flag(flag: &str, e: Error) -> Error {
    if flag.is_empty() { e } else { e.within(flag) }
}

impl Selected {
    /// These sites, whole, in a run of `n_positions`.
    pub fn of(sites: impl IntoIterator<Item = Site>, n_positions: usize) -> Self {
        let positions = Ranges::new(if n_positions == 0 { vec![] } else { vec![0..=n_positions - 1] });
        Self { sites: sites.into_iter().collect(), positions, experts: None }
    }
    /// The same and these sites.
    pub fn and(mut self, sites: impl IntoIterator<Item = Site>) -> Self {
        self.sites.extend(sites);
        self
    }
    /// Whether `site` is among what is selected.
    pub fn wants(&self, site: Site) -> bool {
        self.sites.contains(&site)
    }
    /// The sites selected: whole-model stages first, then layer by layer in order of execution.
    pub fn sites(&self) -> impl Iterator<Item = Site> + '_ {
        self.sites.iter().copied()
    }
    /// The positions that are selected.
    pub fn positions(&self) -> &Ranges {
        &self.positions
    }
    /// The experts whose rows are wanted, ascending; `None` is all of them.
    pub fn experts(&self) -> Option<&[u32]> {
        self.experts.as_deref()
    }
}

impl Ranges {
    /// The union of `ranges`.
    pub(super) fn new(mut ranges: Vec<RangeInclusive<usize>>) -> Self {
        ranges.sort_by_key(|r| *r.start());
        let mut merged: Vec<RangeInclusive<usize>> = Vec::with_capacity(ranges.len());
        for r in ranges {
            match merged.last_mut() {
                Some(last) if *r.start() <= last.end() + 1 => *last = *last.start()..=*r.end().max(last.end()),
                _ => merged.push(r),
            }
        }
        Self(merged)
    }
    /// Reads what its `Display` wrote, of numbers below `n`.
    ///
    /// # Errors
    /// [`Error::Usage`] if it is anything else.
    pub(super) fn parse(text: &str, n: usize) -> Result<Self> {
        Numbers::parse("positions", text)?.resolve("positions", "position", n)
    }
    /// Whether `n` is in one of the ranges.
    pub fn contains(&self, n: usize) -> bool {
        let i = self.0.partition_point(|r| *r.end() < n);
        self.0.get(i).is_some_and(|r| r.contains(&n))
    }
    /// How many numbers there are in it.
    pub fn count(&self) -> usize {
        self.0.iter().map(|r| r.end() - r.start() + 1).sum()
    }
    /// The numbers in order.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().cloned().flatten()
    }
}

/// As a user would write it: `0,5-9`.
impl std::fmt::Display for Ranges {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, r) in self.0.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            if r.start() == r.end() {
                write!(f, "{comma}{}", r.start())?;
            } else {
                write!(f, "{comma}{}-{}", r.start(), r.end())?;
            }
        }
        Ok(())
    }
}

impl Word {
    fn parse(text: &str) -> Result<Self> {
        let word = |stages, layer| Ok(Self { text: text.into(), stages, layer });
        if text == "all" {
            return word(STAGES.iter().map(|s| s.stage).collect(), None);
        }
        let stages = stages_named(text);
        if !stages.is_empty() {
            return word(stages, None);
        }
        if let Some((base, layer)) = text.rsplit_once('-')
            && let Ok(layer) = layer.parse()
        {
            let stages = stages_named(base);
            if !stages.is_empty() {
                return word(stages, Some(layer));
            }
        }
        let names = STAGES.iter().flat_map(|s| std::iter::once(s.name).chain(s.aliases.iter().copied()));
        Err(Error::usage(format!(
            "`{text}` is no stage, alias or glob that matches one; the nearest: {}",
            nearest(text, names)
        )))
    }
}

/// The stages that a list such as `layer_out,router*` names, in order of execution.
///
/// # Errors
/// [`Error::Usage`] for an unknown stage, with the nearest names, and for a stage of one layer only.
pub fn stages_in(list: &str) -> Result<Vec<Stage>> {
    let mut stages = Vec::new();
    for word in list.split(',') {
        let word = Word::parse(word.trim())?;
        if word.layer.is_some() {
            return Err(Error::usage(format!("{}: a stage of every layer is expected, without a number", word.text)));
        }
        stages.extend(word.stages);
    }
    stages.sort();
    stages.dedup();
    Ok(stages)
}

/// The stages that `word` names: its own name, else an alias, else a glob over own names, else a glob over aliases.
pub fn stages_named(word: &str) -> Vec<Stage> {
    let matching = |test: &dyn Fn(&StageInfo) -> bool| -> Vec<Stage> {
        STAGES.iter().filter(|s| test(s)).map(|s| s.stage).collect()
    };
    let mut found = matching(&|s| s.name == word);
    if found.is_empty() {
        found = matching(&|s| s.aliases.contains(&word));
    }
    if found.is_empty() && word.contains(['*', '?']) {
        found = matching(&|s| glob(word.as_bytes(), s.name.as_bytes()));
        if found.is_empty() {
            found = matching(&|s| s.aliases.iter().any(|a| glob(word.as_bytes(), a.as_bytes())));
        }
    }
    found
}

/// `*` is any run of characters, `?` any one. Linear in the text for each `*`: after a mismatch only the last `*` is retried.
pub fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star = None; // where to go on after the last `*`, and how much of the text it has eaten
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p + 1, t));
                p += 1;
            }
            Some(&c) if c == b'?' || c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((after, eaten)) => {
                    star = Some((after, eaten + 1));
                    p = after;
                    t = eaten + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
}

/// The four names nearest to `word`, ignoring case and wildcards: first those that contain it, then by Jaro and Winkler's
/// similarity, for which a common beginning counts more than a common end. Ties stay in the order given.
pub fn nearest<'a>(word: &str, names: impl Iterator<Item = &'a str>) -> String {
    // 64 characters are more than any stage has; names in a file can be longer, and so can an argument.
    let bare: String = word.to_lowercase().chars().filter(|c| !"*?".contains(*c)).take(64).collect();
    let similarity = |name: &str| {
        let name = name.to_lowercase();
        if bare.len() > 2 && name.contains(&bare) { 1.0 } else { strsim::jaro_winkler(&bare, &name) }
    };
    let mut seen = HashSet::new();
    let mut ranked: Vec<_> = names.filter(|name| seen.insert(*name)).map(|name| (similarity(name), name)).collect();
    ranked.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    ranked.iter().take(4).map(|(_, name)| *name).collect::<Vec<_>>().join(", ")
}

impl Numbers {
    fn parse(flag: &str, text: &str) -> Result<Self> {
        let wrong = |part: &str| {
            Error::usage(format!(
                "{flag} {text}: `{part}` is neither a number nor a range such as 0-3, `last` or `all`"
            ))
        };
        if text.trim() == "all" {
            return Ok(Numbers::All);
        }
        let mut ranges = Vec::new();
        for part in text.split(',').map(str::trim) {
            if part == "last" {
                ranges.push((-1, -1));
                continue;
            }
            // The dash of a range is the first one behind a digit; a dash in front of a digit is a sign.
            let dash = part.char_indices().skip(1).find(|(_, c)| *c == '-').map(|(i, _)| i);
            let (from, to) = match dash {
                Some(i) => (&part[..i], &part[i + 1..]),
                None => (part, part),
            };
            let number = |s: &str| s.parse::<i64>().map_err(|_| wrong(part));
            ranges.push((number(from)?, number(to)?));
        }
        Ok(Numbers::Some(text.into(), ranges))
    }

    /// The numbers below `n` that are meant.
    fn resolve(&self, flag: &str, what: &str, n: usize) -> Result<Ranges> {
        let all = |n: usize| Ranges(if n == 0 { vec![] } else { vec![0..=n - 1] });
        let Numbers::Some(text, ranges) = self else {
            return Ok(all(n));
        };
        let place = |i: i64| {
            let at = if i < 0 { i.checked_add(n as i64) } else { Some(i) };
            at.filter(|i| *i >= 0 && *i < n as i64).map(|i| i as usize).ok_or_else(|| match n {
                0 => Error::usage(format!("{flag} {text}: there is no {what}")),
                _ => Error::usage(format!("{flag} {text}: there is no {what} {i}, only 0 to {}", n - 1)),
            })
        };
        let mut found = Vec::with_capacity(ranges.len());
        for &(from, to) in ranges {
            let (a, b) = (place(from)?, place(to)?);
            if a > b {
                return Err(Error::usage(format!("{flag} {text}: the range {from}-{to} is empty, {a} is after {b}")));
            }
            found.push(a..=b);
        }
        Ok(Ranges::new(found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sites(stages: &str, layers: &str) -> Vec<String> {
        let selection = Selection::parse(stages, layers, "all", "all").unwrap();
        selection.resolve(4, 10, 8, LayerLayout::QWEN3MOE).unwrap().sites().map(|s| s.key()).collect()
    }
    fn refusal(stages: &str, layers: &str, positions: &str, experts: &str) -> String {
        let resolved = Selection::parse(stages, layers, positions, experts)
            .and_then(|s| s.resolve(4, 10, 8, LayerLayout::QWEN3MOE));
        let error = resolved.unwrap_err();
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    }

    #[test]
    fn names_aliases_globs_and_suffixes() {
        assert_eq!(sites("moe_out", "1"), ["layers.1.moe_out"]);
        assert_eq!(sites("ffn_moe_out-2", "0"), ["layers.2.moe_out"]);
        assert_eq!(sites("qkv_matmul", "-1"), ["layers.3.q_proj", "layers.3.k_proj", "layers.3.v_proj"]);
        assert_eq!(sites("Qcur", "0"), ["layers.0.q_proj", "layers.0.q_rope"]);
        assert_eq!(sites("router_p*,logits", "0-1"), ["logits", "layers.0.router_probs", "layers.1.router_probs"]);
        assert_eq!(sites("ffn_*", "0"), ["layers.0.ffn_norm"], "a glob prefers own names and skips dense stages");
        assert_eq!(sites("ffn_moe_l*,?_rope", "0"), ["layers.0.q_rope", "layers.0.k_rope", "layers.0.router_logits"]);
        assert_eq!(sites("router*-3", "0").len(), 4);
        let (dense, biases, shared, post_norms, choice) = (4, 3 + 5, 7, 2, 1);
        let (linear, gate, latent) = (14, 2, 8);
        assert_eq!(
            sites("all", "all").len(),
            3 + 4 * (STAGES.len() - 3 - dense - biases - shared - post_norms - choice - linear - gate - latent)
        );
    }

    #[test]
    fn every_name_and_alias_selects_its_stage() {
        for row in STAGES {
            assert_eq!(stages_named(row.name), [row.stage]);
            for alias in row.aliases {
                assert!(stages_named(alias).contains(&row.stage), "{alias}");
            }
        }
    }

    #[test]
    fn numbers_ranges_and_negatives() {
        let positions = |text: &str| {
            let s = Selection::parse("logits", "all", text, "all").unwrap();
            s.resolve(4, 10, 8, LayerLayout::QWEN3MOE).unwrap().positions().clone()
        };
        assert_eq!(positions("last").to_string(), "9");
        assert_eq!(positions("0,5-9").to_string(), "0,5-9");
        assert_eq!(positions("7,6,3-5,-1,-3--2").to_string(), "3-9");
        assert_eq!(positions("-10-0").to_string(), "0");
        let some = positions("0,5-7");
        assert_eq!(some.iter().collect::<Vec<_>>(), [0, 5, 6, 7]);
        assert_eq!(some.count(), 4);
        assert_eq!((0..10).filter(|n| some.contains(*n)).collect::<Vec<_>>(), [0, 5, 6, 7]);
        let experts = Selection::parse("expert_down", "0", "all", "7,3")
            .unwrap()
            .resolve(4, 10, 8, LayerLayout::QWEN3MOE)
            .unwrap();
        assert_eq!(experts.experts(), Some(&[3, 7][..]));
    }

    #[test]
    fn what_selects_nothing_says_so() {
        let message = refusal("moe_outt", "all", "all", "all");
        assert!(message.contains("`moe_outt`") && message.contains("nearest: moe_out"), "{message}");
        let message = refusal("rooter*", "all", "all", "all");
        assert!(message.contains("router_ids"), "{message}");
        let message = refusal("ffn_gate", "all", "all", "all");
        assert!(message.contains("does not occur"), "{message}");
        assert!(refusal("logits-1", "all", "all", "all").contains("whole model"));
        assert!(refusal("attn_norm-4", "all", "all", "all").contains("no layer 4, its layers are 0 to 3"));
        assert!(refusal("all", "0-4", "all", "all").contains("--layers 0-4: there is no layer 4"));
        assert!(refusal("all", "3-1", "all", "all").contains("empty"));
        assert!(refusal("all", "-5", "all", "all").contains("no layer -5"));
        assert!(refusal("all", "all", "10", "all").contains("--positions 10"));
        assert!(refusal("all", "all", "1,,2", "all").contains("``"));
        assert!(refusal("all", "all", "9223372036854775807-99999999999999999999", "all").contains("--positions"));
        assert!(refusal("all", "all", "all", "8").contains("no expert 8"));
        assert!(refusal("moe_out", "all", "all", "3").contains("none of these stages is selected"));
        let flagged = |stages, layers| {
            let selection = Selection::parse_flag("--save", stages, layers, "all", "all");
            selection.and_then(|s| s.resolve(4, 10, 8, LayerLayout::QWEN3MOE)).unwrap_err().to_string()
        };
        assert!(flagged("moe_outt", "all").starts_with("--save: `moe_outt` is no stage"));
        assert!(flagged("ffn_gate", "all").starts_with("--save: stage `ffn_gate` does not occur"));
        assert!(flagged("moe_out", "4").starts_with("--layers 4"), "what another flag says is that flag's");
        let dense =
            Selection::parse("all", "all", "all", "1").unwrap().resolve(4, 10, 0, LayerLayout::default()).unwrap_err();
        assert!(dense.to_string().contains("no experts"));
    }

    #[test]
    fn the_nearest_names_begin_alike() {
        let names = || STAGES.iter().flat_map(|s| std::iter::once(s.name).chain(s.aliases.iter().copied()));
        for (word, expected) in [
            ("rooter", "router_ids"),
            ("rooter*", "router_ids"),
            ("router_logit", "router_logits"),
            ("Router_Wieghts", "router_weights"),
            ("expert_dwn", "expert_down"),
            ("atn_scores", "attn_scores"),
            ("q_porj", "q_proj"),
            ("logist", "logits"),
            ("fina_lnorm", "final_norm"),
        ] {
            let found = nearest(word, names());
            assert!(found.starts_with(expected), "{word}: {found}");
            assert_eq!(found.split(", ").count(), 4);
        }
        let found = nearest("rooter", names());
        assert!(found.split(", ").all(|name| name.starts_with("router_")), "{found}");
        assert_eq!(nearest("b", ["a", "b", "B", "b"].into_iter()), "b, B, a", "each once, equals in their order");
    }

    #[test]
    fn odd_words_do_not_panic() {
        for word in ["", "*", "-", "-3", "é*", "**a**", "a".repeat(10_000).as_str(), "--", "kq-99999999999999999999"] {
            let _ = Selection::parse(word, word, word, word);
            let _ = Selection::parse(word, "all", "all", "all").map(|s| s.resolve(4, 1, 8, LayerLayout::QWEN3MOE));
            let _ = Selection::parse("all", word, "all", "all").map(|s| s.resolve(4, 1, 8, LayerLayout::QWEN3MOE));
        }
    }
}
