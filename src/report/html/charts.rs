//! The pictures beside the map: how errors grow over depth and positions, where along its axes a wrong stage errs, what it does to
//! the logits. Inline SVG and bars, each point with its number as a title.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::super::facts::place;
use super::super::format::{scientific, short};
use super::super::markup::escape;
use super::heat::WorstStep;
use super::scale::{ERROR_NAMES, error_step, legend, ratio_step};
use crate::diff::measure::spread::{Spread, SpreadAxis, SpreadOf};
use crate::diff::outcome::Comparison;
use crate::op::{Site, Stage};

/// The chart's size in its own units, about those of a phone's screen, and the room for its axes.
const SIZE: (f64, f64) = (360.0, 170.0);
const MARGIN: (f64, f64, f64, f64) = (44.0, 10.0, 8.0, 22.0); // left, right, top, bottom
/// Bars of positions at most; neighbours share one, of which the largest counts.
const MOST_BARS: usize = 128;
/// Stages whose error is shown along its axes, and places of each.
const MOST_SPREADS: usize = 6;
const MOST_PLACES: usize = 8;

/// A chart of positive numbers over places, on a scale of decades.
struct Chart {
    name: &'static str,
    x_name: &'static str,
    /// Drawn as a line across.
    limit: Option<f64>,
    bars: bool,
    points: Vec<Point>,
}

struct Point {
    x: usize,
    y: f64,
    title: String,
    class: String,
}

impl Chart {
    /// The decades that hold every number that has one.
    fn decades(&self) -> (i32, i32) {
        let finite = self.points.iter().map(|p| p.y).chain(self.limit).filter(|y| y.is_finite() && *y > 0.0);
        let decades: Vec<f64> = finite.map(|y| y.log10().clamp(-30.0, 30.0)).collect();
        let low = decades.iter().copied().fold(f64::INFINITY, f64::min);
        let high = decades.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if low > high { (-1, 0) } else { (low.floor() as i32, (high.ceil() as i32).max(low.floor() as i32 + 1)) }
    }

