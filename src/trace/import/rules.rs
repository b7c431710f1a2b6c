//! A rules file: which stages the tensors of an engine are whose names are not built in.
//!
//! JSON, `twinscope.rules/1`: a list of rules, each a regular expression over names and what a name that matches is. The first
//! rule that matches decides; names that no rule matches are looked up among the built-in ones. capture/README.md has examples.

use std::path::Path;

use regex::{Captures, Regex};
use serde::Deserialize;

use super::names::{Reading, nearest_stage, site, split};
use super::sizes::ModelSizes;
use crate::error::{Error, Result};
use crate::files::FileKind;
use crate::op::{Scope, Stage};
use crate::text::printable;

/// What `schema` is.
const SCHEMA: &str = "twinscope.rules/1";
/// The most rules of a file.
const MAX_RULES: usize = 10_000;

/// A rules file, checked.
#[derive(Default)]
pub struct Rules {
    rules: Vec<Rule>,
    /// ModelSizes that the file states.
    pub sizes: ModelSizes,
}

struct Rule {
    pattern: Regex,
    does: Does,
}

/// What a rule says of the names that it matches.
enum Does {
    Ignore(String),
    Map(Box<Mapping>),
}

struct Mapping {
    stages: Vec<Stage>,
    split: Option<Vec<usize>>,
    layer_offset: i64,
    axes: Option<Vec<usize>>,
    position: Option<usize>,
    scale: Option<f64>,
    positions: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Json {
    schema: String,
    #[serde(default)]
    sizes: ModelSizes,
    rules: Vec<JsonRule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonRule {
    #[serde(rename = "match")]
    pattern: String,
    stage: Option<OneOrMore>,
    ignore: Option<String>,
    split: Option<Vec<usize>>,
    #[serde(default)]
    layer_offset: i64,
    axes: Option<Vec<usize>>,
    position: Option<usize>,
    scale: Option<f64>,
    positions: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl Rules {
    /// # Errors
    /// An unreadable file, another schema, a regular expression or a stage that there is not.
    pub fn open(path: &Path) -> Result<Self> {
        let text = FileKind::RULES.read(path)?;
        Self::parse(&text).map_err(|what| Error::input(format!("{}: {what}", path.display())))
    }

    fn parse(text: &[u8]) -> std::result::Result<Self, String> {
        let json: Json = serde_json::from_slice(text).map_err(|e| format!("not a rules file: {e}"))?;
        if json.schema != SCHEMA {
            return Err(format!("schema {SCHEMA:?} expected, found {:?}", json.schema));
        }
        if json.rules.len() > MAX_RULES {
            return Err(format!("at most {MAX_RULES} rules expected, found {}", json.rules.len()));
        }
        let rule = |(i, rule): (usize, JsonRule)| {
            rule.check().map_err(|what| format!("rule {} (`{}`): {what}", i + 1, printable(&rule.pattern)))
        };
        Ok(Self { rules: json.rules.into_iter().enumerate().map(rule).collect::<Result<_, _>>()?, sizes: json.sizes })
    }

    /// The stages that the tensor `label` is by the first rule that matches; `None` if none does.
    pub fn readings(&self, label: &str, sizes: &ModelSizes) -> Option<std::result::Result<Vec<Reading>, String>> {
        let (rule, found) = self.rules.iter().find_map(|rule| Some((rule, rule.pattern.captures(label)?)))?;
        Some(match &rule.does {
            Does::Ignore(why) => Err(why.clone()),
            Does::Map(mapping) => mapping.readings(&found, sizes),
        })
    }
}

impl JsonRule {
    fn check(&self) -> std::result::Result<Rule, String> {
        let pattern = Regex::new(&self.pattern).map_err(|e| e.to_string())?;
        let names = match (&self.stage, &self.ignore) {
            (None, Some(why)) => return Ok(Rule { pattern, does: Does::Ignore(format!("ignored by a rule: {why}")) }),
            (Some(OneOrMore::One(name)), None) => std::slice::from_ref(name),
            (Some(OneOrMore::More(names)), None) => names,
            _ => return Err("either `stage` or `ignore` is expected".into()),
        };
        let stage = |name: &String| {
            Stage::from_name(name).ok_or_else(|| {
                format!("no stage is called `{}`; the nearest: {}", printable(name), nearest_stage(name))
            })
        };
        let stages = names.iter().map(stage).collect::<std::result::Result<Vec<_>, _>>()?;
        if let Some(split) = &self.split
            && split.len() != stages.len()
        {
            return Err(format!("`split` of {} widths expected, found {}", stages.len(), split.len()));
        }
        let axes = self.axes.as_deref().unwrap_or_default();
        if !(0..axes.len()).all(|axis| axes.contains(&axis)) {
            return Err(format!("`axes` with each of 0 to {} expected, found {axes:?}", axes.len().saturating_sub(1)));
        }
        if self.scale.is_some_and(|scale| !scale.is_finite()) {
            return Err(format!("a finite `scale` expected, found {:?}", self.scale));
        }
        let groups = pattern.captures_len() > 1;
        if stages.is_empty() || stages.iter().any(|s| s.info().scope != Scope::Model && !groups) {
            return Err("a stage, and a group in `match` that is the layer, are expected".into());
        }
        Ok(Rule {
            pattern,
            does: Does::Map(Box::new(Mapping {
                stages,
                split: self.split.clone(),
                layer_offset: self.layer_offset,
                axes: self.axes.clone(),
                position: self.position,
                scale: self.scale,
                positions: self.positions.clone(),
            })),
        })
    }
}

impl Mapping {
    fn readings(&self, found: &Captures<'_>, sizes: &ModelSizes) -> std::result::Result<Vec<Reading>, String> {
        let number = |text: &str| text.parse::<i64>().map_err(|_| format!("`{}` is no number", printable(text)));
        let layer = match self.stages.iter().any(|s| s.info().scope != Scope::Model) {
            // The group called `layer`, or else the first one.
            true => {
                let group =
                    found.name("layer").or_else(|| found.get(1)).ok_or("the group of its layer matched nothing")?;
                let layer = number(group.as_str())?.checked_add(self.layer_offset);
                let layer = layer.and_then(|n| u32::try_from(n).ok());
                Some(layer.ok_or_else(|| format!("layer {} with offset {}", group.as_str(), self.layer_offset))?)
            }
            false => None,
        };
        let call = match found.name("call") {
            Some(group) => Some(usize::try_from(number(group.as_str())?).map_err(|_| "a negative call")?),
            None => None,
        };
        let readings = match &self.stages[..] {
            [stage] if self.split.is_none() => vec![Reading::whole(site(layer, *stage)?)],
            stages => {
                let known = match stages {
                    [Stage::QProj, Stage::KProj, Stage::VProj] => sizes.qkv().map(Vec::from),
                    [_, _] => sizes.ffn.map(|n| vec![n, n]),
                    _ => None,
                };
                let widths = self.split.clone().or(known);
                let widths = widths
                    .ok_or("several stages in one; their widths are not known: `split` in the rule, or --model")?;
                split(layer, stages, &widths)?
            }
        };
        Ok(readings
            .into_iter()
            .map(|reading| Reading {
                axes: self.axes.clone(),
                position: self.position,
                scale: self.scale,
                positions: self.positions.clone(),
                call,
                ..reading
            })
            .collect())
    }
}
