//! Names of llama.cpp's nodes and of transformers' modules.

use super::*;
use crate::op::Mla;

#[test]
fn names_of_nodes_and_modules() {
    let sizes = ModelSizes {
        post_norms: false,
        heads: Some(4),
        kv_heads: Some(2),
        head_dim: Some(16),
        ffn: Some(7),
        moe: Some(true),
        leading_dense: Some(0),
        qkv_bias: None,
        biases: None,
        logits_choose: None,
        ..ModelSizes::default()
    };
    let key = |label: &str| {
        let readings = Name::of(label).readings(NodeKind::default(), &sizes)?;
        Ok::<_, String>(readings.iter().map(|r| r.site.key()).collect::<Vec<_>>().join(" "))
    };
    for (label, expected) in [
        ("embd.0", "embedding"),
        ("result_norm.0", "final_norm"),
        ("result_output.0", "logits"),
        ("Qcur-2.0", "layers.2.q_proj"),
        ("Qcur-2.2", "layers.2.q_rope"),
        ("Kcur-2.0", "layers.2.k_proj"),
        ("Kcur-2.2", "layers.2.k_rope"),
        ("Vcur-2.0", "layers.2.v_proj"),
        ("Vcur-2", "layers.2.v_proj"),
        ("Qcur_normed-2.0", "layers.2.q_norm"),
        ("kq-2.0", "layers.2.attn_scores"),
        ("kq_soft_max-2.0", "layers.2.attn_probs"),
        ("kqv_out-2.0", "layers.2.attn_context"),
        ("__fattn__-2", "layers.2.attn_context"),
        ("ffn_inp-2.0", "layers.2.attn_residual"),
        ("ffn_norm-2.0", "layers.2.ffn_norm"),
        ("ffn_moe_topk-2.0", "layers.2.router_ids"),
        ("ffn_moe_weights_norm-2.0", "layers.2.router_weights"),
        ("ffn_moe_swiglu-2.0", "layers.2.expert_act"),
        ("l_out-2.0", "layers.2.layer_out"),
        ("ffn_swiglu-2", "layers.2.ffn_act"),
        ("wqkv-2", "layers.2.q_proj layers.2.k_proj layers.2.v_proj"),
        ("ffn_moe_gate_up-2", "layers.2.expert_gate layers.2.expert_up"),
        ("model", "final_norm"),
        ("model.embed_tokens", "embedding"),
        ("model.norm", "final_norm"),
        ("norm", "final_norm"),
        ("lm_head", "logits"),
        ("model.layers.2", "layers.2.layer_out"),
        ("model.language_model.layers.2", "layers.2.layer_out"),
        ("model.layers.2.input_layernorm", "layers.2.attn_norm"),
        ("model.layers.2.self_attn", "layers.2.attn_out"),
        ("model.layers.2.self_attn.q_proj", "layers.2.q_proj"),
        ("model.layers.2.self_attn.k_norm", "layers.2.k_norm"),
        ("model.layers.2.self_attn.o_proj", "layers.2.attn_out"),
        ("model.layers.2.self_attn.1", "layers.2.attn_probs"),
        ("model.layers.2.self_attn.qkv_proj", "layers.2.q_proj layers.2.k_proj layers.2.v_proj"),
        ("model.layers.2.post_attention_layernorm", "layers.2.ffn_norm"),
        ("model.layers.2.mlp", "layers.2.moe_out"),
        ("model.layers.2.mlp.gate", "layers.2.router_logits"),
        ("model.layers.2.mlp.gate.0", "layers.2.router_logits"),
        ("model.layers.2.mlp.gate.1", "layers.2.router_weights"),
        ("model.layers.2.mlp.gate.2", "layers.2.router_ids"),
        ("model.layers.2.mlp.experts", "layers.2.moe_out"),
        ("model.layers.2.mlp.gate_proj", "layers.2.ffn_gate"),
        ("model.layers.2.mlp.gate_up_proj", "layers.2.ffn_gate layers.2.ffn_up"),
        ("model.layers.2.mlp.down_proj", "layers.2.ffn_out"),
        ("layers.2.q_rope", "layers.2.q_rope"),
    ] {
        assert_eq!(key(label).as_deref(), Ok(expected), "{label}");
    }
    for (label, why) in [
        ("norm-2.1", "not yet multiplied"),
        ("norm.0", "not yet multiplied"),
        ("Vcur-2.1", "with heads apart"),
        ("Qcur-2", "could be q_proj or q_rope"),
        ("Qcur-2.3", "neither the projection nor rope"),
        ("node_32.0", "does not say what it reads"),
        ("ffn_moe_weights-2.0", "before they are divided"),
        ("cache_k_l0 (view).0", "the cache"),
        ("Qcur-2 (view).0", "a view"),
        ("model.rotary_emb", "angles"),
        ("model.layers.2.mlp.act_fn", "not yet multiplied by up"),
        ("model.layers.2.mlp.experts.3.up_proj", "tokens that chose this expert"),
        ("model.layers.2.mlp.experts.0", "tokens that chose this expert"),
        ("model.layers.2.block_sparse_moe.experts.3.w1", "tokens that chose this expert"),
    ] {
        let found = key(label).unwrap_err();
        assert!(found.contains(why), "{label}: {found}");
    }
    let unknown = Name::of("wqkv-0").readings(NodeKind::default(), &ModelSizes::default()).unwrap_err();
    assert!(unknown.contains("--model"), "{unknown}");
    let inputs = ["blk.3.ffn_gate_exps.weight".to_string(), "ffn_norm-3 (reshaped)".into()];
    let by_weight =
        |op| Name::of("node_7.0").readings(NodeKind { op, inputs: &inputs }, &sizes).map(|r| r[0].site.key());
    assert_eq!(by_weight("MUL_MAT_ID").as_deref(), Ok("layers.3.expert_gate"));
    assert!(by_weight("ADD").unwrap_err().contains("ADD of blk.3.ffn_gate_exps.weight"));
}