    fn svg(&self) -> String {
        let ((width, height), (left, right, top, bottom)) = (SIZE, MARGIN);
        let (low, high) = self.decades();
        let span = self.points.iter().map(|p| p.x).max().unwrap_or(0).max(1) as f64;
        let room = width - left - right;
        let x = |at: usize| left + 4.0 + (room - 8.0) * at as f64 / span;
        // What is 0 lies on the axis, what is no number on top.
        let y = |value: f64| {
            let decade = if value.is_nan() { f64::from(high) } else { value.max(1e-300).log10() };
            let share = ((decade - f64::from(low)) / f64::from(high - low)).clamp(0.0, 1.0);
            top + (height - top - bottom) * (1.0 - share)
        };
        let mut out = format!(
            "<figure><figcaption>{}</figcaption>\n<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{}\">\n",
            self.name, self.name
        );
        let every = ((high - low) as usize).div_ceil(5).max(1);
        for decade in (low..=high).step_by(every) {
            let at = y(10f64.powi(decade));
            let _ = writeln!(
                out,
                "<path class=\"grid\" d=\"M{left} {at:.1}H{:.1}\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">10<tspan dy=\"-4\" class=\"sup\">{decade}</tspan></text>",
                width - right,
                left - 6.0,
                at + 3.5
            );
        }
        let ticks = (span as usize).div_ceil(8).max(1);
        for at in (0..=span as usize).step_by(ticks) {
            let _ =
                writeln!(out, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{at}</text>", x(at), height - 8.0);
        }
        let _ = writeln!(out, "<text x=\"2\" y=\"{:.1}\" class=\"axis\">{}</text>", height - 8.0, self.x_name);
        if let Some(limit) = self.limit {
            let _ = writeln!(out, "<path class=\"limit\" d=\"M{left} {:.1}H{:.1}\"/>", y(limit), width - right);
        }
        if !self.bars && self.points.len() > 1 {
            let path: Vec<String> = self.points.iter().map(|p| format!("{:.1} {:.1}", x(p.x), y(p.y))).collect();
            let _ = writeln!(out, "<path class=\"line\" d=\"M{}\"/>", path.join("L"));
        }
        let wide = (room / (span + 1.0) * 0.7).clamp(1.0, 14.0);
        for p in &self.points {
            let (x, y, base, title) = (x(p.x), y(p.y), height - bottom, escape(&p.title));
            let _ = match self.bars {
                true => writeln!(
                    out,
                    "<path class=\"{}\" d=\"M{x:.1} {base:.1}V{:.1}\" stroke-width=\"{wide:.1}\"><title>{title}</title></path>",
                    p.class,
                    y.min(base - 1.0)
                ),
                false => writeln!(
                    out,
                    "<circle class=\"{}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"><title>{title}</title></circle>",
                    p.class
                ),
            };
        }
        out + "</svg></figure>\n"
    }
}

/// How the error grows over depth, and how it lies over layers and positions.
pub fn growth(c: &Comparison, worst: &BTreeMap<Site, WorstStep<'_>>) -> String {
    let of_layers = worst.iter().filter_map(|(site, w)| Some((site.layer? as usize, site.stage, w.stage)));
    let mut handed = Vec::new();
    let mut own: BTreeMap<usize, (f64, String)> = BTreeMap::new();
    for (layer, stage, s) in of_layers {
        if stage == Stage::LayerOut
            && let Some(m) = s.total.metrics()
        {
            let title = format!("layer {layer}: {} of what it hands on", scientific(m.rel_l2));
            handed.push(Point { x: layer, y: m.rel_l2, title, class: "point".into() });
        }
        if let Some(ratio) = s.ratio {
            let entry = own.entry(layer).or_insert((f64::MIN, String::new()));
            if ratio.is_nan() || ratio > entry.0 {
                *entry = (ratio, format!("{}: {} × floor", place(s), short(ratio)));
            }
        }
    }
    let own = own.into_iter().map(|(x, (y, title))| Point { x, y, title, class: format!("s{}", ratio_step(y)) });
    let charts = [
        Chart {
            name: "Relative error that a layer hands on",
            x_name: "layer",
            limit: None,
            bars: false,
            points: handed,
        },
        Chart {
            name: "Largest own error in a layer, × floor",
            x_name: "layer",
            limit: Some(1.0),
            bars: true,
            points: own.collect(),
        },
    ];
    let drawn: String = charts.iter().filter(|chart| !chart.points.is_empty()).map(Chart::svg).collect();
    let over = positions(c);
    if drawn.is_empty() && over.is_empty() {
        return String::new();
    }
    format!(
        "<section id=\"growth\"><h2>How the error grows</h2>\n<div class=\"charts\">{drawn}</div>\n{over}</section>\n"
    )
}

/// Layers × positions: the error of what a layer hands on.
fn positions(c: &Comparison) -> String {
    let mut rows: BTreeMap<u32, BTreeMap<usize, f64>> = BTreeMap::new();
    for s in c.stages.iter().filter(|s| s.site.stage == Stage::LayerOut) {
        let total = s.spread.iter().filter(|p| (p.of, p.axis) == (SpreadOf::Total, SpreadAxis::Position));
        for (at, relative) in total.flat_map(|p| p.at.iter().zip(&p.relative)) {
            rows.entry(s.site.layer.unwrap_or_default()).or_default().insert(*at, *relative);
        }
    }
    // One position, or none, is no growth.
    let mut all: Vec<usize> = rows.values().flat_map(|row| row.keys().copied()).collect();
    all.sort_unstable();
    all.dedup();
    if all.len() < 2 {
        return String::new();
    }
    // Decoded tokens add a position each: neighbours share a cell where there are too many.
    let each = all.len().div_ceil(48);
    let columns: Vec<&[usize]> = all.chunks(each).collect();
    let names = columns.iter().enumerate().map(|(i, part)| {
        if i % columns.len().div_ceil(12) == 0 {
            format!("<th scope=\"col\">{}</th>", part[0])
        } else {
            "<th></th>".into()
        }
    });
    let mut out = format!(
        "<h3>Relative error of a layer's output, by position</h3>\n<table class=\"heat positions\"><thead><tr><td></td>{}</tr></thead>\n<tbody>\n",
        names.collect::<String>()
    );
    for (layer, row) in &rows {
        let cells = columns.iter().map(|part| {
            let found = part.iter().filter_map(|at| row.get(at)).copied();
            let worst = found.reduce(|a, b| if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) });
            worst.map_or("<td></td>".into(), |e| {
                format!(
                    "<td class=\"q{}\" title=\"layer {layer}, position {}: {}\"></td>",
                    error_step(e),
                    part[0],
                    scientific(e)
                )
            })
        });
        out += &format!("<tr><th scope=\"row\">{layer}</th>{}</tr>\n", cells.collect::<String>());
    }
    out + "</tbody></table>\n" + &legend('q', &ERROR_NAMES)
}

