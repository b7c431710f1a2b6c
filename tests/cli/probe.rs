//! `probe` on the built binary: what it says of sides that agree, its document, and what it refuses.

use super::diff::{expect, refused, valid};

#[test]
fn a_stage_alone_agrees_at_many_rows_and_says_which_were_judged() {
    let run = ["probe", "--stage", "ffn_moe_gate", "--tokens", "6000", "--subject", "cpu:scalar", "--reference", "cpu"];
    let document = valid("probe.schema.json", &expect(0, &[&run[..], &["--json"]].concat()));
    assert_eq!((&document["verdict"], &document["stage"]), (&"agree".into(), &"expert_gate".into()));
    assert_eq!(
        (&document["layer"], &document["tokens"], &document["shape"][0]),
        (&0.into(), &6000.into(), &6000.into())
    );
    assert_eq!(
        (&document["fault"], &document["weight"]["name"]),
        (&serde_json::Value::Null, &"blk.0.ffn_gate_exps.weight".into())
    );
    let rows: Vec<[u64; 2]> = serde_json::from_value(document["judged_rows"].clone()).unwrap();
    let judged = |row: u64| rows.iter().any(|[from, to]| (*from..=*to).contains(&row));
    for row in [0, 1, 31, 32, 33, 1023, 1024, 2047, 2048, 2049, 4096, 5998, 5999] {
        assert!(judged(row), "{row}: {rows:?}");
    }
    assert_eq!(document["judged_all"], false);
    let same = |seed: &str| {
        valid("probe.schema.json", &expect(0, &[&run[..], &["--seed", seed, "--json"]].concat()))["subject"]["ratio"]
            .clone()
    };
    assert_eq!(same("0"), document["subject"]["ratio"]);
    assert_ne!(same("1"), document["subject"]["ratio"]);
    let text = expect(0, &["probe", "--stage", "q_rope", "--rows", "5", "--start", "1000", "--subject", "cpu"]);
    assert!(text.contains("5 rows of synthetic operands") && text.contains("every row"), "{text}");
    assert!(text.contains("from position 1000") && text.contains("AGREE  5 rows judged"), "{text}");
}

#[test]
fn what_cannot_be_probed_is_refused_by_name() {
    refused(2, &["probe", "--stage", "expert_gat"], &["expert_gat", "expert_gate"]);
    refused(2, &["probe", "--stage", "logits", "--layer", "1"], &["--layer 1", "belongs to no layer"]);
    refused(2, &["probe", "--stage", "q_proj", "--layer", "9"], &["the model has layers 0 to 3"]);
    refused(2, &["probe", "--stage", "q_rope", "--rows", "1000000", "--start", "100000"], &["1048576 positions"]);
    let much = ["probe", "--stage", "kq", "--rows", "1000000", "--subject", "cpu"];
    refused(125, &much, &["layer 0 · attn_scores at 1000000 rows needs", "are available"]);
}