/// What `named_modules()` lists of the families that are run here, as transformers 4 and 5 name them: each is a stage, or is said why not.
#[test]
fn every_module_of_transformers_is_known() {
    let attention = ["q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"].map(|m| format!("self_attn.{m}"));
    let dense = ["gate_proj", "up_proj", "down_proj"].map(|m| format!("mlp.{m}"));
    let around = [
        "",
        "0",
        "input_layernorm",
        "self_attn",
        "self_attn.0",
        "self_attn.1",
        "post_attention_layernorm",
        "mlp",
        "mlp.0",
    ];
    let sparse = [
        "mlp.1",
        "mlp.gate",
        "mlp.gate.0",
        "mlp.gate.1",
        "mlp.gate.2",
        "mlp.experts",
        "block_sparse_moe",
        "block_sparse_moe.0",
        "block_sparse_moe.1",
        "block_sparse_moe.gate",
        "block_sparse_moe.experts",
    ];
    let none = [
        "mlp.act_fn",
        "mlp.experts.act_fn",
        "self_attn.rotary_emb",
        "mlp.experts.0",
        "mlp.experts.11.act_fn",
        "block_sparse_moe.experts.0.w2",
    ];
    let sizes = ModelSizes { moe: Some(true), leading_dense: Some(0), ..ModelSizes::default() };
    let read = |label: &str| Name::of(label).readings(NodeKind::default(), &sizes);
    for module in attention.iter().chain(&dense).map(String::as_str).chain(around).chain(sparse) {
        let label = if module.is_empty() { "model.layers.7".to_string() } else { format!("model.layers.7.{module}") };
        let found = read(&label).unwrap_or_else(|why| panic!("{label}: {why}"));
        assert!(found.iter().all(|r| r.site.layer == Some(7)), "{label}");
    }
    for label in ["model.embed_tokens", "model.norm", "model", "lm_head"] {
        assert!(read(label).is_ok(), "{label}");
    }
    for module in none {
        let why = read(&format!("model.layers.7.{module}")).unwrap_err();
        assert!(!why.contains("no stage is called"), "{module}: {why}");
    }
}

