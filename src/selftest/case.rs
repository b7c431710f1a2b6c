//! One run of the self-test: what is planted, and whether what was found is what was planted.

use super::faults::{self, By, Fault, FaultPlace, FaultySide};
use super::faulty::{PlantedFault, PlantedRecord, Strength};
use super::shader;
use super::test_model::{POSITIONS, TestModel};
use crate::backend::gpu::AdapterSelector;
use crate::diff::explain::SAME_AS;
use crate::diff::locate::{Pattern, PatternKind};
use crate::diff::measure::metrics::Side;
use crate::diff::outcome::{Comparison, Measured, StageResult, Verdict};
use crate::op::{OpKind, Scope as Layers, Site, Stage};
use crate::report::selftest::{FoundFault, TrialOutcome};

/// A fault or several, on one of the models, at one strength.
#[derive(Clone)]
pub struct Trial {
    pub name: &'static str,
    pub faults: Vec<&'static Fault>,
    /// Its number in [`test_model`](super::test_model).
    pub test_model: usize,
    pub strength: Strength,
    /// It was drawn from a seed, and is in no table.
    pub made_up: bool,
}

/// The strengths, in rounding floors, at which graded faults are planted besides their full one.
const GRADES: [f64; 2] = [8.0, 64.0];

/// Every case, in the order of the table.
pub fn cases() -> Vec<Trial> {
    let mut cases = Vec::new();
    for test_model in 0..TestModel::COUNT {
        for fault in faults::all().filter(|f| f.models.contains(&test_model)) {
            let full = [Strength::Full].into_iter();
            let grades = GRADES.into_iter().filter(|_| fault.graded).map(Strength::Floors);
            cases.extend(grades.chain(full).map(|strength| Trial {
                name: fault.name,
                faults: vec![fault],
                test_model,
                strength,
                made_up: false,
            }));
        }
        let together = faults::TOGETHER
            .iter()
            .filter(|(_, names)| names.iter().all(|n| faults::named(n).models.contains(&test_model)));
        cases.extend(together.map(|(name, names)| {
            let faults = names.iter().map(|n| faults::named(n)).collect();
            Trial { name, faults, test_model, strength: Strength::Full, made_up: false }
        }));
    }
    cases
}

impl Trial {
    /// The backend beside the reference: a GPU if one of the faults needs it.
    pub fn subject(&self) -> FaultySide {
        self.faults.iter().map(|f| f.subject).max().expect("a case has a fault")
    }
    /// Decode steps that it takes.
    pub fn decode(&self) -> usize {
        self.faults.iter().map(|f| f.step).max().expect("a case has a fault")
    }
    /// The layer whose router must have ties.
    pub fn tied(&self) -> Option<usize> {
        self.faults.iter().find(|f| f.tied).map(|f| f.layer(self.test_model))
    }

    /// What a mistake may know.
    fn place<'m>(&self, fault: &Fault, test_model: &'m TestModel) -> FaultPlace<'m> {
        FaultPlace { model: &test_model.model, layer: fault.layer(self.test_model) }
    }

    /// Where a fault errs.
    fn planted_at(&self, fault: &Fault) -> Site {
        site(fault.stage, fault.layer(self.test_model))
    }
    /// Where it must be located: step, site.
    pub fn seen_at(&self, fault: &Fault) -> (usize, Site) {
        (fault.step, site(fault.seen_at(), fault.layer(self.test_model)))
    }
    /// The fault that must be named first.
    pub fn first(&self) -> &'static Fault {
        let order = |f: &&&'static Fault| {
            let (step, site) = self.seen_at(f);
            // What is of the whole model comes before its layers, or after them.
            (step, if site.stage == Stage::Embedding { 0 } else { site.layer.map_or(u32::MAX, |n| n + 1) }, site.stage)
        };
        self.faults.iter().min_by_key(order).expect("a case has a fault")
    }

    /// Its faults of one side, ready to be planted.
    pub fn plants(&self, side: Side, test_model: &TestModel, adapter: &AdapterSelector) -> Vec<PlantedFault> {
        let of_side = self.faults.iter().filter(|f| f.side == side);
        of_side
            .map(|fault| PlantedFault {
                site: self.planted_at(fault),
                op: fault.op(),
                start: (fault.step > 0).then(|| POSITIONS + fault.step - 1),
                scope: fault.scope,
                strength: self.strength,
                mistake: match fault.by {
                    By::Shader(shaders) => shader::mistake(shaders, adapter.clone()),
                    By::Operation(make) => make(&self.place(fault, test_model)),
                    By::Generated(make) => make(&self.place(fault, test_model)),
                },
                done: PlantedRecord::default(),
            })
            .collect()
    }
}

