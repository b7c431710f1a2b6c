//! Turns what a lockstep run observes into a [`Comparison`](crate::diff::outcome::Comparison).
//!
//! - Each stage is judged when it is made, so no more than one layer of values is held.
//! - With the oracle, the measure is the largest |error| over its rounding floor; without one, nmse thresholds. `--tol` limits
//!   are held against the total error either way.
//! - **Subject**: |g(x_g) − o(x_g)| over its own floor. **Reference**: |c(x_g) − o(x_g)| and |c(x_c) − o(x_c)|, the larger.
//! - Routing: in the oracle's logits on the reference's inputs, the reference may be off by its floor; the subject by its
//!   floor and by what its inputs moved, which was judged where it arose.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;

use rayon::prelude::*;

use crate::backend::{Contract, NamedContract, Shown};
use crate::diff::explain::segment::{MOST_SPENT, SegmentEval, explain_segment};
use crate::diff::explain::{StageEval, Upstream, explain};
use crate::diff::locate::{self, Geometry};
use crate::diff::measure::attribution::{InputError, split};
use crate::diff::measure::logits::{LogitsAt, compare_logits};
use crate::diff::measure::metrics::{Mask, Mismatch, measure};
use crate::diff::measure::router::{RouterComparison, Routing, common_experts, compare_routing, gather_common};
use crate::diff::measure::tolerance::Tolerances;
use crate::diff::outcome::{JudgedRatios, LayerRouting, Measured, StageResult, Verdict};
use crate::diff::run::lockstep::{Observation, OracleResult, exact_replay};
use crate::diff::run::share::Injections;
use crate::diff::segment::{Layers, Log, producer};
use crate::error::Result;
use crate::formula::floor::{floor_of, logit_bounds};
use crate::formula::routing::as_chosen;
use crate::formula::worst::{Claim, Unbounded, worst};
use crate::model::{Config, Model};
use crate::op::{At, Data, GroupScore, HostTensor, Op, OpKind, Site, Stage};
use crate::trace::select::{Selected, has_expert_rows};

mod hidden;
mod observer;
mod spread;

use hidden::Visible;

/// Faults that are explained at most.
const MOST_EXPLANATIONS: usize = 8;
const MOST_SEGMENT_EXPLANATIONS: usize = 2;

/// A stage's values on both sides, kept while its layer needs them.
struct Pair {
    reference: Rc<HostTensor>,
    subject: Rc<HostTensor>,
}

/// What the router's decision is held against: the oracle's logits, and how far each side's may be from them.
struct LogitBounds {
    oracle: Vec<f64>,
    reference: Vec<f64>,
    subject: Vec<f64>,
}

/// What a run found.
#[derive(Default)]
pub struct Findings {
    /// In order of execution.
    pub stages: Vec<StageResult>,
    pub routing: Vec<LayerRouting>,
    pub logits: Vec<LogitsAt>,
    /// Of the subject's logits at each position, what tells other bits from these.
    pub logit_bits: Vec<u64>,
    /// The subject was given expert ids in the place of its own.
    pub rerouted: bool,
    /// What else must be said, one line each.
    pub notes: Vec<String>,
    /// The prompt's injected errors, if they were asked for.
    pub injections: Injections,
}

/// Receives the stages of a lockstep run, and builds the comparison from them.
pub struct ComparisonBuilder<'m> {
    model: &'m Model,
    config: &'m Config,
    /// Of the reference, and of the subject.
    contracts: &'m [NamedContract; 2],
    /// The steps of each side that hides some of its values.
    logs: [Option<Log>; 2],
    tolerances: Tolerances,
    /// Tokens of the prompt, which is step 0.
    prompt: Vec<u32>,
    /// Each side's values of the layer in progress, for explanations: the reference's, the subject's.
    earlier: [Upstream; 2],
    /// Faults that are still explained: each takes time, and those behind the first seldom say more.
    explanations: usize,
    /// Faults whose error is still taken apart along the axes.
    spreads: usize,
    /// The same for segments, which take more.
    segment_explanations: usize,
    found: Findings,
    /// Bytes that injected errors may still take; `None` when none are kept.
    room: Option<usize>,
    /// Values of the layer in progress, by stage.
    layer: HashMap<Stage, Pair>,
    bounds: Option<LogitBounds>,
    /// Error that each stage's output carries, for amplification: ‖g(x_g) − c(x_c)‖ and ‖c(x_c)‖.
    carried: HashMap<Site, InputError>,
    /// The stages that are asked about, if not all.
    select: Option<Selected>,
    /// Whether the first fault ends the run.
    stops: bool,
    /// Told the stage that is about to be run.
    tell: Option<&'m mut dyn FnMut(At)>,
}

