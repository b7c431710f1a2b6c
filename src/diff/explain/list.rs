//! The list. A row is a hypothesis: its id, what the mistake is, the operations that it is about, and the function that gives its variants.
//!
//! Where several reproduce an output and are equally simple, the first in the list is named first: so what says why stands before
//! what only says what. NaN comes first: whatever else gives nothing but NaN cannot be told from it.

use super::{Hypothesis, attention, linear, norm, pointwise, precision, rope, routing, weights, whole};
use crate::op::OpKind;

const PRODUCT: &[OpKind] = &[OpKind::MatMul, OpKind::ExpertMatMul];
const READS_WEIGHT: &[OpKind] = &[OpKind::Embed, OpKind::MatMul, OpKind::ExpertMatMul];
const ATTENTION: &[OpKind] = &[OpKind::AttnScores, OpKind::AttnProbs, OpKind::AttnContext];
const READS_CACHE: &[OpKind] = &[OpKind::AttnScores, OpKind::AttnContext];
/// Products of two operands, or of one and a weight.
const PRODUCTS: &[OpKind] = &[OpKind::MatMul, OpKind::ExpertMatMul, OpKind::AttnScores, OpKind::AttnContext];

/// Every operation that makes a stage.
pub(super) const ANY: &[OpKind] = &[
    OpKind::Embed,
    OpKind::RmsNorm,
    OpKind::MatMul,
    OpKind::Bias,
    OpKind::Rope,
    OpKind::AttnScores,
    OpKind::AttnProbs,
    OpKind::AttnContext,
    OpKind::Add,
    OpKind::RouterProbs,
    OpKind::RouterTopK,
    OpKind::RouterWeights,
    OpKind::ExpertMatMul,
    OpKind::SwiGlu,
    OpKind::Combine,
];

macro_rules! list {
    ($($id:literal $description:literal $ops:expr, $module:ident::$variants:ident;)*) => {
        pub(super) static HYPOTHESES: &[Hypothesis] = &[$(Hypothesis {
            id: $id, description: $description, ops: $ops, variants: $module::$variants,
        }),*];
    };
}