/// The stage in a layer, or of the whole model.
fn site(stage: Stage, layer: usize) -> Site {
    if stage.info().scope == Layers::Model { Site::model(stage) } else { Site::layer(layer, stage) }
}

/// Holds a comparison against what was planted; `done` are the plants' records, in the order of the case's faults. What is made up may be
/// no mistake on this prompt, or within rounding: then it must not be blamed.
pub fn check(case: &Trial, done: &[PlantedRecord], comparison: &Comparison) -> TrialOutcome {
    let shows = |done: &PlantedRecord| done.ratio.is_nan() || done.ratio > 1.0;
    // What is listed has been seen to be a mistake: it must be again.
    if !case.made_up || done.iter().all(shows) {
        return check_shown(case, done, comparison);
    }
    let kept = || case.faults.iter().zip(done).filter(|(_, done)| shows(done));
    let shown = Trial { faults: kept().map(|(fault, _)| *fault).collect(), ..case.clone() };
    if shown.faults.is_empty() {
        let most = done.iter().map(|done| done.ratio).fold(0.0, f64::max);
        let outcome = check_shown(case, done, comparison);
        let unseen = Some(format!("what was planted is {} × its floor", crate::report::format::short(most)));
        return TrialOutcome { unseen, ..outcome };
    }
    check_shown(&shown, &kept().map(|(_, done)| *done).collect::<Vec<_>>(), comparison)
}

