//! Mistakes that were once located and then told badly or not at all, row by row, and what holds each now. A row stands for its whole kind:
//! what is planted for it is another place, number or strength of it where the kernels or the models ask for one.

use super::all;

/// What keeps a mistake from being told badly again.
enum HeldBy {
    /// A fault of the table, planted in a running kernel.
    Planted(&'static str),
    /// A test of its own: file, function, and why it is not planted.
    Tested(&'static str, &'static str, &'static str),
}
use HeldBy::{Planted, Tested};

/// A row's name, what the mistake is, and what holds it.
const ROWS: &[(&str, &str, HeldBy)] = &[
    ("z-q511", "the last row of a projection's weight is not used", Planted("last-row-zero")),
    ("z-logits-tail", "the last rows of the logits are zero", Planted("logits-tail")),
    ("pub-grid-mod", "workgroups modulo a limit: rows that none of them wrote", Planted("rows-stale")),
    ("gqa-group", "KV head h / 3 in the context", Planted("gqa-thirds")),
    ("ties-drop", "top-k drops the next expert of equal probability", Planted("ties-dropped")),
    ("subnormal", "scales that are subnormal halves flushed to 0", Planted("scales-flushed")),
    ("k-f16-rne", "keys in f16, as in a cache of halves", Planted("k-f16")),
    ("v-f16-rne", "values in f16", Planted("v-f16")),
    ("p-f16-rne", "attention's probabilities in f16", Planted("probs-f16")),
    ("q-f16", "queries in f16, keys not", Planted("q-f16")),
    ("k-bf16-trunc", "keys cut off to bf16", Planted("k-bf16-cut")),
    ("rope-f32", "angles as the product of a position and a frequency in f32", Planted("rope-angles-f32")),
    ("rope-f16freq", "rope's frequencies in f16", Planted("rope-frequencies-f16")),
    ("pub-rope-bf16-pos", "positions in bf16", Planted("rope-positions-bf16")),
    ("half-odd", "attention's output halved at odd positions", Planted("halved-odd")),
    ("combine-order", "weights in another order than the slots, at every third position", Planted("slots-crossed")),
    ("q-bias", "a bias on two columns of a projection without one", Planted("two-columns-offset")),
    ("embed-1024", "the embedding of the token modulo a number", Planted("token-wrapped")),
    ("t33", "activations of the position modulo 32", Planted("input-rows-wrapped")),
    ("rope-256b", "positions past the end of rope's table take its last", Planted("rope-table-long")),
    ("embed-rev", "two tokens' embeddings exchanged", Planted("embeddings-exchanged")),
    ("renorm-eps1e-3", "weights divided by their sum and 1e-3", Planted("renormalised-eps")),
    ("swa8", "a sliding window where the model has none", Planted("window")),
    ("pub-k-overrun", "sums that read on into the next row", Planted("sum-past-its-end")),
    ("pub-tile-repeat", "every tile of 64 columns is the first one", Planted("column-tiles")),
    ("pub-nan-canon", "packed words that are NaN as halves come back as another NaN", Planted("nan-words")),
    ("pub-wrap", "an offset of the experts' sum modulo a power of two", Planted("combine-offset")),
    ("plan-32", "an expert's tiles after its first one slot late", Planted("tile-late")),
    ("expert-31", "a tile's last slot reads the slot before it", Planted("tile-last-slot")),
    (
        "race-plan",
        "barriers missing after the experts' counts: NaN here and there is not the whole tensor",
        Tested(
            "src/diff/locate/tests.rs",
            "half_of_a_tensor_is_not_all_of_it",
            "a race is another one each time, and none at all on some devices: what was told badly of it is its geometry",
        ),
    ),
    ("q8-minus128", "the code -128 read as 128: whole columns at a stride", Planted("code-turned")),
    ("ctx-lanes8", "the context adds up half of its lanes", Planted("context-lanes")),
    ("norm-tail", "a norm leaves out the tail of its sum", Planted("norm-tail")),
    ("probs-sum128", "the softmax adds up the first 128 keys only", Planted("softmax-first-keys")),
    ("both-eps", "another eps on both sides", Planted("both-eps")),
    ("renorm-eps1e-6", "weights divided by their sum and 1e-6", Planted("renormalised-tiny-eps")),
    (
        "clobber",
        "something writes over a value that is still needed: named as the cause where it is read, and who reads it is not blamed",
        Tested(
            "src/diff/run/tests.rs",
            "an_operand_that_was_written_over_is_named",
            "what is planted changes a stage's own result, and no other stage's",
        ),
    ),
];

#[test]
fn every_row_is_held() {
    let together = super::TOGETHER.iter().map(|(name, _)| *name);
    let planted: Vec<&str> = all().map(|fault| fault.name).chain(together).collect();
    let mut names: Vec<&str> = ROWS.iter().map(|(name, ..)| *name).collect();
    assert_eq!(names.len(), 37);
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 37, "each row once");
    for (name, what, held) in ROWS {
        assert!(!what.is_empty(), "{name}");
        match held {
            Planted(fault) => assert!(planted.contains(fault), "{name}: no fault {fault:?} in the table"),
            Tested(file, test, why) => {
                let path = crate::files::beside_the_sources(file);
                let source =
                    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{name}: {}: {e}", path.display()));
                assert!(source.contains(&format!("#[test]\nfn {test}()")), "{name}: no test {test} in {file}");
                assert!(!why.is_empty(), "{name}");
            }
        }
    }
}