/// What the oracle says of one stage.
struct OracleView {
    ratios: JudgedRatios,
    /// The floors of the worst elements of `ratios`: the reference's, the subject's.
    floors: [f64; 2],
    /// Injected error over what both sides are allowed together.
    injected_ratio: f64,
    /// The largest allowed error of an element of the injected difference, at the worst element.
    floor: f64,
    /// What has no bound of the reference's and of the subject's, on the subject's inputs.
    unbounded: [Option<Unbounded>; 2],
    /// The ratio of the reference on its own inputs, where it errs by more than its floor there and does not on the subject's: a recording,
    /// whose replays are the oracle's, or a backend that errs on those inputs alone.
    only_on_its_own: Option<f64>,
}

impl<'m> ComparisonBuilder<'m> {
    pub fn new(
        model: &'m Model,
        contracts: &'m [NamedContract; 2],
        partial: [bool; 2],
        tolerances: Tolerances,
        prompt: &[u32],
    ) -> Self {
        let layers = Layers { layout: model.config.layout(), count: model.config.layers };
        Self {
            model,
            config: &model.config,
            contracts,
            logs: partial.map(|partial| partial.then(|| Log::new(layers))),
            tolerances,
            prompt: prompt.to_vec(),
            earlier: [Upstream::new(), Upstream::new()],
            explanations: MOST_EXPLANATIONS,
            spreads: spread::MOST_FAULTS,
            segment_explanations: MOST_SEGMENT_EXPLANATIONS,
            found: Findings::default(),
            room: None,
            layer: HashMap::new(),
            bounds: None,
            carried: HashMap::new(),
            select: None,
            stops: false,
            tell: None,
        }
    }

    /// Says which stages the run asks about.
    pub fn select(&mut self, select: Option<Selected>) {
        self.select = select;
    }

    /// Ends the run with the first stage that is wrong.
    pub fn stop_at_first(&mut self) {
        self.stops = true;
    }

    /// Has every stage told before it is run.
    pub fn tell(&mut self, tell: &'m mut dyn FnMut(At)) {
        self.tell = Some(tell);
    }

    /// Keeps the prompt's injected errors while they take at most `bytes`; of all stages, or of none.
    pub fn keep_injections(&mut self, bytes: usize) {
        self.room = Some(bytes);
    }

    /// Leaves causes alone.
    pub fn explain_nothing(&mut self) {
        (self.explanations, self.segment_explanations) = (0, 0);
    }

    pub fn finish(self) -> Findings {
        self.found
    }

    fn keep(&mut self, o: &Observation<'_>) {
        let Some(room) = self.room.filter(|_| self.step(o.at.start) == 0) else { return };
        if o.shown[1] == Shown::Nothing {
            return; // nothing of it is the subject's
        }
        let bytes = o.subject.len() * size_of::<f64>();
        if bytes > room || o.at.start != 0 {
            self.room = None;
            self.found.injections = Injections::default();
            return;
        }
        self.room = Some(room - bytes);
        let injections = &mut self.found.injections;
        if o.at.site.stage == Stage::Logits {
            injections.logits = Some([o.reference.to_f64(), o.subject.to_f64()]);
        }
        let delta = match o.at.site.stage {
            Stage::RouterIds => (*o.next[1]).clone(),
            _ => HostTensor::f64(&o.subject.shape, error(&o.subject, &o.replayed)),
        };
        injections.by_site.insert(o.at.site, delta);
    }