list! {
    "not-finite"          "NaN or infinity whatever the inputs"                                         ANY, whole::not_finite;

    "rope-pairing"        "NORM pairing (2i with 2i + 1) for NEOX (i with i + D/2), or the reverse"     &[OpKind::Rope], rope::other_pairing;
    "rope-base"           "another base: those that models use, and the one that fits the angles"       &[OpKind::Rope], rope::other_base;
    "rope-first-head"     "only head 0 rotated"                                                         &[OpKind::Rope], rope::first_head_only;
    "rope-missing"        "no rotation"                                                                 &[OpKind::Rope], rope::not_applied;
    "rope-twice"          "rotated twice"                                                               &[OpKind::Rope], rope::twice;
    "rope-direction"      "rotated the other way"                                                       &[OpKind::Rope], rope::backwards;
    "rope-position"       "positions off by a few, counted from the call's first, or all the same"      &[OpKind::Rope], rope::positions;
    "rope-exponent"       "exponents made of another width than the head's"                             &[OpKind::Rope], rope::exponents;
    "rope-scaling"        "a linear scaling or frequency factors left out, turned over, or made up"     &[OpKind::Rope], rope::scaling;

    "bias"                "a bias left out, added twice, subtracted, or another's"                      &[OpKind::Bias], pointwise::bias;

    "norm-missing"        "no normalisation: the input, or the input times the weight"                  &[OpKind::RmsNorm], norm::missing;
    "norm-eps"            "another eps: those that models use, and the one that fits"                   &[OpKind::RmsNorm], norm::other_eps;
    "norm-weight"         "the weight left out, applied twice, or with 1 added"                         &[OpKind::RmsNorm], norm::without_weight;
    "norm-other-weight"   "another norm's weight"                                                       &[OpKind::RmsNorm], norm::other_weight;
    "norm-mean"           "LayerNorm: the mean subtracted"                                              &[OpKind::RmsNorm], norm::layer_norm;
    "norm-divisor"        "a mean of squares over another number of values"                             &[OpKind::RmsNorm], norm::divisor;
    "norm-group"          "one norm for the whole row where each head has its own, or the reverse"      &[OpKind::RmsNorm], norm::groups;

    "expert-offset"       "another expert's weights: off by n, by slot, one for all"                    &[OpKind::ExpertMatMul], linear::expert_offset;
    "other-weight"        "another tensor of the same shape: gate for up, the layer beside"             PRODUCT, linear::other_weight;
    "weight-type"         "the weight's bytes read as another type"                                     READS_WEIGHT, weights::other_type;
    "weight-transposed"   "the weight read by columns"                                                  READS_WEIGHT, weights::transposed;
    "weight-row"          "another row's weights"                                                       PRODUCT, weights::other_row;
    "scale-neighbour"     "scales read from the sub-block or block beside"                              READS_WEIGHT, weights::neighbours_scale;
    "scale-one"           "one sub-block's scale wrong: zero, doubled, halved, negated, a neighbour's"  READS_WEIGHT, weights::one_scale;
    "scale-minimum"       "sub-block minimums left out, added, or a neighbour's"                        READS_WEIGHT, weights::minimums;
    "scale-bits"          "sub-block scales without their high bits, offset or sign, or the block's"    READS_WEIGHT, weights::scale_bits;
    "weight-codes"        "codes without their high bits or offset, or nibbles in another order"        READS_WEIGHT, weights::codes;
    "other-input"         "another stage's value, or the input before its norm"                         PRODUCT, linear::other_input;
    "input-row"           "another row's or slot's input"                                               PRODUCT, linear::other_row;
    "k-skipped"           "the end or the start of each sum left out; K as summed is searched"          PRODUCT, linear::k_skipped;
    "k-twice"             "the end of each sum counted twice"                                           PRODUCT, linear::k_twice;
    "lanes"               "a reduction that adds up only some of its lanes (another subgroup size)"     PRODUCT, linear::lanes;
    "embedding-row"       "another token's row"                                                         &[OpKind::Embed], weights::other_token;

    "kv-head"             "another KV head (or probabilities) for a query head"                         READS_CACHE, attention::kv_head;
    "kv-cache"            "cache rows stale, empty, shifted, or this call's not written"                READS_CACHE, attention::cache;
    "mask"                "a mask off by one or more keys, from the call's first, or none"              ATTENTION, attention::mask;
    "attention-scale"     "no scale 1/√D, applied twice, or of another width"                           ATTENTION, attention::scale;
    "attention-operand"   "q, k or v from before their norm or rope, or one for another"                READS_CACHE, attention::other_operand;
    "attention-softmax"   "a softmax without division, without subtracting the largest, or none"        &[OpKind::AttnProbs], attention::softmax_kind;

    "router-softmax"      "a softmax over the chosen experts, a sigmoid, no division, or none"          &[OpKind::RouterProbs], routing::probs;
    "router-ties"         "ties to the higher expert id"                                                &[OpKind::RouterTopK], routing::ties;
    "router-order"        "the chosen experts in another order"                                         &[OpKind::RouterTopK], routing::order;
    "router-choice"       "other experts: the least, the best twice, one never taken, another row's"    &[OpKind::RouterTopK], routing::other_choice;
    "renormalisation"     "missing, misplaced, by a softmax over the chosen, by another divisor"        &[OpKind::RouterWeights], routing::renormalisation;
    "weight-order"        "weights in other slots than their experts, or equal"                         &[OpKind::RouterWeights], routing::weight_order;
    "combine"             "expert weights left out, in other slots, before renormalisation; one expert" &[OpKind::Combine], routing::combine;

    "gate-up"             "gate and up swapped, or one of them left out"                                &[OpKind::SwiGlu], pointwise::gate_and_up;
    "activation"          "gelu, relu, sigmoid or nothing for silu"                                     &[OpKind::SwiGlu], pointwise::other_activation;
    "residual"            "a residual dropped, added twice, or another stream's"                        &[OpKind::Add], pointwise::residual;

    "int8-activations"    "inputs as int8 with one scale a block (Q8_0, Q8_K)"                          PRODUCT, precision::int8;
    "input-precision"     "inputs or weights rounded to f16 or bf16"                                    PRODUCTS, precision::inputs;
    "output-precision"    "the result rounded to f16 or bf16"                                           ANY, precision::output;
    "sum-precision"       "sums in f16 or bf16"                              PRODUCT, precision::sums;

    "zero"                "zeros: nothing written"                                                      ANY, whole::zero;
    "misplaced"           "right values in other rows, columns or heads; written by columns"            ANY, whole::misplaced;
    "factor"              "the right values times one number, or with the sign flipped"                 ANY, whole::factor;
    "offset"              "the right values plus one number"                                            ANY, whole::offset;
}