/// Where along its axes a wrong stage errs: by head, by expert, by position.
pub fn places(c: &Comparison) -> String {
    let wrong = c.stages.iter().filter(|s| s.verdict.is_fault() && s.spread.iter().any(|p| p.of == SpreadOf::Own));
    let mut out = String::new();
    for s in wrong.take(MOST_SPREADS) {
        let own: String = s.spread.iter().filter(|p| p.of == SpreadOf::Own).map(bars).collect();
        if !own.is_empty() {
            out += &format!("<h3>{}</h3>\n<div class=\"charts\">{own}</div>\n", escape(&place(s)));
        }
    }
    if out.is_empty() {
        return out;
    }
    format!(
        "<section id=\"places\"><h2>Where a wrong stage errs</h2>\n<p class=\"hint\">Its own error relative to the values there; the largest first.</p>\n{out}</section>\n"
    )
}

/// The largest places of a spread, as bars on a linear scale.
fn bars(spread: &Spread) -> String {
    let what = match spread.axis {
        SpreadAxis::Position => "position",
        SpreadAxis::Head => "head",
        SpreadAxis::Expert => "expert",
    };
    let mut all: Vec<(usize, f64)> = spread.at.iter().copied().zip(spread.relative.iter().copied()).collect();
    let places = all.len();
    if places < 2 {
        return String::new();
    }
    let weight = |e: f64| if e.is_nan() { f64::INFINITY } else { e };
    all.sort_by(|a, b| weight(b.1).total_cmp(&weight(a.1)).then(a.0.cmp(&b.0)));
    let most = all.iter().map(|(_, e)| *e).filter(|e| e.is_finite()).fold(0.0, f64::max);
    all.truncate(MOST_PLACES);
    let rows = all.iter().map(|(at, e)| {
        let share = if e.is_finite() && most > 0.0 {
            e / most * 100.0
        } else if *e == 0.0 {
            0.0
        } else {
            100.0
        };
        format!("<li><span>{what} {at}</span><i style=\"width:{share:.1}%\"></i><b>{}</b></li>", scientific(*e))
    });
    let more = if places > all.len() { format!(", the largest {} of {places}", all.len()) } else { String::new() };
    format!(
        "<figure><figcaption>By {what}{more}</figcaption>\n<ul class=\"bars\">{}</ul></figure>\n",
        rows.collect::<String>()
    )
}

/// KL by position, with the positions where the most probable token is another.
pub fn divergences(c: &Comparison) -> String {
    let Some(l) = &c.logits else { return String::new() };
    let each = l.at.len().div_ceil(MOST_BARS).max(1);
    let points = l.at.chunks(each).map(|part| {
        let worst = part.iter().max_by(|a, b| a.kld.total_cmp(&b.kld)).expect("a chunk has one");
        let changed = part.iter().find(|p| p.reference_top != p.subject_top);
        let note =
            changed.map_or(String::new(), |p| format!("; top token {} becomes {}", p.reference_top, p.subject_top));
        Point {
            x: part[0].position,
            y: worst.kld,
            title: format!("position {}: KL {} nats{note}", worst.position, scientific(worst.kld)),
            class: if changed.is_some() { "bar changed" } else { "bar" }.into(),
        }
    });
    let points: Vec<Point> = points.collect();
    Chart { name: "KL divergence by position, nats", x_name: "position", limit: None, bars: true, points }.svg()
}