/// Of a case whose every fault is beyond its floor.
fn check_shown(case: &Trial, done: &[PlantedRecord], comparison: &Comparison) -> TrialOutcome {
    // Where the faulty side does not show a stage, the segment that it lies in stands for it.
    let stands_for = |s: &StageResult, side: Side, (step, site): (usize, Site)| {
        let inside = s.segment.as_ref().is_some_and(|segment| segment.hidden.contains(&site));
        let shown = s.verdict != Verdict::Hidden && (side == Side::Reference || s.total != Measured::Hidden);
        s.step == step && (s.site == site && shown || inside)
    };
    let at = |fault: &Fault| -> Option<&StageResult> {
        comparison.stages.iter().find(|s| stands_for(s, fault.side, case.seen_at(fault)))
    };
    let segments = comparison.hidden() > 0;
    // A value that is wrong in a cache is met again at each later token: where what is stored is hidden, or the storing itself is wrong.
    let planted = |s: &StageResult| {
        let cached = |f: &Fault| segments || f.op() == OpKind::Store;
        let again = |f: &&Fault| cached(f) && (0..s.step).any(|step| case.seen_at(f).0 == step);
        case.faults.iter().any(|f| {
            stands_for(s, f.side, case.seen_at(f)) || again(f) && stands_for(s, f.side, (s.step, case.seen_at(f).1))
        })
    };
    let first = case.first();
    let place = case.faults.iter().position(|f| f.name == first.name).expect("one of them");
    let located = comparison.fault().is_some_and(|found| {
        let expert = done[place].expert.is_none_or(|expert| found.expert == Some(expert));
        let position = done[place].position.is_none_or(|position| found.position == Some(position));
        // Of both sides at one place, either may be met first: what shows more is judged earlier.
        let mut here = case.faults.iter().filter(|f| case.seen_at(f) == case.seen_at(first));
        let stands = here.any(|f| stands_for(found, f.side, case.seen_at(f)));
        stands && (expert && position || found.segment.is_some())
    });
    let all_found = case.faults.iter().all(|f| at(f).is_some_and(|s| s.verdict.is_fault()));
    let side_ok = case.faults.iter().all(|fault| {
        let place = |f: &Fault| at(f).map(|s| (s.step, s.site));
        let mut here = case.faults.iter().filter(|f| place(f) == place(fault));
        let both = here.any(|f| f.side != fault.side);
        let expected = match (both, fault.side) {
            (true, _) => Verdict::BothWrong,
            (_, Side::Subject) => Verdict::SubjectWrong,
            (_, Side::Reference) => Verdict::ReferenceWrong,
        };
        at(fault).is_some_and(|s| s.verdict == expected)
    });
    let pattern_ok = case.faults.iter().all(|fault| {
        let seen = at(fault);
        let named = seen.and_then(|s| s.pattern.as_ref());
        let mut here = case.faults.iter().filter(|f| case.seen_at(f) == case.seen_at(fault));
        // What a hidden stage's error looks like at the end of its segment is no property of the fault.
        seen.is_some_and(|s| s.segment.is_some()) || named.is_some_and(|p| here.any(|f| describes(f, p)))
    });
    let explained_ok = case.faults.iter().all(|fault| {
        let cause = at(fault).and_then(|s| s.cause.as_ref()).filter(|c| c.reproduced);
        // What is named first, and with it what gives the same here; inside a segment any of those that what is shown cannot tell apart.
        let named: Vec<&str> = cause.map_or(Vec::new(), |c| {
            let others = c.others.iter().map(|other| other.id);
            std::iter::once(c.id).chain(c.also.iter().copied()).chain(others).collect()
        });
        let words = cause.into_iter().flat_map(|c| {
            let others = c.others.iter().map(|other| &*other.name);
            std::iter::once(&*c.name).chain(others)
        });
        let words: Vec<&str> = words.collect();
        let mut here = case.faults.iter().zip(done).filter(|(f, _)| case.seen_at(f) == case.seen_at(fault));
        // Inside a segment a cause may be one that no list of an output's has, or none that is known.
        here.any(|(f, done)| explains(f, done, case.strength, &named, &words)) || segments && named.is_empty()
    });
    let named = |fault: &&Fault| at(fault).and_then(|s| s.cause.as_ref()).is_some_and(|c| c.reproduced);
    let wrongly_explained = !explained_ok && case.faults.iter().copied().any(|fault| named(&fault));
    // A fault may leave what is shown as it was, or within what rounding may do to it.
    let unseen = segments.then(|| case.faults.iter().find(|f| !at(f).is_some_and(|s| s.verdict.is_fault()))).flatten();
    let unseen = unseen.map(|fault| match at(fault) {
        None => "nothing that is shown depends on it".to_string(),
        Some(s) => {
            let ratio = s.judged.map_or(f64::NAN, |judged| match fault.side {
                Side::Reference => judged.reference,
                Side::Subject => judged.subject,
            });
            format!("{} is {} × its floor", s.site, crate::report::format::short(ratio))
        }
    });
    let others = || comparison.stages.iter().filter(|s| !planted(s));
    TrialOutcome {
        detected: !comparison.agrees(),
        located: located && all_found,
        side_ok,
        pattern_ok,
        explained_ok,
        wrongly_explained,
        unseen,
        blamed: others().filter(|s| s.verdict.is_fault()).map(describe).collect(),
        evaluations: others().filter(|s| s.verdict.was_compared()).count(),
        found: comparison.fault().map(|s| FoundFault {
            site: s.site,
            step: s.step,
            verdict: s.verdict.clone(),
            ratio: s.ratio.unwrap_or(f64::NAN),
            position: s.position,
            expert: s.expert,
            pattern: s.pattern.as_ref().map(|p| format!("{:?}: {}", p.kind, p.description)),
            explained: s.cause.as_ref().is_some_and(|c| c.reproduced),
            cause: s.cause.as_ref().map(|c| {
                let says = if c.reproduced { "reproduced by" } else { "not reproduced, nearest" };
                format!("{says} {}: {}", c.id, c.name)
            }),
        }),
    }
}

/// A region with this share of a stage's elements claims so little that it is as good as no geometry.
const NEARLY_ALL: f64 = 0.75;

/// Whether a pattern describes the error of a fault. Of an error that is everywhere, the elements beyond their floor may by chance
/// leave out a position or a slot: a region of nearly all elements is right then.
fn describes(fault: &Fault, pattern: &Pattern) -> bool {
    let everywhere = fault.patterns.contains(&PatternKind::WholeTensor) && pattern.elements_share >= NEARLY_ALL;
    everywhere || pattern.kinds.iter().any(|kind| fault.patterns.contains(kind))
}