    /// Each side against the oracle, on the subject's inputs and, for the reference, on its own too. What a side does not show is the
    /// oracle's, and has no error.
    fn against_oracle(&self, o: &Observation<'_>) -> Result<Option<OracleView>> {
        let Some([exact_c, exact_g]) = &o.exact else { return Ok(None) };
        let (stage, kind) = (o.at.site.stage, o.op_subject.kind());
        let (contract_c, contract_g) = (self.contracts[0].at(stage, kind), self.contracts[1].at(stage, kind));
        let op_g = o.op_subject.try_map(|t| Ok(&**t))?;
        let op_c = o.op_reference.try_map(|t| Ok(&**t))?;

        let (exact_replay, same) = exact_replay(&op_g, &exact_g.value, [contract_c, contract_g])?;
        let of_subject = own_error(&op_g, contract_g, &exact_g.value, &o.subject);
        let of_replay = own_error(&op_g, contract_c, &exact_replay, &o.replayed);
        let of_both = match same && o.at.site.stage != Stage::RouterIds {
            true => error(&o.subject, &o.replayed),
            // What the contracts themselves make different is no error of either side.
            false => of_subject.iter().zip(&of_replay).map(|(g, c)| g - c).collect::<Vec<_>>(),
        };
        let carried = exact_g.carried.as_ref().map(|carried| &carried[..]);
        let [subject, replay, both] = worst(
            &op_g,
            [contract_g, contract_c],
            &exact_g.value,
            [
                Claim { error: &of_subject, of: [true, false], carried },
                Claim { error: &of_replay, of: [false, true], carried: None },
                Claim { error: &of_both, of: [true, true], carried },
            ],
        )?;
        let (mut reference, mut floor_c) = (replay.ratio.max, replay.floor);
        let mut only_on_its_own = None;
        if o.reference != o.replayed && o.shown[0] != Shown::Nothing {
            let error = own_error(&op_c, contract_c, &exact_c.value, &o.reference);
            let carried = exact_c.carried.as_ref().map(|carried| &carried[..]);
            let claim = Claim { error: &error, of: [true], carried };
            let [own] = worst(&op_c, [contract_c], &exact_c.value, [claim])?;
            if own.ratio.max > 1.0 && reference <= 1.0 {
                only_on_its_own = Some(own.ratio.max);
            }
            if own.ratio.max > reference {
                (reference, floor_c) = (own.ratio.max, own.floor);
            }
        }
        Ok(Some(OracleView {
            ratios: JudgedRatios { reference, subject: subject.ratio.max },
            floors: [floor_c, subject.floor],
            injected_ratio: both.ratio.max,
            floor: both.floor,
            unbounded: [replay.unbounded, subject.unbounded],
            only_on_its_own,
        }))
    }

    /// The floors of `side`'s contract on the inputs of side `inputs`; on its own, with what is not known of them.
    fn floors(&self, o: &Observation<'_>, side: usize, inputs: usize) -> Result<Vec<f64>> {
        let exact = &o.exact.as_ref().expect("floors are asked for where the oracle judged")[inputs];
        let op = [&o.op_reference, &o.op_subject][inputs].try_map(|t| Ok(&**t))?;
        let mut floors = floor_of(&op, self.contracts[side].at(o.at.site.stage, op.kind()), &exact.value)?;
        if side == inputs {
            add(&mut floors, &exact.carried);
        }
        Ok(floors)
    }

    /// The error of each side on its own inputs.
    fn total(&mut self, o: &Observation<'_>, visible: &Visible, mask: Mask) -> Result<Measured> {
        if o.at.site.stage == Stage::RouterIds {
            let routing = self.route(o)?;
            let measured = match &routing {
                Ok(r) => Measured::from(r),
                Err(mismatch) => Measured::Failed(mismatch.clone()),
            };
            let layer = o.at.site.layer.unwrap_or_default();
            self.found.routing.push(LayerRouting { step: self.step(o.at.start), layer, routing });
            return Ok(measured);
        }
        // After a flip the same slot holds another expert: compare by expert, the flipped tokens apart.
        let by_expert = has_expert_rows(o.at.site.stage) || o.at.site.stage == Stage::RouterWeights;
        if visible.rows.is_none()
            && by_expert
            && let Some(ids) = self.layer.get(&Stage::RouterIds)
            && ids.reference != ids.subject
            && let Ok(mut rows) = common_experts(&ids.reference, &ids.subject)
        {
            rows.retain(|r| !r.flipped);
            if rows.is_empty() {
                return Ok(measure(&o.replayed, &o.subject, mask).into());
            }
            let wide = |t: &HostTensor| HostTensor {
                shape: vec![t.shape[0], t.shape[1], t.len() / ids.subject.len()],
                data: t.data.clone(),
            };
            let gathered = gather_common(&wide(&o.reference), &wide(&o.subject), &rows);
            return Ok(gathered.and_then(|(c, g)| measure(&c, &g, mask)).into());
        }
        Ok(measure(&visible.rows(&o.reference), &visible.rows(&o.subject), mask).into())
    }

