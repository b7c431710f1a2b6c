use super::super::sample::{agreeing, diverging};
use super::*;
use crate::diff::measure::spread::{MOST, Spread, SpreadAxis, SpreadOf};
use crate::diff::outcome::{LayerRouting, StageResult};
use crate::op::{LayerLayout, STAGES, Scope, Site, Stage};

/// The page without its script and style, which are constants and hold no tags.
fn markup(html: &str) -> String {
    let mut out = String::new();
    let mut rest = html;
    while let Some((before, after)) =
        ["<script>", "<style>"].iter().filter_map(|tag| rest.split_once(tag)).min_by_key(|(b, _)| b.len())
    {
        out += before;
        rest = after
            .split_once("</script>")
            .into_iter()
            .chain(after.split_once("</style>"))
            .min_by_key(|(b, _)| b.len())
            .unwrap()
            .1;
    }
    out + rest
}

/// Every element that is opened is closed, in order.
fn balanced(html: &str) {
    let mut open: Vec<String> = Vec::new();
    for tag in markup(html).split('<').skip(1).map(|t| t.split('>').next().unwrap().to_string()) {
        let name = tag.split([' ', '\n']).next().unwrap().to_string();
        match name.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop().as_deref(), Some(name)),
            None if tag.ends_with('/') || ["!doctype", "meta", "link", "br", "input"].contains(&name.as_str()) => {}
            None => open.push(name),
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn one_file_that_says_the_same() {
    let html = render(&diverging());
    balanced(&html);
    for text in [
        "× diverged</span>",
        "FIRST FAULT</span> <a href=\"#s-2-expert_down\">layer 2 · expert_down · the subject is wrong · 3.7e4 × floor</a>",
        "expert 3 only (11 of 34 rows)",
        "last block&#39;s scales read from the block before it",
        "<td class=\"h6 first\"><a href=\"#s-2-expert_down\" title=\"layer 2 · expert_down: 3.7e4 × floor, injects\"",
        "<tr id=\"s-2-expert_down\" data-kind=\"fault\"",
        "not compared: the subject&#39;s trace lacks it",
        "<details open><summary>layer 2 ",
        "reference 1, subject 2",
        "fingerprint 0000",
    ] {
        assert!(html.contains(text), "{text}\n{}", &html[html.find("<header").unwrap()..][..6000]);
    }
    for outside in ["http:", "https:", " src=", "@import", "url(", "<link rel=\"stylesheet"] {
        assert!(!html.contains(outside), "{outside}");
    }
    assert!(html.contains("default-src 'none'"), "the page itself forbids to load anything");
}

/// Every cell of the map leads to a row that is there, and every row has its own name.
#[test]
fn links_lead_somewhere() {
    let html = render(&diverging());
    let ids: Vec<&str> = html.split(" id=\"").skip(1).map(|s| s.split('"').next().unwrap()).collect();
    let mut unique = ids.clone();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(unique.len(), ids.len());
    let links: Vec<&str> = html.split("href=\"#").skip(1).map(|s| s.split('"').next().unwrap()).collect();
    assert!(links.len() > 99);
    for link in links {
        assert!(unique.contains(&link), "#{link}");
    }
}

#[test]
fn untrusted_text_stays_text() {
    let mut c = agreeing();
    c.model.name = "<script>alert(1)</script>".into();
    c.prompt = Some("</td></script><script>".into());
    c.notes = vec!["\" onload=\"alert(1)".into()];
    let html = render(&c);
    balanced(&html);
    assert_eq!(html.matches("<script").count(), 1, "the page's own");
    assert!(html.contains("&lt;script&gt;alert") && !html.contains("\" onload"));
}

/// 48 layers of 128 experts, 16 decoded tokens, faults and flips all over: a page that opens at once.
#[test]
fn a_large_comparison_stays_small() {
    let mut c = diverging();
    let row = |stage: Stage| {
        c.stages.iter().find(|s| s.site.stage == stage && s.verdict.is_fault()).or(c.stages.first()).cloned()
    };
    let fault = row(Stage::ExpertDown).unwrap();
    let spread = |axis| Spread { of: SpreadOf::Own, axis, at: (0..MOST).collect(), relative: vec![1e-3; MOST] };
    let mut stages: Vec<StageResult> = Vec::new();
    for step in 0..17 {
        for layer in 0..48 {
            for row in STAGES.iter().filter(|s| s.scope != Scope::Model && s.scope.occurs(LayerLayout::QWEN3MOE)) {
                let spread = vec![
                    spread(SpreadAxis::Expert),
                    spread(SpreadAxis::Position),
                    Spread { of: SpreadOf::Total, ..spread(SpreadAxis::Position) },
                ];
                stages.push(StageResult { step, site: Site::layer(layer, row.stage), spread, ..fault.clone() });
            }
        }
    }
    c.stages = stages;
    let mut routing = c.routing[0].routing.clone().unwrap();
    routing.flips = vec![routing.flips[0].clone(); 512];
    c.routing = (0..48).map(|layer| LayerRouting { step: 0, layer, routing: Ok(routing.clone()) }).collect();
    let l = c.logits.as_mut().unwrap();
    l.at = (0..4096).map(|position| crate::diff::measure::logits::LogitsAt { position, ..l.at[0].clone() }).collect();
    c.conclude();
    let html = render(&c);
    balanced(&html);
    assert!(html.len() < 1_200_000, "{} bytes", html.len());
    assert!(html.contains("more; the JSON document has all"));
}
