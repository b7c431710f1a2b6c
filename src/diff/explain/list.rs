//! The list. A row is a hypothesis: its id, what the mistake is, the operations that it is about, and the function that gives its variants.
//!
//! A row also says where the code that has the mistake would confine it, and how much less than others it is to be expected, in bits: what
//! says why costs nothing, what only says what a little; where exactly 0 comes out, that nothing was written is the plainest of all. Of those that reproduce an output and assume as little, the first in the list is
//! named first. NaN comes first: whatever else gives nothing but NaN cannot be told from it.

use super::{
    Hypothesis, attention, bytes, delta, heads as by_heads, linear, linear_attention, norm, pointwise, precision,
    range, reduction, rope, routing, stride, tokens, weights, whole, wrapped,
};
use crate::diff::locate::Axis::{self, *};
use crate::op::OpKind;

const PRODUCT: &[OpKind] = &[OpKind::MatMul, OpKind::ExpertMatMul];
/// And by heads, which read a part of each.
const ANY_PRODUCT: &[OpKind] = &[OpKind::MatMul, OpKind::ExpertMatMul, OpKind::HeadMatMul];
const READS_WEIGHT: &[OpKind] = &[OpKind::Embed, OpKind::MatMul, OpKind::ExpertMatMul, OpKind::HeadMatMul];
const ATTENTION: &[OpKind] = &[OpKind::AttnScores, OpKind::AttnProbs, OpKind::AttnContext];
const READS_CACHE: &[OpKind] = &[OpKind::AttnScores, OpKind::AttnContext];
/// What reads rows of heads, or of gate and up.
const STRIDED: &[OpKind] = &[OpKind::RmsNorm, OpKind::Rope, OpKind::AttnScores, OpKind::AttnContext, OpKind::SwiGlu];
/// Sums of products of two operands, or of one and a weight, and of exponentials.
const SUMS: &[OpKind] = &[
    OpKind::MatMul,
    OpKind::ExpertMatMul,
    OpKind::HeadMatMul,
    OpKind::AttnScores,
    OpKind::AttnContext,
    OpKind::AttnProbs,
    OpKind::RouterProbs,
];

/// Every operation that makes a stage.
pub(super) const ANY: &[OpKind] = &[
    OpKind::Embed,
    OpKind::RmsNorm,
    OpKind::MatMul,
    OpKind::HeadMatMul,
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
    OpKind::ExpertBias,
    OpKind::SwiGlu,
    OpKind::SigmoidGate,
    OpKind::Conv,
    OpKind::L2Norm,
    OpKind::Decay,
    OpKind::DeltaRule,
    OpKind::Combine,
];

/// Operations that add up terms of one run of values.
const REDUCTIONS: &[OpKind] = &[
    OpKind::MatMul,
    OpKind::ExpertMatMul,
    OpKind::HeadMatMul,
    OpKind::RmsNorm,
    OpKind::AttnScores,
    OpKind::AttnProbs,
    OpKind::AttnContext,
    OpKind::RouterProbs,
];
/// What rounds its operands alone.
const ROUNDS: &[OpKind] = &[
    OpKind::MatMul,
    OpKind::ExpertMatMul,
    OpKind::HeadMatMul,
    OpKind::AttnScores,
    OpKind::AttnContext,
    OpKind::RmsNorm,
    OpKind::Rope,
    OpKind::AttnProbs,
    OpKind::RouterProbs,
    OpKind::SwiGlu,
    OpKind::SigmoidGate,
    OpKind::Combine,
    OpKind::Add,
];

/// What any kernel can do to a part of what it writes.
fn anywhere(_: OpKind) -> &'static [Axis] {
    &[Expert, Head, Position, Slot, WithinHead, Column, Key]
}
/// What is the same along a row: positions may run in other kernels, or tiles of them.
fn rows(_: OpKind) -> &'static [Axis] {
    &[Position]
}
/// The same of experts' rows: what a kernel does to all that it writes.
fn slots(_: OpKind) -> &'static [Axis] {
    &[Position, Expert, Slot]
}
/// A head is a row of its own.
fn heads(_: OpKind) -> &'static [Axis] {
    &[Position, Head]
}
/// Kernels make tiles of columns, and read rows of weights; a head is some of them.
fn tiles(_: OpKind) -> &'static [Axis] {
    &[Position, Expert, Slot, Head, WithinHead, Column]
}
/// Whatever reads the weight reads it so.
fn experts(_: OpKind) -> &'static [Axis] {
    &[Expert]
}
/// Elements that a thread makes by itself.
fn elements(_: OpKind) -> &'static [Axis] {
    &[Position, Column]
}
/// A sum: where all of a row share it, it is wrong for all of the row.
fn sums(op: OpKind) -> &'static [Axis] {
    match op {
        OpKind::RmsNorm | OpKind::AttnProbs | OpKind::RouterProbs => heads(op),
        _ => tiles(op),
    }
}