    /// Compares the two sides' sets of experts, and holds each flip against the oracle's margin.
    fn route(&mut self, o: &Observation<'_>) -> Result<Result<RouterComparison, Mismatch>> {
        let experts = self.config.moe.as_ref().map_or(0, |m| m.experts);
        let stage = |stage: Stage| self.layer.get(&stage);
        let (decides, groups) = (self.decides(), self.config.moe.as_ref().and_then(|moe| moe.groups));
        let side = |ids, pick: fn(&Pair) -> &HostTensor| Routing {
            ids,
            weights: None,
            // Where a bias decides with them, the probabilities alone are no margin of the choice.
            probs: stage(Stage::RouterProbs).filter(|_| !self.config.layout().choice_bias).map(pick),
            logits: stage(decides).filter(|_| decides != Stage::RouterProbs).map(pick),
            groups,
        };
        let compared = compare_routing(
            side(&o.reference, |p| &p.reference),
            side(&o.subject, |p| &p.subject),
            experts,
            o.at.start,
        );
        Ok(compared.map(|mut routing| {
            if let Some(bounds) = &self.bounds {
                for flip in &mut routing.flips {
                    let at = (flip.position - o.at.start) * experts..(flip.position - o.at.start + 1) * experts;
                    let sides = [&bounds.reference[at.clone()], &bounds.subject[at.clone()]];
                    let chosen = [&o.reference, &o.subject].map(|ids| {
                        let row = flip.position - o.at.start;
                        &ids.ids()[row * ids.cols()..(row + 1) * ids.cols()]
                    });
                    match groups {
                        Some(groups) => flip.explain_in_groups(groups, chosen, &bounds.oracle[at], sides),
                        None => flip.explain(&bounds.oracle[at], sides[0], sides[1]),
                    };
                }
            }
            routing
        }))
    }

    /// Adds the error of the weights, by expert id, to the routing that they belong to.
    fn weigh(&mut self, o: &Observation<'_>) {
        let Some(ids) = self.layer.get(&Stage::RouterIds) else { return };
        let experts = self.config.moe.as_ref().map_or(0, |m| m.experts);
        let side = |ids, weights| Routing { ids, weights: Some(weights), probs: None, logits: None, groups: None };
        let weighed =
            compare_routing(side(&ids.reference, &o.reference), side(&ids.subject, &o.subject), experts, o.at.start);
        if let (Ok(weighed), Some(LayerRouting { routing: Ok(routing), .. })) = (weighed, self.found.routing.last_mut())
        {
            routing.weight_error = weighed.weight_error;
        }
    }

    /// What a choice of experts is made by: the router's logits, or what is compared in place of them. Of the sums of two that groups may be kept
    /// by, logits before their sigmoids do not tell which is the larger.
    pub(super) fn decides(&self) -> Stage {
        let layout = self.config.layout();
        let by = self.config.moe.as_ref().and_then(|moe| moe.groups).map(|groups| groups.by);
        match by {
            Some(GroupScore::TopTwo) if !layout.choice_bias && !layout.logits_choose => Stage::RouterProbs,
            _ => Stage::routing_logits(layout),
        }
    }

    /// Remembers what a flip will be held against, when the router's logits are made.
    fn bound_logits(&mut self, o: &Observation<'_>) -> Result<()> {
        let Some([exact_c, exact_g]) = &o.exact else { return Ok(()) };
        let (exact_c, exact_g) = (&exact_c.value, &exact_g.value);
        let own_floor = self.floors(o, 0, 0)?;
        // Where what was bounded is itself compared, nothing is added by a softmax.
        let layout = self.config.layout();
        let by_logits = layout.logits_choose || layout.choice_bias || self.decides() == Stage::RouterProbs;
        let bounds = |exact: &HostTensor, floor: Vec<f64>, side: usize| match by_logits {
            true => Ok(floor),
            false => logit_bounds(exact, &floor, self.contracts[side].at(Stage::RouterProbs, OpKind::RouterProbs)),
        };
        let reference = bounds(exact_c, own_floor, 0)?;
        let oracle = exact_c.to_f64();
        let mut subject = bounds(exact_g, self.floors(o, 1, 1)?, 1)?;
        for (bound, (c, g)) in subject.iter_mut().zip(oracle.iter().zip(exact_g.to_f64())) {
            *bound += (g - c).abs();
        }
        self.bounds = Some(LogitBounds { oracle, reference, subject });
        Ok(())
    }