#[test]
fn rules_that_cannot_be_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rules.json");
    let refused = |rules: &str| {
        std::fs::write(&path, format!(r#"{{"schema": "twinscope.rules/1", "rules": [{rules}]}}"#)).unwrap();
        Rules::open(&path).err().unwrap().to_string()
    };
    for (rule, what) in [
        (r#"{"match": "(", "stage": "logits"}"#, "unclosed group"),
        (r#"{"match": "x", "stage": "logitz"}"#, "no stage is called `logitz`; the nearest: logits"),
        (r#"{"match": "x"}"#, "either `stage` or `ignore`"),
        (r#"{"match": "x", "stage": "logits", "ignore": "y"}"#, "either `stage` or `ignore`"),
        (r#"{"match": "x", "stage": "q_proj"}"#, "a group in `match` that is the layer"),
        (r#"{"match": "(x)", "stage": ["k_proj", "v_proj"], "split": [1]}"#, "`split` of 2 widths expected, found 1"),
        (r#"{"match": "(x)", "stage": "q_proj", "axes": [0, 2]}"#, "`axes` with each of 0 to 1 expected"),
        (r#"{"match": "(x)", "stage": "q_proj", "scale": 1e999}"#, "rules.json"),
        (r#"{"match": "(x)", "stage": "q_proj", "sclae": 1}"#, "unknown field `sclae`"),
        (r#"{"match": "(a{1000}){1000}{1000}", "stage": "q_proj"}"#, "size limit"),
    ] {
        let found = refused(rule);
        assert!(found.contains(what), "{rule}: {found}");
    }
    std::fs::write(&path, "[]").unwrap();
    assert!(Rules::open(&path).is_err());
    std::fs::write(&path, vec![b' '; 2 << 20]).unwrap();
    assert!(Rules::open(&path).err().unwrap().to_string().contains("1048576 bytes"));
}

/// With biases, transformers' projections are what their modules give, and llama.cpp's additions have a name that says nothing.
#[test]
fn projections_with_biases() {
    let sizes = ModelSizes {
        qkv_bias: Some(true),
        heads: Some(4),
        kv_heads: Some(2),
        head_dim: Some(16),
        ..ModelSizes::default()
    };
    let key = |label: &str, made: NodeKind<'_>| {
        let readings = Name::of(label).readings(made, &sizes)?;
        Ok::<_, String>(readings.iter().map(|r| r.site.key()).collect::<Vec<_>>().join(" "))
    };
    let nothing = NodeKind::default();
    assert_eq!(key("model.layers.2.self_attn.q_proj", nothing).unwrap(), "layers.2.q_bias");
    let all = "layers.2.q_bias layers.2.k_bias layers.2.v_bias";
    assert_eq!(key("model.layers.2.self_attn.qkv_proj", nothing).unwrap(), all);
    let made = |op| NodeKind { op, inputs: &[] };
    assert_eq!(key("Vcur-2", made("MUL_MAT")).unwrap(), "layers.2.v_proj");
    assert_eq!(key("Vcur-2", made("ADD")).unwrap(), "layers.2.v_bias");
    assert_eq!(key("Kcur-2", made("ROPE")).unwrap(), "layers.2.k_rope");
    let inputs = ["node_7".to_string(), "blk.3.attn_q.bias".to_string()];
    assert_eq!(key("node_8", NodeKind { op: "ADD", inputs: &inputs }).unwrap(), "layers.3.q_bias");
}

/// Of Gemma 3: llama.cpp scales the rows of the table of embeddings, and queries before their products with keys.
#[test]
fn names_of_gemma3() {
    let sizes = ModelSizes {
        scaled_embedding: true,
        scaled_queries: true,
        post_norms: true,
        head_dim: Some(16),
        ..ModelSizes::default()
    };
    let one = |label: &str| {
        let readings = Name::of(label).readings(NodeKind::default(), &sizes)?;
        assert_eq!(readings.len(), 1, "{label}");
        Ok::<_, String>((readings[0].site.key(), readings[0].scale))
    };
    for (label, stage) in [
        ("inp_scaled.0", "embedding"),
        ("kq-2.0", "layers.2.attn_scores"),
        ("ffn_geglu-2.0", "layers.2.ffn_act"),
        ("sa_out-2.0", "layers.2.attn_residual"),
        ("attn_post_norm-2.0", "layers.2.attn_post_norm"),
    ] {
        assert_eq!(one(label), Ok((stage.to_string(), None)), "{label}");
    }
    assert!(one("embd.0").unwrap_err().contains("inp_scaled"));
}

/// Of gpt-oss: llama.cpp's names of biases, of the norm before the FFN and of what attention adds; and a router whose module gives one thing or
/// another.
#[test]
fn names_of_gpt_oss() {
    let sizes = ModelSizes {
        qkv_bias: Some(true),
        biases: Some(true),
        logits_choose: Some(true),
        moe: Some(true),
        ..ModelSizes::default()
    };
    let key = |label: &str, made: NodeKind<'_>| {
        let readings = Name::of(label).readings(made, &sizes)?;
        Ok::<_, String>(readings.iter().map(|r| r.site.key()).collect::<Vec<_>>().join(" "))
    };
    let nothing = NodeKind::default();
    for (label, stage) in [
        ("attn_post_norm-2", "ffn_norm"),
        ("attn_out-2", "attn_out_bias"),
        ("layers.2.attn_out", "attn_out"),
        ("ffn_moe_logits-2", "router_logits"),
        ("ffn_moe_logits_biased-2", "router_bias"),
        ("ffn_moe_probs-2", "router_bias"),
        ("ffn_moe_weights_softmax-2", "router_weights"),
        ("ffn_moe_gate_biased-2", "expert_gate_bias"),
        ("ffn_moe_swiglu_oai-2", "expert_act"),
        ("ffn_moe_down_biased-2", "expert_down_bias"),
        ("model.layers.2.self_attn.o_proj", "attn_out_bias"),
        ("model.layers.2.mlp.experts", "moe_out"),
    ] {
        assert_eq!(key(label, nothing).unwrap(), format!("layers.2.{stage}"), "{label}");
    }
    for (label, why) in [
        ("ffn_moe_weights-2", "logits before their softmax"),
        ("model.layers.2.mlp.router", "a rule says which"),
        ("model.layers.2.mlp.1", "a rule says which"),
    ] {
        let e = key(label, nothing).unwrap_err();
        assert!(e.contains(why), "{label}: {e}");
    }
    let inputs = ["ffn_moe_gate-2".to_string(), "blk.2.ffn_gate_exps.bias".into(), "ffn_moe_topk-2".into()];
    assert_eq!(key("node_9", NodeKind { op: "ADD_ID", inputs: &inputs }).unwrap(), "layers.2.expert_gate_bias");
}

/// Of GLM: a router whose probabilities and choice are two, a first layer without experts, a shared expert without a gate, and weights that
/// are scaled after they are divided by their sum.
#[test]
fn names_of_glm4moe() {
    let sizes = ModelSizes {
        moe: Some(true),
        qkv_bias: Some(true),
        leading_dense: Some(1),
        shared: Some(true),
        shared_gate: Some(false),
        weights_scaled: Some(true),
        ..ModelSizes::default()
    };
    let key = |label: &str, sizes: &ModelSizes| {
        let readings = Name::of(label).readings(NodeKind::default(), sizes)?;
        Ok::<_, String>(readings.iter().map(|r| r.site.key()).collect::<Vec<_>>().join(" "))
    };
    for (label, stage) in [
        ("post_attn_norm-2", "ffn_norm"),
        ("ffn_moe_probs-2", "router_probs"),
        ("ffn_moe_probs_biased-2", "router_choice"),
        ("ffn_moe_weights_scaled-2", "router_weights"),
        ("ffn_moe_out-2", "moe_out"),
        ("ffn_shexp_out-2", "shared_down"),
        ("ffn_out-2", "moe_sum"),
        ("ffn_gate-2", "shared_gate"),
        ("ffn_up-2", "shared_up"),
        ("ffn_swiglu-2", "shared_act"),
        ("ffn_out-0", "ffn_out"),
        ("ffn_gate-0", "ffn_gate"),
        ("model.layers.2.mlp", "moe_sum"),
        ("model.layers.0.mlp", "ffn_out"),
        ("model.layers.2.mlp.shared_experts", "shared_down"),
        ("model.layers.2.mlp.shared_experts.up_proj", "shared_up"),
        ("model.layers.2.self_attn.q_proj", "q_bias"),
    ] {
        let layer = if label.contains('0') { 0 } else { 2 };
        assert_eq!(key(label, &sizes).unwrap(), format!("layers.{layer}.{stage}"), "{label}");
    }
    let e = key("ffn_moe_weights_norm-2", &sizes).unwrap_err();
    assert!(e.contains("before they are scaled"), "{e}");
    let unscaled = ModelSizes { weights_scaled: Some(false), ..sizes };
    assert_eq!(key("ffn_moe_weights_norm-2", &unscaled).unwrap(), "layers.2.router_weights");
    let unknown = ModelSizes { leading_dense: None, ..sizes };
    for label in ["ffn_out-0", "model.layers.0.mlp"] {
        assert!(key(label, &unknown).unwrap_err().contains("whether the layer has experts"), "{label}");
    }
    let gated = ModelSizes { shared_gate: Some(true), ..sizes };
    assert_eq!(key("ffn_shexp_out-2", &gated).unwrap(), "layers.2.shared_out");
}

/// Of latent attention: one name for every step towards q, and names of q and k for what is stored and read of latents.
#[test]
fn names_of_deepseek2() {
    let absorbed = ModelSizes {
        latent: Some(Mla::Absorbed),
        q_rank: Some(true),
        latent_scale: Some(0.25),
        head_dim: Some(48),
        moe: Some(true),
        leading_dense: Some(1),
        shared: Some(true),
        shared_gate: Some(false),
        weights_scaled: Some(true),
        ..ModelSizes::default()
    };
    let plain = ModelSizes { latent: Some(Mla::Plain), q_rank: Some(false), latent_scale: None, ..absorbed };
    let read = |label: &str, sizes: &ModelSizes| Name::of(label).readings(NodeKind::default(), sizes);
    let key = |label: &str, sizes: &ModelSizes| Ok::<_, String>(read(label, sizes)?[0].site.key());
    for (label, sizes, stage) in [
        ("kv_cmpr_pe-2.0", &absorbed, "kv_a"),
        ("q-2.0", &absorbed, "q_a"),
        ("q-2.1", &absorbed, "q_a_norm"),
        ("q-2.2", &absorbed, "q_proj"),
        ("q-2.0", &plain, "q_proj"),
        ("Qcur-2.0", &absorbed, "q_absorbed"),
        ("Qcur-2.0", &plain, "q_rope"),
        ("Kcur-2", &absorbed, "k_rope"),
        ("Kcur-2", &plain, "k_up"),
        ("Vcur_cont-2.0", &plain, "v_up"),
        ("kq-2.0", &absorbed, "attn_scores"),
        ("kq_soft_max-2.0", &absorbed, "attn_probs"),
        ("kqv-2.0", &absorbed, "attn_latent"),
        ("__fattn__-2", &absorbed, "attn_latent"),
        ("__fattn__-2", &plain, "attn_context"),
        ("kqv_out-2.0", &absorbed, "attn_context"),
        ("fattn_mla-2.0", &absorbed, "attn_context"),
        ("ffn_moe_topk-2.0", &absorbed, "router_ids"),
        ("ffn_moe_weights_scaled-2.0", &absorbed, "router_weights"),
        ("ffn_shexp-2.0", &absorbed, "shared_down"),
        ("ffn_out-2.0", &absorbed, "moe_sum"),
        ("model.layers.2.self_attn.q_a_proj", &absorbed, "q_a"),
        ("model.layers.2.self_attn.q_a_layernorm", &absorbed, "q_a_norm"),
        ("model.layers.2.self_attn.q_b_proj", &absorbed, "q_proj"),
        ("model.layers.2.self_attn.kv_a_proj_with_mqa", &absorbed, "kv_a"),
        ("model.layers.2.mlp.shared_experts", &absorbed, "shared_down"),
    ] {
        assert_eq!(key(label, sizes).as_deref(), Ok(&*format!("layers.2.{stage}")), "{label}");
    }
    for (label, sizes, why) in [
        ("q-2.3", &absorbed, "with heads apart"),
        ("q-2.1", &plain, "with heads apart"),
        ("q-2", &absorbed, "could be q_a, q_a_norm or q_proj"),
        ("q-2.0", &ModelSizes::default(), "could be q_a, q_a_norm or q_proj"),
        ("kv_cmpr-2.1", &absorbed, "columns of kv_norm"),
        ("Vcur-2", &absorbed, "columns of kv_norm"),
        ("k_pe-2.1", &absorbed, "columns of k_rope"),
        ("q_pe-2.1", &absorbed, "of q_rope"),
        ("q_nope_absorbed-2.0", &absorbed, "of q_absorbed"),
        ("kqv_mla-2.0", &absorbed, "the values of kqv_out"),
        ("v_cont-2.0", &absorbed, "a row for all positions"),
        ("kqv-2.0", &plain, "the values of kqv_out"),
        ("kv-2.0", &plain, "a key without what turns"),
        ("ffn_moe_probs_masked-2.0", &absorbed, "of other groups"),
        ("model.layers.2.self_attn.kv_a_layernorm", &absorbed, "columns of kv_norm"),
        ("model.layers.2.self_attn.kv_b_proj", &absorbed, "a key without what turns"),
    ] {
        let found = key(label, sizes).unwrap_err();
        assert!(found.contains(why), "{label}: {found}");
    }
    // What a node reads says what it is, whatever is known of the model.
    for (op, weight, stage) in [
        ("MUL_MAT", "blk.2.attn_q_a.weight", "q_a"),
        ("MUL", "blk.2.attn_q_a_norm.weight", "q_a_norm"),
        ("MUL_MAT", "blk.2.attn_q_b.weight", "q_proj"),
        ("MUL_MAT", "blk.2.attn_q.weight", "q_proj"),
    ] {
        let made = NodeKind { op, inputs: &[weight.to_string(), "attn_norm-2".into()] };
        let found = Name::of("q-2").readings(made, &ModelSizes::default()).unwrap();
        assert_eq!(found[0].site.key(), format!("layers.2.{stage}"), "{op} {weight}");
    }
    // Scores are multiplied by what the model says, else by 1/sqrt(D); the weighted sums of latents have their heads outermost.
    assert_eq!(read("kq-2.0", &absorbed).unwrap()[0].scale, Some(0.25));
    assert_eq!(read("kq-2.0", &plain).unwrap()[0].scale, Some(1.0 / 48f64.sqrt()));
    for label in ["kqv-2.0", "fattn_mla-2.0"] {
        assert_eq!(read(label, &absorbed).unwrap()[0].axes, Some(vec![1, 0, 2]), "{label}");
    }
}