/// How much less than a mistake of one's own a number before the right values is to be expected, in bits.
pub(super) const FACTOR: f64 = 4.0;

macro_rules! list {
    ($($id:literal $description:literal $ops:expr, $places:expr, $bits:expr, $module:ident::$variants:ident;)*) => {
        pub(super) static HYPOTHESES: &[Hypothesis] = &[$(Hypothesis {
            id: $id, description: $description, ops: $ops, places: $places, bits: $bits as f64, variants: $module::$variants,
        }),*];
    };
}

list! {
    "overflow" "a square, a sum or a value beyond the range of f32 or f16" ANY, slots, -22, range::overflow;
    "not-finite" "NaN or infinity whatever the inputs" ANY, anywhere, -20, whole::not_finite;

    "rope-pairing" "NORM pairing (2i with 2i + 1) for NEOX (i with i + D/2), or the reverse" &[OpKind::Rope], heads, 0, rope::other_pairing;
    "rope-base" "another base: those that models use, and the one that fits the angles" &[OpKind::Rope], heads, 0, rope::other_base;
    "rope-first-head" "only head 0 rotated" &[OpKind::Rope], heads, 0, rope::first_head_only;
    "rope-missing" "no rotation" &[OpKind::Rope], |_| &[Position, Head, WithinHead], 0, rope::not_applied;
    "rope-twice" "rotated twice" &[OpKind::Rope], heads, 0, rope::twice;
    "rope-part" "rope on all of a head where a part of it turns, on another part, or with another's pairs or exponents" &[OpKind::Rope], heads, 0, rope::other_part;
    "rope-direction" "rotated the other way" &[OpKind::Rope], heads, 0, rope::backwards;
    "rope-position" "positions off by a few, counted from the call's first, or all the same" &[OpKind::Rope], heads, 0, rope::positions;
    "rope-exponent" "exponents made of another width than the head's" &[OpKind::Rope], heads, 0, rope::exponents;
    "rope-table" "positions modulo a number, or none past a table's end" &[OpKind::Rope], heads, 0, wrapped::rope_positions;
    "rope-precision" "positions, frequencies, angles, sines in f32, f16 or bf16" &[OpKind::Rope], heads, 0, rope::precision;
    "rope-scaling" "a linear scaling, YaRN or frequency factors left out, turned over, or made up" &[OpKind::Rope], heads, 0, rope::scaling;

    "bias" "a bias left out, added twice, subtracted, or another's" &[OpKind::Bias, OpKind::ExpertBias], tiles, 0, pointwise::bias;
    "expert-bias" "another expert's bias: off by some, by slot, one for all" &[OpKind::ExpertBias], tiles, 0, pointwise::expert_bias;

    "norm-missing" "no normalisation: the input, or the input times the weight" &[OpKind::RmsNorm], tiles, 0, norm::missing;
    "norm-eps" "another eps: those that models use, and the one that fits" &[OpKind::RmsNorm], heads, 0, norm::other_eps;
    "norm-weight" "the weight left out, applied twice, or with 1 added or taken away" &[OpKind::RmsNorm], tiles, 0, norm::without_weight;
    "norm-other-weight" "another norm's weight" &[OpKind::RmsNorm], tiles, 0, norm::other_weight;
    "norm-mean" "LayerNorm: the mean subtracted" &[OpKind::RmsNorm], heads, 0, norm::layer_norm;
    "norm-divisor" "a mean of squares over another number of values" &[OpKind::RmsNorm], heads, 0, norm::divisor;
    "norm-group" "one norm for the whole row where each head has its own, or a part is not normalised, or the reverse" &[OpKind::RmsNorm], heads, 0, norm::groups;

    "kv-head" "another KV head (or probabilities) for a query head" READS_CACHE, rows, 0, attention::kv_head;
    "kv-cache" "cache rows stale, empty, shifted, or this call's not written" READS_CACHE, heads, 0, attention::cache;
    "mask" "a mask off by one or more keys, from the call's first, or none" ATTENTION, rows, 0, attention::mask;
    "window" "a sliding window: only the last keys seen, of another width, or none where there is one" ATTENTION, rows, 0, attention::window;
    "attention-scale" "no scale 1/√D, applied twice, of another width, or with another part of YaRN's magnitude" ATTENTION, rows, 0, attention::scale;
    "attention-operand" "q, k or v from before their norm or rope, or one for another" READS_CACHE, heads, 0, attention::other_operand;
    "attention-sink" "sinks left out, of another head or layer, scaled, or added without the largest score taken from them" &[OpKind::AttnProbs], heads, 0, attention::sinks;
    "attention-softmax" "a softmax without division, without subtracting the largest or with one not below some number, or none" &[OpKind::AttnProbs], heads, 0, attention::softmax_kind;
    "softmax-sum" "something added to the softmax's sum" &[OpKind::AttnProbs, OpKind::RouterProbs], heads, 0, attention::softmax_sum;

    "conv-kernel" "a convolution's kernel reversed, a position early or late, with weights missing, or another's" &[OpKind::Conv], elements, 0, linear_attention::kernel;
    "conv-state" "rows of earlier calls that a convolution finds empty, shifted or in reverse" &[OpKind::Conv], rows, 0, linear_attention::conv_state;
    "conv-activation" "a convolution without its silu, or with another activation" &[OpKind::Conv], elements, 0, linear_attention::conv_activation;
    "l2-norm" "no L2 norm, an RMS norm, another eps, over other values, or of others" &[OpKind::L2Norm], heads, 0, linear_attention::l2_norm;
    "decay" "a decay's logarithm without softplus, without its bias, or with another weight" &[OpKind::Decay], elements, 0, linear_attention::decay;
    "delta-heads" "another head's keys, queries, values or gates in a delta rule" &[OpKind::DeltaRule], rows, 0, delta::heads;
    "delta-decay" "a state without its decay, or decayed at another time" &[OpKind::DeltaRule], heads, 0, delta::decay;
    "delta-beta" "a delta rule without beta, with it on one term, or without its correction" &[OpKind::DeltaRule], heads, 0, delta::beta;
    "delta-state" "a state that begins anew, is read before its update, or is read by rows" &[OpKind::DeltaRule], heads, 0, delta::state;
    "delta-scale" "a delta rule's output without the scale 1/√D, or with it twice" &[OpKind::DeltaRule], heads, 0, delta::scale;
    "delta-operand" "queries, keys or values of the position before, before their norm, or one for another" &[OpKind::DeltaRule], heads, 0, delta::operand;

    "head-matrix" "another head's matrix or columns in a product by heads, rows that heads take in turn, or keys' and values' rows as two wholes" &[OpKind::HeadMatMul], tiles, 0, by_heads::other_head;
    "head-kept" "the columns that a product by heads keeps in front of the others, of another head, or zeros" &[OpKind::HeadMatMul], tiles, 0, by_heads::kept;

    "expert-offset" "another expert's weights: off by n, by slot, one for all or for one" &[OpKind::ExpertMatMul], tiles, 0, linear::expert_offset;
    "scale-tensor" "the scale beside a weight left out, applied twice, divided by, another expert's or another weight's" PRODUCT, tiles, 0, linear::scale_tensor;
    "other-weight" "another tensor of the same shape: gate for up, the layer beside" ANY_PRODUCT, tiles, 0, linear::other_weight;
    "joint-rows" "a weight that holds several projections taken apart by other rows: halves, turns, groups of heads" PRODUCT, tiles, 0, stride::joint_rows;
    "row-stride" "rows read at the stride of another head count, or of a tensor that holds several operands" STRIDED, rows, 0, stride::other_rows;
    "weight-type" "the weight's bytes read as another type" READS_WEIGHT, tiles, 0, bytes::other_type;
    "weight-transposed" "the weight read by columns" READS_WEIGHT, tiles, 0, weights::transposed;
    "weight-row" "another row's weights" ANY_PRODUCT, tiles, 0, weights::other_row;
    "row-order" "rows of q, k and v of another head, or in the order of the other rope's pairs; a router's of another expert" &[OpKind::MatMul], tiles, 0, weights::row_order;
    "scale-neighbour" "scales read from the sub-block or block beside" READS_WEIGHT, tiles, 0, weights::neighbours_scale;
    "scale-one" "one sub-block's scale wrong, in every row or in one: zero, doubled, halved, negated, a neighbour's, times a number" READS_WEIGHT, tiles, 0, weights::one_scale;
    "scale-minimum" "sub-block minimums left out, added, or a neighbour's" READS_WEIGHT, tiles, 0, weights::minimums;
    "scale-bits" "sub-block scales without their high bits, offset or sign, or the block's" READS_WEIGHT, tiles, 0, weights::scale_bits;
    "scale-subnormal" "scales that are subnormal halves read as 0" READS_WEIGHT, experts, 0, bytes::subnormal;
    "weight-codes" "codes without their high bits or offset, nibbles in another order, or rows interleaved by another width" READS_WEIGHT, tiles, 0, weights::codes;
    "weight-words" "packed words through a float buffer: those that are NaN come back as another NaN" READS_WEIGHT, tiles, 0, bytes::canonical_nan;
    "other-input" "another stage's value, or the input before its norm" ANY_PRODUCT, tiles, 0, linear::other_input;
    "input-row" "another row's or slot's input" PRODUCT, tiles, 0, linear::other_row;
    "k-skipped" "the end or the start of each sum left out; the terms as summed are searched" REDUCTIONS, sums, 0, reduction::skipped;
    "k-twice" "the end of each sum counted twice" REDUCTIONS, sums, 0, reduction::twice;
    "k-past" "each sum runs on into what lies behind its row" PRODUCT, tiles, 0, linear::k_past;
    "lanes" "a reduction that adds up only some of its lanes (another subgroup size)" REDUCTIONS, sums, 0, reduction::lanes;
    "embedding-scale" "an embedding without its scale √H, with H, with it twice, or with it rounded to bf16 or f16" &[OpKind::Embed], rows, 0, pointwise::embedding_scale;
    "embedding-row" "another token's row, or one at a distance that is looked up" &[OpKind::Embed], rows, 0, tokens::others;
    "wrapped" "rows, offsets or tokens modulo a number, or none past a table's end" &[OpKind::Embed, OpKind::MatMul, OpKind::ExpertMatMul, OpKind::AttnScores, OpKind::AttnContext, OpKind::Combine], tiles, 0, wrapped::operands;

    "router-softmax" "a softmax over the chosen experts, a sigmoid for a softmax or the reverse, no division, or none" &[OpKind::RouterProbs], rows, 0, routing::probs;
    "router-ties" "ties to the higher expert id, dropped, or in no order" &[OpKind::RouterTopK], rows, 0, routing::ties;
    "router-order" "the chosen experts in another order" &[OpKind::RouterTopK], rows, 0, routing::order;
    "router-groups" "groups of experts left out, kept by another score, more or fewer of them, or others masked by 0 for −∞" &[OpKind::RouterTopK], rows, 0, routing::groups;
    "router-choice" "other experts: the least, the best twice, one never taken, another row's" &[OpKind::RouterTopK], rows, 1, routing::other_choice;
    "renormalisation" "missing, misplaced, in some slots, by a softmax over the chosen, by another divisor" &[OpKind::RouterWeights], rows, 0, routing::renormalisation;
    "weights-scale" "the number that weights are multiplied by left out, applied twice, or divided by" &[OpKind::RouterWeights], rows, 0, routing::scale;
    "choice-bias" "the bias of the choice in the weights, on the logits, or not in the choice" &[OpKind::RouterProbs, OpKind::Bias, OpKind::RouterTopK, OpKind::RouterWeights], rows, 0, routing::choice_bias;
    "weight-order" "weights in other slots than their experts, or equal" &[OpKind::RouterWeights], rows, 0, routing::weight_order;
    "combine" "expert weights left out, in other slots, before renormalisation; one expert" &[OpKind::Combine], elements, 0, routing::combine;

    "gate-up" "gate and up swapped, or one of them left out" &[OpKind::SwiGlu], tiles, 0, pointwise::gate_and_up;
    "clamp" "limits of gate or up left out, others or another's, 1 not added to up, another factor under the sigmoid" &[OpKind::SwiGlu], slots, 0, pointwise::clamps;
    "activation" "another of silu, gelu by tanh, gelu by erf, relu and sigmoid, or nothing" &[OpKind::SwiGlu], slots, 0, pointwise::other_activation;
    "gate-place" "the output's gate of another head or position" &[OpKind::SwiGlu], heads, 0, linear_attention::gate_place;
    "head-bias" "the bias of another head, or of a head's dimensions in the order of the other rope's pairs" &[OpKind::Bias], rows, 0, by_heads::head_bias;
    "shared-gate" "a shared expert without its gate, without the sigmoid, or with another position's" &[OpKind::SigmoidGate], rows, 0, pointwise::shared_gate;
    "residual" "a residual dropped, added twice, or another stream's" &[OpKind::Add], elements, 0, pointwise::residual;

    "int8-activations" "inputs as int8 with one scale a block (Q8_0, Q8_K)" ANY_PRODUCT, tiles, 0, precision::int8;
    "input-precision" "operands rounded to f16 or bf16, each alone or all, to nearest or cut off" ROUNDS, sums, 0, precision::inputs;
    "output-precision" "the result rounded to f16 or bf16" ANY, anywhere, 0, precision::output;
    "sum-precision" "sums in f16 or bf16, and exponentials of a softmax" SUMS, sums, 0, precision::sums;

    "zero" "zeros: nothing written" ANY, anywhere, -3, whole::zero;
    "misplaced" "right values in other rows, columns or heads; written by columns" ANY, anywhere, 2, whole::misplaced;
    "factor" "the right values times one number, or with the sign flipped" ANY, anywhere, FACTOR, whole::factor;
    "offset" "the right values plus one number" ANY, anywhere, 4, whole::offset;
}