    /// 0 for the prompt, n for the n-th decoded token.
    fn step(&self, start: usize) -> usize {
        (start + 1).saturating_sub(self.prompt.len())
    }

    fn logits(&mut self, o: &Observation<'_>, visible: &Visible) {
        let (reference, subject) = (visible.rows(&o.reference), visible.rows(&o.subject));
        let positions: Vec<usize> = (0..subject.shape[0]).map(|n| o.at.start + visible.row(n)).collect();
        let next: Vec<Option<u32>> = positions.iter().map(|p| self.prompt.get(p + 1).copied()).collect();
        // What could not be compared is said by the stage's own result.
        if let Ok(logits) = compare_logits(&reference, &subject, &next, o.at.start) {
            self.found
                .logits
                .extend(logits.at.into_iter().zip(positions).map(|(at, position)| LogitsAt { position, ..at }));
        }
    }

    /// Error in ÷ error out of the reference's own arithmetic.
    fn amplification(&mut self, o: &Observation<'_>) -> Option<f64> {
        let split = split(&o.reference, &o.replayed, &o.subject).ok()?;
        self.carried
            .insert(o.at.site, InputError { error_norm: split.total_norm, reference_norm: split.reference_norm });
        // What an input carries is not known where it was not asked about.
        let carried = |input: Stage| {
            let input = producer(o.at.site, input, self.config.layers);
            let asked = self.select.as_ref().is_none_or(|select| select.wants(input));
            asked.then(|| self.carried.get(&input).copied())
        };
        let inputs = o.at.site.stage.inputs(self.config.layout().of(o.at.site.layer)).map(carried);
        let inputs: Option<Vec<Option<InputError>>> = inputs.collect();
        split.amplification(&Vec::from_iter(inputs?.into_iter().flatten()))
    }

    fn explained(&mut self, o: &Observation<'_>, result: &mut StageResult, view: &OracleView) -> Result<()> {
        let Some([OracleResult { value: exact_c, .. }, OracleResult { value: exact_g, .. }]) = &o.exact else {
            return Ok(());
        };
        // Which side is explained, on whose inputs.
        let (side, inputs, wrong, exact) = match (&result.verdict, &view.only_on_its_own) {
            (Verdict::ReferenceWrong, Some(_)) => (0, 0, &o.reference, exact_c),
            (Verdict::ReferenceWrong, None) => (0, 1, &o.replayed, exact_g),
            _ => (1, 1, &o.subject, exact_g),
        };
        let floor = &self.floors(o, side, inputs)?;
        let op = [&o.op_reference, &o.op_subject][inputs];
        let as_chosen = {
            let contract = self.contracts[side].at(o.at.site.stage, op.kind());
            as_chosen(&op.try_map(|t| Ok(&**t))?, contract, exact, wrong).map(Rc::new)
        };
        let exact = as_chosen.as_ref().unwrap_or(exact);
        let (expected, found) = (exact.to_f64(), wrong.to_f64());
        let stage = o.at.site.stage;
        let ids = self.layer.get(&Stage::RouterIds).map(|p| [&p.reference, &p.subject][inputs].clone());
        let geometry = Geometry {
            stage,
            shape: &wrong.shape,
            start: o.at.start,
            ids: ids.as_ref().map(|ids| ids.ids()),
            head_dim: Some(self.config.head_dim_of(stage)),
            qtype: result.qtype(),
        };
        result.pattern = locate::find(&geometry, &expected, &found, Some(floor));
        let log = self.logs[side].as_ref().filter(|_| side == inputs && o.shown[side] != Shown::Nothing);
        if let (Some(log), Some(segment)) = (log, &mut result.segment) {
            if self.segment_explanations > 0 {
                self.segment_explanations -= 1;
                let found = explain_segment(&SegmentEval {
                    log,
                    contracts: &self.contracts[side],
                    output: wrong,
                    exact,
                    allowed: floor,
                    ids: ids.as_deref(),
                    config: self.config,
                    weights: &self.model.weights,
                    most_spent: MOST_SPENT,
                })?;
                (segment.capture, segment.untried) = (found.capture.clone(), found.untried);
                result.cause = found.cause();
            }
        } else if self.explanations > 0 {
            self.explanations -= 1;
            let contracts = &self.contracts[side];
            let scene = StageEval {
                site: o.at.site,
                start: o.at.start,
                op,
                output: wrong,
                exact,
                floor,
                contract: *contracts.at(o.at.site.stage, op.kind()),
                earlier: &self.earlier[inputs],
                config: self.config,
                weights: &self.model.weights,
            };
            result.cause = explain(&scene)?.cause();
        }
        Ok(())
    }
}