/// Whether the hypotheses that reproduce the wrong output are right: the one that describes the fault is among them, in the words that it
/// takes to tell it from other mistakes of its kind; none, where none does. A fault that was made weaker than it is is another one: rightly not
/// explained, or as the factor that is left of it, whatever the words.
fn explains(fault: &Fault, done: &PlantedRecord, strength: Strength, named: &[&str], words: &[&str]) -> bool {
    let weaker = strength != Strength::Full;
    let any = |says: &&str| words.iter().any(|words| tells(words, &with_experts(says, done)));
    let said = weaker || fault.says.is_empty() || fault.says.iter().any(any);
    let right = said && named.iter().any(|id| fault.explained.contains(id) || weaker && *id == "factor");
    let none = named.is_empty() && (fault.explained.is_empty() || fault.may_be_open || weaker);
    right || none
}

/// Words with the expert that a fault was planted in for `{e}`, and the one that is n further, around the last, for `{e + n}`.
fn with_experts(says: &str, done: &PlantedRecord) -> String {
    let Some(expert) = done.expert else { return says.to_string() };
    let mut words = says.replace("{e}", &expert.to_string());
    while let Some((before, (n, after))) =
        words.split_once("{e + ").and_then(|(before, rest)| Some((before, rest.split_once('}')?)))
    {
        let n: u32 = n.parse().expect("a number of experts");
        words = format!("{before}{}{after}", (expert + n) % done.experts.max(1));
    }
    words
}

/// Whether one of the causes in `name` begins with `says`: "k rounded to f16" is another one than "q and k rounded to f16".
fn tells(name: &str, says: &str) -> bool {
    let begins = |at: usize| at == 0 || [SAME_AS, ": "].iter().any(|before| name[..at].ends_with(before));
    name.match_indices(says).any(|(at, _)| begins(at))
}

/// A stage that is blamed, in words.
pub fn describe(s: &StageResult) -> String {
    let step = if s.step == 0 { String::new() } else { format!("step {} · ", s.step) };
    let ratio =
        s.ratio.map_or("not comparable".to_string(), |r| format!("{} × floor", crate::report::format::short(r)));
    format!("{step}{} · {} · {ratio}", s.site, s.verdict)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_by_how_it_begins() {
        assert!(tells("k rounded to f16", "k rounded"));
        assert!(!tells("q and k rounded to f16", "k rounded"));
        assert!(tells("no scale at all, which here is the same as 8 times the right values", "8 times"));
        assert!(tells("k_rope: rope with base 10000 for 1000000, at position 3 only", "rope with base 10000 for"));
        assert!(!tells("rope with base 100000 for 1000000", "rope with base 10000 for"));
    }

    /// The right hypothesis with the wrong numbers is no explanation; of a fault that was made weaker it is.
    #[test]
    fn the_right_hypothesis_needs_the_right_words() {
        let fault = faults::named("gqa-thirds");
        let right = "KV head h / 3, up to the last, for query head h, which belongs to h / 4";
        let wrong = "KV head h mod kv_heads for query head h, only head 3";
        let done = PlantedRecord::default();
        let says = |strength, words: &str| explains(fault, &done, strength, &["kv-head"], &[words]);
        assert!(says(Strength::Full, right));
        assert!(!says(Strength::Full, wrong));
        assert!(says(Strength::Floors(8.0), wrong));
        assert!(!explains(fault, &done, Strength::Full, &["mask"], &[right]));
    }

    /// Of one expert it is said which, and whose weights it has: those of any other are no explanation.
    #[test]
    fn the_right_experts_are_needed() {
        let fault = faults::named("expert-offset");
        let done = PlantedRecord { expert: Some(7), experts: 8, ..PlantedRecord::default() };
        let says = |words: &str| explains(fault, &done, Strength::Full, &["expert-offset"], &[words]);
        assert!(says("the weights of expert 0 for those of expert 7, position 3 only"));
        assert!(!says("the weights of expert 6 for those of expert 7"));
        assert!(!says("the weights of expert 1 for those of expert 0"));
        assert!(!says("the weights of expert e + 1"));
        assert_eq!(with_experts("{e + 6} for {e}", &done), "5 for 7");
    }
}
