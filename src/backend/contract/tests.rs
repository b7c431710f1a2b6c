use super::*;
use crate::op::OpKind;

#[test]
fn every_name_is_a_contract_that_can_be_one_and_says_what_it_is() {
    for name in names() {
        let contract = named(name).unwrap_or_else(|| panic!("{name}"));
        assert_eq!(contract.name, *name);
        assert_eq!(contract.ops.len(), OpKind::ALL.len());
        for (op, of) in &contract.ops {
            of.check().unwrap_or_else(|e| panic!("{name} {op:?}: {e}"));
        }
        println!("{contract}\n    mat_mul: {}", contract.get(OpKind::MatMul));
    }
    assert_eq!(named("llama.cpp"), None);
    assert_eq!(named("f32+fa"), None, "an option of llama.cpp's");
    assert_eq!(named("llama.cpp-cpu+kv=q4_0"), None);
}

#[test]
fn options_say_what_the_cache_is_kept_in() {
    let f16 = named("llama.cpp-cpu").unwrap();
    let q8_0 = named("llama.cpp-cpu+fa+kv=q8_0").unwrap();
    assert_eq!(f16.get(OpKind::AttnScores).cache, Precision::F16);
    assert_eq!(q8_0.get(OpKind::AttnScores).cache, Precision::Q8_0);
    assert_eq!(q8_0.get(OpKind::AttnContext).activations, Precision::F32);
    assert_eq!(named("llama.cpp-cpu+fa").unwrap().get(OpKind::AttnContext).accumulator, Precision::F16);
    assert_eq!(f16.get(OpKind::MatMul), q8_0.get(OpKind::MatMul));
}

#[test]
fn a_contract_says_itself_in_one_line() {
    let llama = named("llama.cpp-cpu").unwrap();
    let scores = Contract { activations: Precision::Q8_K, ..*llama.get(OpKind::AttnScores) };
    let text = "int8 activations in blocks of 256 (Q8_K), f32 sums in any order, f16 KV cache";
    assert_eq!(scores.to_string(), text);
}

#[test]
fn a_contract_of_an_older_trace_is_still_one() {
    let old = r#"{"activations":"f32","accumulator":"f32","order":{"blocked":{"block":32}},"unit_roundoff":5.960464477539063e-8,
        "exp_base_ulp":1.0,"exp_slope_ulp":0.0,"div_ulp":0.5,"rsqrt_ulp":1.0}"#;
    assert_eq!(serde_json::from_str::<Contract>(old).unwrap(), Contract::ieee_f32(Order::Blocked { block: 32 }));
}

#[test]
fn candidates_go_from_f32_to_what_is_weaker_and_are_told_apart_by_their_words() {
    for op in OpKind::ALL {
        let all = candidates(*op);
        assert_eq!(all[0].1, *named("f32").unwrap().get(*op));
        let mut words: Vec<&str> = all.iter().map(|(text, _)| &**text).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), all.len(), "{op:?}: {all:#?}");
    }
}