/// The error of a side's value, which is none in a choice of experts that rounding of groups' scores allows.
fn own_error(op: &Op<'_, &HostTensor>, contract: &Contract, exact: &HostTensor, value: &HostTensor) -> Vec<f64> {
    match as_chosen(op, contract, exact, value) {
        Some(as_chosen) => error(value, &as_chosen),
        None => error(value, exact),
    }
}

/// Adds what is carried to each floor.
fn add(floor: &mut [f64], carried: &Option<Rc<Vec<f64>>>) {
    let Some(carried) = carried else { return };
    floor.iter_mut().zip(carried.iter()).for_each(|(floor, carried)| *floor += carried);
}

/// subject − expected, element by element. Where the expected value is not finite the inputs were not: the subject then
/// errs only if it lost that. Elements of another count have no error to speak of; their shapes are compared elsewhere.
pub fn error(subject: &HostTensor, expected: &HostTensor) -> Vec<f64> {
    let (g, e) = (subject.f64s(), expected.f64s());
    let difference = |(&g, &e): (&f64, &f64)| match (g.is_finite(), e.is_finite()) {
        (_, true) => g - e,
        (false, false) => 0.0,
        (true, false) => f64::INFINITY,
    };
    g.par_iter().zip(&*e).with_min_len(1 << 12).map(difference).collect()
}

/// A number for each row of a matrix, which is another one where a bit of it is; every NaN is alike.
pub fn row_bits(t: &HostTensor) -> Vec<u64> {
    fn bits<T: Copy + Sync, B: Hash>(values: &[T], cols: usize, of: fn(T) -> B) -> Vec<u64> {
        let one = |row: &[T]| {
            let mut hasher = DefaultHasher::new();
            row.iter().for_each(|x| of(*x).hash(&mut hasher));
            hasher.finish()
        };
        values.par_chunks(cols.max(1)).map(one).collect()
    }
    match &t.data {
        Data::F32(v) => bits(v, t.cols(), |x| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }),
        Data::F64(v) => bits(v, t.cols(), |x| if x.is_nan() { f64::NAN.to_bits() } else { x.to_bits() }),
        Data::U32(v) => bits(v, t.cols(), |x| x),
    }
}

impl ComparisonBuilder<'_> {
    /// Keeps what the rest of the layer is held against.
    fn made(&mut self, site: Site, [reference, subject]: [Rc<HostTensor>; 2]) {
        self.earlier[0].note(site, &reference);
        self.earlier[1].note(site, &subject);
        self.layer.insert(site.stage, Pair { reference, subject });
    }

    /// What the numbers mean, by the oracle's ratios or, where the user set a limit or nothing judged, by limits.
    fn decide(&self, result: &mut StageResult) {
        let (stage, qtype) = (result.site.stage, result.qtype());
        let passes = |measured: &Measured, ratio| match measured {
            Measured::Metrics(m) => self.tolerances.judge(stage, qtype, m, ratio).iter().all(|j| j.passed),
            Measured::Sets { flips, unexplained, .. } => *flips == 0 || *unexplained == 0,
            Measured::Failed(_) => false,
            Measured::Hidden => true,
        };
        result.visible = !passes(&result.total, result.ratio);
        let own_passes = result.injected.as_ref().is_some_and(|own| passes(own, result.ratio));
        let by_limit = self.tolerances.names(stage) || result.judged.is_none();
        result.verdict = match result.judged {
            Some(ratios) => match Verdict::from_ratios(ratios, result.visible) {
                verdict if !by_limit => verdict,
                verdict if own_passes => {
                    if verdict.is_fault() {
                        Verdict::Ok
                    } else {
                        verdict
                    }
                }
                verdict if verdict.is_fault() => verdict,
                _ => Verdict::Differs,
            },
            None if !own_passes => Verdict::Differs,
            None if result.visible => Verdict::Inherits,
            None => Verdict::Ok,
        };
        if let Some(metrics) = result.own().metrics() {
            let smallest = self.tolerances.smallest(stage, qtype, metrics, result.ratio);
            result.smallest_tolerance = smallest.iter().map(|t| t.to_string()).collect();
        }
    }
}
