//! A document of what a reader looks at first, whatever the run: kilobytes where all of it would be megabytes.

use std::borrow::Cow;

use super::{Document, StageDocument};
use crate::diff::measure::logits::{LogitsAt, LogitsComparison};
use crate::diff::outcome::Comparison;
use crate::report::text::worst;

/// What a brief document lists at most: stages that add an error, positions of logits, layers of routers.
const BRIEF: usize = 24;

impl<'a> Document<'a> {
    /// Without what makes it long: of the stages the first to add errors and the worst, of the logits the positions that differ most, of
    /// the routers those that chose otherwise. Counts and totals are of everything.
    pub fn brief(c: &'a Comparison) -> Self {
        let mut kept: Vec<usize> = [c.first_fault, c.first_visible].into_iter().flatten().collect();
        kept.extend((0..c.stages.len()).filter(|i| c.stages[*i].verdict.is_fault()).take(BRIEF));
        let (worst, _) = worst(c);
        kept.extend(worst.iter().filter_map(|s| c.stages.iter().position(|other| std::ptr::eq(*s, other))));
        kept.sort_unstable();
        kept.dedup();
        let mut document = Self::from(c);
        document.full = false;
        document.stages = kept.into_iter().map(|i| StageDocument::from(&c.stages[i])).collect();
        if let Some(l) = &c.logits {
            let mut at: Vec<&LogitsAt> = l.at.iter().collect();
            let order = |p: &LogitsAt| (p.reference_top == p.subject_top, -p.kld);
            at.sort_by(|a, b| {
                let ((s1, k1), (s2, k2)) = (order(a), order(b));
                s1.cmp(&s2).then(k1.total_cmp(&k2))
            });
            at.truncate(BRIEF);
            at.sort_by_key(|p| p.position);
            let at = at.into_iter().cloned().collect();
            document.logits = Some(Cow::Owned(LogitsComparison { at, ..l.clone() }));
        }
        if let Some(router) = &mut document.router {
            router.layers.retain(|layer| layer.mismatch.is_some() || !layer.flips.is_empty());
            router.layers.truncate(BRIEF);
            router.layers.iter_mut().for_each(|layer| layer.flips.truncate(BRIEF));
        }
        document
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environment::Environment;
    use crate::report::sample::diverging;

    #[test]
    fn a_brief_document_has_the_same_shape_and_the_first_fault() {
        let mut c = diverging();
        let whole = Environment::with(&Document::from(&c)).unwrap();
        let schema = serde_json::from_str(include_str!("../../../schemas/diff.schema.json")).unwrap();
        let validator = jsonschema::draft202012::new(&schema).unwrap();
        let brief = |c: &Comparison| Environment::with(&Document::brief(c)).unwrap();
        let d = brief(&c);
        assert!(validator.is_valid(&d), "{:?}", validator.iter_errors(&d).map(|e| e.to_string()).collect::<Vec<_>>());
        assert_eq!((&d["full"], &whole["full"]), (&false.into(), &true.into()));
        assert_eq!((&d["first_fault"], &d["counts"]), (&whole["first_fault"], &whole["counts"]));
        let stages = d["stages"].as_array().unwrap();
        assert!(stages.len() < 30 && stages.iter().any(|s| s["stage"] == "expert_down" && s["layer"] == 2));
        // A run of a thousand times as many stages has no longer a document.
        let before = d.to_string().len();
        let stages = c.stages.clone();
        (0..200).for_each(|_| c.stages.extend(stages.iter().cloned()));
        assert!(brief(&c).to_string().len() < 3 * before, "{} after {before}", brief(&c).to_string().len());
    }
}
