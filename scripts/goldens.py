#!/usr/bin/env python3
"""Writes tests/families: for each family a tiny random model as GGUF, and every stage of one prompt in float64; two small tokenizers, and
what they make of some texts.

    python3 -m venv venv && venv/bin/pip install numpy safetensors gguf sentencepiece regex
    venv/bin/python scripts/goldens.py tests/families

The stages are computed here in numpy, from the definitions that transformers has (modeling_llama.py, modeling_mixtral.py,
modeling_qwen2.py, modeling_qwen3.py, modeling_ministral3.py, modeling_qwen2_moe.py,
modeling_olmoe.py, modeling_gemma3.py, modeling_gpt_oss.py, modeling_glm4_moe.py, modeling_qwen3_next.py, modeling_qwen3_5_moe.py,
modeling_qwen3_5.py, modeling_deepseek_v2.py, modeling_deepseek_v3.py), on weights in transformers' order that gguf-py dequantized;
nothing is taken from the program that is tested. What
llama.cpp's converter does to q and k of `llama` (`permute`) is done on the way into the file and undone on the way out, so rope is
transformers' `rotate_half` for every family, whatever GGUF stores, but for DeepSeek's, which turns neighbours in transformers, too. So it
is with the value heads of linear attention, which the
converter reorders for `qwen35` and `qwen35moe` (`tiled`), with the joint rows of `qwen3next`, which it takes apart, and with
`kv_b_proj` of latent attention, whose rows it takes apart and transposes those that make keys. The stages are
in the file's order: what an engine has that multiplies by the file's weights. Keys with a default in llama.cpp are left out where a
family allows it.

The tokenizers are in goldens_tokens.py.
"""

import json
import sys
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter, quants
from goldens_tokens import byte_level, sentence_piece, write
from safetensors.numpy import save_file

H, LAYERS, HEADS, D, V = 64, 2, 4, 16, 96
# Families whose q and k the converter reorders.
PERMUTED = ("llama", "mistral3")
TOKENS = [5, 17, 93, 17, 60, 0, 88]

# What differs between the families.
FAMILIES = {
    # The base is the default, linear scaling has a factor and no type, and there are 2 KV heads.
    "llama": dict(arch="llama", kv_heads=2, ffn=96, scale=4.0, seed=1),
    # Tied, Llama 3's frequency factors, as many KV heads as heads and no key for them.
    "llama3": dict(arch="llama", kv_heads=4, ffn=96, base=5e5, tied=True, factors=True, seed=2),
    "mixtral": dict(arch="llama", kv_heads=2, ffn=64, base=1e6, experts=4, used=2, seed=3),
    "qwen2": dict(arch="qwen2", kv_heads=2, ffn=96, base=1e6, tied=True, bias=True, seed=4),
    # Qwen 3 for 128K positions: YaRN with the defaults of its betas, heads of q and k normalised.
    "qwen3-yarn": dict(arch="qwen3", kv_heads=2, ffn=96, qk_norm=True, context=16384, yarn=dict(factor=4.0, context=4096), seed=5),
    # YaRN whose magnitude two keys make 1, betas of its own, and a temperature that does nothing within the original context.
    "mistral3": dict(arch="mistral3", kv_heads=2, ffn=96, base=1e6, context=16384, temperature=0.1,
                     yarn=dict(factor=4.0, context=4096, beta_fast=64.0, beta_slow=2.0, log_multiplier=1.0), seed=6),
    # Weights of the chosen experts as they are, and a shared expert behind a sigmoid gate.
    "qwen2moe": dict(arch="qwen2moe", kv_heads=2, ffn=64, expert_ffn=32, shared=64, base=1e6, bias=True, experts=4, used=2, plain=True,
                     seed=7),
    # q and k normalised over their whole rows; `feed_forward_length` is that of one expert.
    "olmoe": dict(arch="olmoe", kv_heads=4, ffn=32, qk_norm="row", experts=8, used=3, plain=True, seed=8),
    # Layers 0 and 2 see 4 keys and turn by the base of theirs; the scale of q·k is another than 1/√D; 7 positions go beyond the window.
    "gemma3": dict(arch="gemma3", kv_heads=2, ffn=96, base=1e6, scale=8.0, tied=True, qk_norm=True, gemma=True, window=4, period=2, local=1e4,
                   attention=0.2, layers=3, seed=9),
    # Sinks, biases everywhere, a window of 4 keys in layer 0 with the rotation of the other, experts in MXFP4 whose gate and up are
    # beyond their limits in places.
    "gpt-oss": dict(arch="gpt-oss", kv_heads=2, ffn=32, expert_ffn=32, base=1.5e5, bias=True, experts=4, used=2, oss=True, window=4, period=2,
                    context=131072, yarn=dict(factor=32.0, context=4096, truncate=False), tokens=6, seed=10),
    # A plain FFN in layer 0, experts chosen by sigmoids and a bias, weights times 2.5, a shared expert without a gate, rope on half of each
    # head, and a layer that guesses further tokens.
    "glm4moe": dict(arch="glm4moe", kv_heads=2, ffn=96, expert_ffn=32, plain_shared=1, base=1e6, bias=True, qk_norm=True, experts=8, used=3,
                    turned=8, leading=1, sigmoid=True, weights_scale=2.5, predicting=1, layers=3, seed=11),
    # Linear attention in layer 0 with 3 value heads for each key head, whose rows of b and a are one weight; attention in layer 1 with a
    # gate in the rows of q, and rope on half of each head. The shared expert is wider than the others.
    "qwen3next": dict(arch="qwen3next", kv_heads=2, ffn=96, expert_ffn=32, shared=64, base=1e7, qk_norm=True, experts=4, used=2, turned=8,
                      eps=1e-6, linear=dict(keys=2, values=6, state=16, kernel=4, interval=2), layers=2, seed=12),
    # The same with value heads in another order, no `feed_forward_length`, rope of sections, and a layer that guesses further tokens: it
    # has attention, though by its number it would have none.
    "qwen35moe": dict(arch="qwen35moe", kv_heads=2, expert_ffn=32, shared=64, base=1e7, qk_norm=True, experts=4, used=2, turned=8, eps=1e-6,
                      sections=[2, 1, 1, 0], linear=dict(keys=2, values=6, state=16, kernel=4, interval=2), predicting=1, layers=2, seed=13),
    # Linear attention before and after a layer of attention, as an array says, with heads that are wider than those of attention, and
    # plain FFNs.
    "qwen35": dict(arch="qwen35", kv_heads=2, ffn=96, tied=True, qk_norm=True, turned=8, eps=1e-6, sections=[2, 1, 1, 0],
                   linear=dict(keys=2, values=4, state=32, kernel=4, recurrent=[True, False, True]), layers=3, seed=14),
    # Latent attention as today's converter writes it, with one KV head and q absorbed by what would make keys; q has a rank, too; YaRN that
    # is in the scale of q·k and not in the rotation. Experts in 4 groups, of which the 2 with the largest sum of two are chosen from.
    "deepseek3": dict(arch="deepseek2", kv_heads=1, ffn=96, expert_ffn=32, plain_shared=1, base=1e4, experts=12, used=3, groups=(4, 2),
                      leading=1, sigmoid=True, weights_scale=2.5, turned=16, eps=1e-6, context=16384,
                      yarn=dict(factor=4.0, context=4096, beta_fast=32.0, beta_slow=1.0, log_multiplier=0.1),
                      latent=dict(rank=64, q_rank=64, nope=32, values=32, absorbed=True), seed=15),
    # The same as converters wrote it before, with the weight that makes keys and values, and no rank of q. Experts chosen by a softmax from
    # the 2 groups of the largest expert, their weights as they are, and two shared experts.
    "deepseek2": dict(arch="deepseek2", kv_heads=4, ffn=96, expert_ffn=32, plain_shared=2, experts=12, used=4, groups=(4, 2), plain=True,
                      turned=16, eps=1e-6, latent=dict(rank=32, nope=32, values=32, absorbed=False), seed=23),
}
# Families whose value heads of linear attention the converter reorders.
TILED = ("qwen35moe", "qwen35")


def prompt(family):
    return TOKENS[:FAMILIES[family].get("tokens", len(TOKENS))]


def permute(w, heads):
    """llama.cpp's `LlamaModel.permute`: rows (i, i + D/2) of each head become (2i, 2i + 1)."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def unpermute(w, heads):
    return w.reshape(heads, w.shape[0] // heads // 2, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def ffn_norm(f):
    """What the file calls the norm before the FFN."""
    named_after_attention = f.get("oss") or f["arch"] == "glm4moe" or "linear" in f
    return "post_attention_norm.weight" if named_after_attention else "ffn_norm.weight"


def is_linear(family, n):
    """configuration_qwen3_next.py: where `layer_types` has linear attention; layers that guess further tokens have none."""
    f = FAMILIES[family]
    if "linear" not in f or n >= f["layers"]:
        return False
    recurrent = f["linear"].get("recurrent")
    return recurrent[n] if recurrent else (n + 1) % f["linear"]["interval"] != 0


def tiled(x, keys, values):
    """llama.cpp's `_reorder_v_heads`, on axis 0: of value heads the first of each key head, the second of each, …"""
    return x.reshape(keys, values // keys, x.shape[0] // values, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)


def untiled(x, keys, values):
    return tiled(x, values // keys, values)


def llama3_factors(base):
    """What a converter writes for rope_type llama3 with factor 8, low and high frequency factors 1 and 4, and 64 positions."""
    factor, low, high, context = 8.0, 1.0, 4.0, 64.0
    wave = 2 * np.pi * base ** (np.arange(0, D, 2) / D)
    smooth = (context / wave - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    return np.where(wave < context / high, 1.0, np.where(wave > context / low, factor, between))


def build(path, family):
    """Writes the model, and returns its weights as float64 in transformers' order."""
    f = FAMILIES[family]
    rng = np.random.default_rng(f["seed"])
    arch, kv = f["arch"], f["kv_heads"]
    out = GGUFWriter(path, arch)
    out.add_name(f"{family}, random")
    for key, value in [("block_count", f.get("layers", LAYERS) + f.get("predicting", 0)), ("context_length", f.get("context", 64)), ("embedding_length", H),
                       ("feed_forward_length", f.get("ffn")), ("attention.head_count", HEADS)]:
        if value is not None:
            out.add_uint32(f"{arch}.{key}", value)
    out.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", f.get("eps", 1e-5))
    if kv != HEADS:
        out.add_uint32(f"{arch}.attention.head_count_kv", kv)
    if "base" in f:
        out.add_float32(f"{arch}.rope.freq_base", f["base"])
    if "scale" in f:
        out.add_float32(f"{arch}.rope.scaling.factor", f["scale"])
    if "yarn" in f:
        y = f["yarn"]
        out.add_string(f"{arch}.rope.scaling.type", "yarn")
        out.add_float32(f"{arch}.rope.scaling.factor", y["factor"])
        out.add_uint32(f"{arch}.rope.scaling.original_context_length", y["context"])
        for key in ("beta_fast", "beta_slow", "log_multiplier"):
            if key in y:
                out.add_float32(f"{arch}.rope.scaling.yarn_{key}", y[key])
    if "window" in f:
        out.add_uint32(f"{arch}.attention.sliding_window", f["window"])
        if not f.get("oss"):  # whose pattern is the definition's
            out.add_uint32(f"{arch}.attention.sliding_window_pattern", f["period"])
            out.add_float32(f"{arch}.attention.scale", f["attention"])
    if "temperature" in f:
        out.add_float32(f"{arch}.attention.temperature_scale", f["temperature"])
    if "experts" in f:
        out.add_uint32(f"{arch}.expert_count", f["experts"])
        out.add_uint32(f"{arch}.expert_used_count", f["used"])
    if "expert_ffn" in f:
        out.add_uint32(f"{arch}.expert_feed_forward_length", f["expert_ffn"])
    if "latent" in f:
        # As a cache of latents has them, and then, of today's files, as heads have them: what makes keys is absorbed by q there.
        a = f["latent"]
        heads, one = (a["nope"] + f["turned"], a["values"]), (a["rank"] + f["turned"], a["rank"])
        for key, value in zip(("key_length", "value_length"), one if a["absorbed"] else heads):
            out.add_uint32(f"{arch}.attention.{key}", value)
        for key, value in zip(("key_length_mla", "value_length_mla"), heads if a["absorbed"] else ()):
            out.add_uint32(f"{arch}.attention.{key}", value)
        for key, value in [("attention.kv_lora_rank", a["rank"]), ("attention.q_lora_rank", a.get("q_rank")), ("rope.dimension_count", f["turned"]),
                           ("vocab_size", V), ("expert_shared_count", f["plain_shared"]), ("leading_dense_block_count", f.get("leading")),
                           ("expert_group_count", f["groups"][0]), ("expert_group_used_count", f["groups"][1]),
                           ("expert_gating_func", 2 if f.get("sigmoid") else None)]:
            if value is not None:
                out.add_uint32(f"{arch}.{key}", value)
    elif f.get("sigmoid"):
        for key, value in [("attention.key_length", D), ("attention.value_length", D), ("rope.dimension_count", f["turned"]),
                           ("expert_shared_count", f["plain_shared"]), ("leading_dense_block_count", f["leading"]), ("expert_gating_func", 2),
                           ("expert_group_count", 1), ("expert_group_used_count", 1), ("nextn_predict_layers", f["predicting"])]:
            out.add_uint32(f"{arch}.{key}", value)
    if f.get("sigmoid"):
        out.add_float32(f"{arch}.expert_weights_scale", f["weights_scale"])
        out.add_bool(f"{arch}.expert_weights_norm", True)
    if "shared" in f:
        out.add_uint32(f"{arch}.expert_shared_feed_forward_length", f["shared"])
    if "linear" in f:
        l = f["linear"]
        for key, value in [("attention.key_length", D), ("attention.value_length", D), ("rope.dimension_count", f["turned"]),
                           ("ssm.conv_kernel", l["kernel"]), ("ssm.state_size", l["state"]), ("ssm.group_count", l["keys"]),
                           ("ssm.time_step_rank", l["values"]), ("ssm.inner_size", l["values"] * l["state"])]:
            out.add_uint32(f"{arch}.{key}", value)
        if "recurrent" in l:
            out.add_array(f"{arch}.attention.recurrent_layers", l["recurrent"])
        else:
            out.add_uint32(f"{arch}.full_attention_interval", l["interval"])
        if "sections" in f:
            out.add_array(f"{arch}.rope.dimension_sections", f["sections"])
        if "predicting" in f:
            out.add_uint32(f"{arch}.nextn_predict_layers", f["predicting"])
    weights = {}

    def tensor(name, values, ty=Type.F32, heads=None):
        """Stores values of transformers' order, and keeps what the file says of them."""
        stored = permute(values, heads) if heads else values
        data = quants.quantize(stored.astype(np.float32), ty)
        out.add_tensor(name, data, raw_dtype=ty)
        read = quants.dequantize(data, ty).astype(np.float64)
        weights[name] = unpermute(read, heads) if heads else read

    def matrix(name, *shape, ty=Type.Q8_0, gain=1.0, heads=None):
        tensor(name, rng.normal(size=shape) * gain / np.sqrt(shape[-1]), ty, heads)

    def norm(name, width=H):
        if "linear" in f:
            # transformers adds 1 to these weights in float32: what it adds is of few bits, as in its bf16 files, so that nothing is rounded.
            tensor(name, 1 + np.round(0.5 * rng.normal(size=width) * 128) / 128)
        else:
            tensor(name, 1 + 0.2 * rng.normal(size=width))

    def of_values(name, values, ty=Type.F32, first=0, axis=0):
        """Stores values whose axis `axis` counts value heads from `first` on, as the converter does, and keeps them in transformers' order."""
        def ordered(x, order):
            if arch not in TILED:
                return x
            x = np.moveaxis(x, axis, 0)
            return np.moveaxis(np.concatenate([x[:first], order(x[first:], l["keys"], l["values"])]), 0, axis)
        tensor(name, ordered(values, tiled), ty)
        weights[name] = ordered(weights[name], untiled)

    def linear_attention(b):
        """modeling_qwen3_next.py, `Qwen3NextGatedDeltaNet`, and modeling_qwen3_5.py, `Qwen3_5GatedDeltaNet`."""
        keys, values, state = l["keys"], l["values"], l["state"]
        each = values // keys
        drawn = lambda rows, cols, gain=1.0: rng.normal(size=(rows, cols)) * gain / np.sqrt(cols)
        if arch == "qwen3next":
            # `in_proj_qkvz` has the rows of each key head together, q, k, v and z; the converter takes them apart. It leaves
            # `in_proj_ba`, whose rows of each key head are b and a of its value heads, as it is.
            joint = drawn(2 * (keys + values) * state, H, 2).reshape(keys, 2 * (1 + each) * state, H)
            parts = np.split(joint, np.cumsum([state, state, each * state]), axis=1)
            q, k, v, z = (part.reshape(-1, H) for part in parts)
            tensor(b + "attn_qkv.weight", np.concatenate([q, k, v]), Type.Q8_0)
            tensor(b + "attn_gate.weight", z, Type.Q8_0)
            read = [*np.split(weights[b + "attn_qkv.weight"], [keys * state, 2 * keys * state]), weights[b + "attn_gate.weight"]]
            weights[b + "in_proj_qkvz"] = np.concatenate([part.reshape(keys, -1, H) for part in read], axis=1).reshape(-1, H)
            matrix(b + "ssm_ba.weight", 2 * values, H)
        else:
            of_values(b + "attn_qkv.weight", drawn((2 * keys + values) * state, H, 2), Type.Q8_0, first=2 * keys * state)
            of_values(b + "attn_gate.weight", drawn(values * state, H, 2), Type.Q8_0)
            of_values(b + "ssm_beta.weight", drawn(values, H), Type.Q8_0)
            of_values(b + "ssm_alpha.weight", drawn(values, H), Type.Q8_0)
        of_values(b + "ssm_conv1d.weight", drawn((2 * keys + values) * state, l["kernel"]), first=2 * keys * state)
        # A between 0.01 and 16 as transformers draws it, and a bias with which exp(-A · softplus(a + bias)) is neither 0 nor 1 everywhere.
        of_values(b + "ssm_dt.bias", rng.normal(size=values) - 2.5)
        of_values(b + "ssm_a", -rng.uniform(0.01, 16, size=values))
        norm(b + "ssm_norm.weight", state)
        of_values(b + "ssm_out.weight", drawn(H, values * state), Type.Q8_0, axis=1)

    def latent_attention(b):
        """modeling_deepseek_v3.py, `DeepseekV3Attention`; of `kv_b_proj` the rows of each head together, those of its key first."""
        a = f["latent"]
        rank, nope, values, turned = a["rank"], a["nope"], a["values"], f["turned"]
        if "q_rank" in a:
            matrix(b + "attn_q_a.weight", a["q_rank"], H)
            norm(b + "attn_q_a_norm.weight", a["q_rank"])
            matrix(b + "attn_q_b.weight", HEADS * (nope + turned), a["q_rank"], gain=2)
        else:
            matrix(b + "attn_q.weight", HEADS * (nope + turned), H, gain=2)
        matrix(b + "attn_kv_a_mqa.weight", rank + turned, H, gain=2)
        norm(b + "attn_kv_a_norm.weight", rank)
        if a["absorbed"]:
            tensor(b + "attn_k_b.weight", rng.normal(size=(HEADS, rank, nope)) / np.sqrt(rank), Type.Q8_0)
            matrix(b + "attn_v_b.weight", HEADS, values, rank, ty=Type.Q5_0)
            k, v = weights[b + "attn_k_b.weight"].transpose(0, 2, 1), weights[b + "attn_v_b.weight"]
            weights[b + "kv_b_proj"] = np.concatenate([k, v], axis=1).reshape(-1, rank)
        else:
            matrix(b + "attn_kv_b.weight", HEADS * (nope + values), rank)
            weights[b + "kv_b_proj"] = weights[b + "attn_kv_b.weight"]
        matrix(b + "attn_output.weight", H, HEADS * values)

    turned = (HEADS, kv) if arch in PERMUTED else (None, None)
    # Gemma multiplies it by √H.
    matrix("token_embd.weight", V, H, gain=1.0 if f.get("gemma") else np.sqrt(H), ty=Type.F16)
    norm("output_norm.weight")
    if not f.get("tied"):
        matrix("output.weight", V, H, gain=2)
    if f.get("factors"):
        tensor("rope_freqs.weight", llama3_factors(f["base"]))
    for n in range(f.get("layers", LAYERS) + f.get("predicting", 0)):
        b = f"blk.{n}."
        norm(b + "attn_norm.weight")
        if is_linear(family, n):
            linear_attention(b)
        elif "latent" in f:
            latent_attention(b)
        else:
            # modeling_qwen3_next.py, `Qwen3NextAttention`: rows of each head are D of q and then D of its gate.
            matrix(b + "attn_q.weight", HEADS * D * (2 if "linear" in f else 1), H, gain=2, heads=turned[0])
            matrix(b + "attn_k.weight", kv * D, H, gain=2, heads=turned[1])
            matrix(b + "attn_v.weight", kv * D, H)
            if f.get("bias"):
                for part, heads in (("q", HEADS), ("k", kv), ("v", kv)):
                    tensor(f"{b}attn_{part}.bias", rng.normal(size=heads * D))
            if f.get("qk_norm"):
                row = f["qk_norm"] == "row"
                norm(b + "attn_q_norm.weight", HEADS * D if row else D)
                norm(b + "attn_k_norm.weight", kv * D if row else D)
            matrix(b + "attn_output.weight", H, HEADS * D)
        norm(b + ffn_norm(f))
        if n >= f.get("layers", LAYERS):
            matrix(b + "nextn.eh_proj.weight", H, 2 * H)
            for part in ("enorm", "hnorm", "shared_head_norm"):
                norm(b + f"nextn.{part}.weight")
        if f.get("oss"):
            tensor(b + "attn_sinks.weight", 2 * rng.normal(size=HEADS))
            tensor(b + "attn_output.bias", 0.5 * rng.normal(size=H))
        if f.get("gemma"):
            norm(b + "post_attention_norm.weight")
            norm(b + "post_ffw_norm.weight")
        if "experts" in f and n >= f.get("leading", 0):
            e, width = f["experts"], f.get("expert_ffn", f.get("ffn"))
            matrix(b + "ffn_gate_inp.weight", e, H, ty=Type.F32, gain=2)
            ty, inward = (Type.MXFP4, 4.0) if f.get("oss") else (Type.Q8_0, 1.0)
            matrix(b + "ffn_gate_exps.weight", e, width, H, ty=ty, gain=inward)
            matrix(b + "ffn_up_exps.weight", e, width, H, ty=ty, gain=inward)
            matrix(b + "ffn_down_exps.weight", e, H, width, ty=ty, gain=1 / inward)
            if f.get("oss"):
                tensor(b + "ffn_gate_inp.bias", rng.normal(size=e))
                tensor(b + "ffn_gate_exps.bias", rng.normal(size=(e, width)))
                tensor(b + "ffn_up_exps.bias", rng.normal(size=(e, width)))
                tensor(b + "ffn_down_exps.bias", rng.normal(size=(e, H)))
            if f.get("sigmoid"):
                tensor(b + "exp_probs_b.bias", 0.2 * rng.normal(size=e))
            if "plain_shared" in f:
                matrix(b + "ffn_gate_shexp.weight", width * f["plain_shared"], H)
                matrix(b + "ffn_up_shexp.weight", width * f["plain_shared"], H)
                matrix(b + "ffn_down_shexp.weight", H, width * f["plain_shared"])
            if "shared" in f:
                matrix(b + "ffn_gate_inp_shexp.weight", H, ty=Type.F32)
                matrix(b + "ffn_gate_shexp.weight", f["shared"], H)
                matrix(b + "ffn_up_shexp.weight", f["shared"], H)
                matrix(b + "ffn_down_shexp.weight", H, f["shared"])
        else:
            matrix(b + "ffn_gate.weight", f["ffn"], H)
            matrix(b + "ffn_up.weight", f["ffn"], H)
            matrix(b + "ffn_down.weight", H, f["ffn"])
    write(out)
    return weights


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x / (1 + np.exp(-x))


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x ** 3)))


def clamped_swiglu(gate, up, alpha=1.702, limit=7.0):
    """modeling_gpt_oss.py, `GptOssExperts`."""
    gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
    return (up + 1) * gate / (1 + np.exp(-alpha * gate))


def rms_norm(x, weight, eps=1e-5):
    eps = np.float64(np.float32(eps))
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight


def l2_norm(x, eps):
    """modeling_qwen3_next.py, `l2norm`, whose eps is 1e-6: the rounded one of the file is within 3e-8 of it."""
    return x / np.sqrt((x * x).sum(axis=-1, keepdims=True) + np.float64(np.float32(eps)))


def delta_rule(q, k, v, decay, beta):
    """modeling_qwen3_next.py, `torch_recurrent_gated_delta_rule`: q and k [T, keys, D], v [T, values, D], decay and beta [T, values]."""
    each = v.shape[1] // k.shape[1]
    q, k = np.repeat(q, each, axis=1) / np.sqrt(q.shape[-1]), np.repeat(k, each, axis=1)
    state, out = np.zeros((v.shape[1], k.shape[-1], v.shape[-1])), np.zeros_like(v)
    for t in range(len(v)):
        state = state * np.exp(decay[t])[:, None, None]
        delta = (v[t] - (state * k[t][:, :, None]).sum(axis=1)) * beta[t][:, None]
        state = state + k[t][:, :, None] * delta[:, None, :]
        out[t] = (state * q[t][:, :, None]).sum(axis=1)
    return out


def yarn_mscale(factor, m):
    """modeling_deepseek_v3.py, `yarn_get_mscale`."""
    return 0.1 * m * np.log(factor) + 1


def mscale_all_dim(f):
    """Of latent attention the file has a tenth of it, for which llama.cpp's converter gives its history as the reason. Divided in f32, as
    llama.cpp does, what was written is there again."""
    return np.float64(np.float32(f["yarn"]["log_multiplier"]) / np.float32(0.1))


def yarn(f, inv_freq):
    """modeling_rope_utils.py, `_compute_yarn_parameters`: the frequencies, and what cosines and sines are multiplied by."""
    y, base, turned = f["yarn"], np.float64(np.float32(f.get("base", 1e4))), 2 * len(inv_freq)
    mscale = lambda m: yarn_mscale(y["factor"], m)
    attention_factor = mscale(1) / mscale(y["log_multiplier"]) if "log_multiplier" in y else mscale(1)
    if "latent" in f:  # DeepSeek's files have `mscale` as large as `mscale_all_dim`
        attention_factor = 1.0
    dim = lambda rotations: turned * np.log(y["context"] / (rotations * 2 * np.pi)) / (2 * np.log(base))
    low, high = dim(y.get("beta_fast", 32)), dim(y.get("beta_slow", 1))
    if y.get("truncate", True):
        low, high = np.floor(low), np.ceil(high)
    low, high = max(low, 0), min(high, turned - 1)
    extrapolation = 1 - np.clip((np.arange(turned // 2) - low) / (high - low), 0, 1)
    return inv_freq / y["factor"] * (1 - extrapolation) + inv_freq * extrapolation, attention_factor


def rotate_half(x):
    half = x.shape[-1] // 2
    return np.concatenate([-x[..., half:], x[..., :half]], axis=-1)


def rotated(x, cos, sin):
    """modeling_glm4_moe.py, `apply_rotary_pos_emb`: what cosines there are for turns, the rest of a head passes."""
    turned = cos.shape[-1]
    x, passed = x[..., :turned], x[..., turned:]
    return np.concatenate([x * cos + rotate_half(x) * sin, passed], axis=-1)


def chosen(choice, k, groups, softmax):
    """The k experts of each token, the largest first. modeling_deepseek_v3.py, `DeepseekV3TopkRouter`, and modeling_deepseek_v2.py: of
    the groups of experts only some are chosen from, those of the largest sum of two experts, or of the largest expert."""
    largest = lambda x, k: np.argsort(-x, axis=-1, kind="stable")[..., :k]
    if groups is None:
        return largest(choice, k)

    def within(score):
        by_group = choice.reshape(len(choice), groups[0], -1)
        kept = np.zeros(by_group.shape[:2], bool)
        np.put_along_axis(kept, largest(score(np.sort(by_group, axis=-1)), groups[1]), True, axis=-1)
        return largest(np.where(kept[..., None], by_group, -np.inf).reshape(choice.shape), k)

    one, two = within(lambda x: x[..., -1]), within(lambda x: x[..., -2:].sum(axis=-1))
    ids = one if softmax else two
    # Without the groups, or by the other's score, or by the sum of all, it would be others.
    every = within(lambda x: x.sum(axis=-1))
    assert all((np.sort(ids) != np.sort(other)).any() for other in (largest(choice, k), two if softmax else one, every))
    return ids


def run(family, w):
    """Every stage of one prompt: the names and the order of values that a GGUF engine has."""
    f = FAMILIES[family]
    tokens = prompt(family)
    kv, group, t = f["kv_heads"], HEADS // f["kv_heads"], len(tokens)
    stages = {}
    # modeling_rope_utils.py: `default`, `linear` (inv_freq / factor) and, by way of the factors in the file, `llama3`.
    activation = gelu_tanh if f.get("gemma") else silu
    turned = f.get("turned", D)  # modeling_glm4_moe.py: head_dim · partial_rotary_factor
    inv_freq = 1.0 / np.float64(np.float32(f.get("base", 1e4))) ** (np.arange(0, turned, 2) / turned)
    inv_freq = inv_freq / f.get("scale", 1.0) / w.get("rope_freqs.weight", 1.0)
    inv_freq, stretch = yarn(f, inv_freq) if "yarn" in f else (inv_freq, 1.0)

    def turns(inv_freq):
        angles = np.outer(np.arange(t), inv_freq)
        return [np.concatenate([fn(angles), fn(angles)], axis=-1)[:, None, :] * stretch for fn in (np.cos, np.sin)]

    # modeling_qwen3_5.py, `Qwen3_5TextRotaryEmbedding`: the positions of the sections differ for images only.
    everywhere = turns(inv_freq)
    eps = f.get("eps", 1e-5)
    joint = "linear" in f  # q and its gate have one weight
    # modeling_gemma3.py: layers with a window have `rope_local_base_freq`, unscaled.
    local = turns(1.0 / f["local"] ** (np.arange(0, D, 2) / D)) if "local" in f else everywhere

    def stored(values, heads):
        """[T, heads·D] of transformers' order in the order of the file."""
        if f["arch"] not in PERMUTED:
            return values
        return permute(values.T, heads).T

    def linear_attention(h, keep, weight):
        """modeling_qwen3_next.py, `Qwen3NextGatedDeltaNet.forward`, and modeling_qwen3_5.py, in transformers' order of value heads."""
        l = f["linear"]
        keys, values, state, kernel = l["keys"], l["values"], l["state"], l["kernel"]
        each, first = values // keys, 2 * keys * state

        def kept(name, x, first=0):
            """Keeps values whose columns from `first` on are those of value heads, in the order of the file."""
            x = x.reshape(t, -1)
            if f["arch"] in TILED:
                x = np.concatenate([x[:, :first], tiled(x[:, first:].T, keys, values).T], axis=1)
            keep("linear_attn_" + name, x)

        if f["arch"] == "qwen3next":
            # `fix_query_key_value_ordering`
            parts = np.split((h @ weight("in_proj_qkvz").T).reshape(t, keys, -1), np.cumsum([state, state, each * state]), axis=2)
            q, k, v, z = (x.reshape(t, -1) for x in parts)
            qkv = np.concatenate([q, k, v], axis=1)
            b, a = (x.reshape(t, -1) for x in np.split((h @ weight("ssm_ba.weight").T).reshape(t, keys, -1), [each], axis=2))
        else:
            qkv, z, b, a = (h @ weight(f"{part}.weight").T for part in ("attn_qkv", "attn_gate", "ssm_beta", "ssm_alpha"))
        kept("qkv", qkv, first), kept("z", z), kept("b", b), kept("a", a)
        # `causal_conv1d_fn`: a sum of the last rows for each channel, with rows of 0 before the first.
        padded = np.concatenate([np.zeros((kernel - 1, qkv.shape[1])), qkv])
        mixed = silu(sum(padded[j:j + t] * weight("ssm_conv1d.weight")[:, j] for j in range(kernel)))
        kept("conv", mixed, first)
        q, k, v = (x.reshape(t, -1, state) for x in np.split(mixed, [keys * state, first], axis=1))
        q, k, beta = l2_norm(q, eps), l2_norm(k, eps), sigmoid(b)
        keep("linear_attn_q", q.reshape(t, -1)), keep("linear_attn_k", k.reshape(t, -1)), kept("beta", beta)
        dt = a + weight("ssm_dt.bias")
        decay = weight("ssm_a") * np.log1p(np.exp(dt))  # the file has -exp(A_log)
        kept("dt", dt), kept("decay", decay)
        assert (decay < 0).all() and (np.exp(decay) < 0.5).any() and (np.exp(decay) > 0.5).any()
        delta = delta_rule(q, k, v, decay, beta)
        kept("delta", delta)
        # `Qwen3NextRMSNormGated`
        normed = rms_norm(delta, weight("ssm_norm.weight"), eps)
        gated = normed.reshape(t, -1) * silu(z)
        kept("norm", normed), kept("gated", gated)
        return keep("linear_attn_out", gated @ weight("ssm_out.weight").T)

    def latent_attention(h, keep, weight, sliding):
        """modeling_deepseek_v3.py, `DeepseekV3Attention.forward`, and modeling_deepseek_v2.py; in the other order of sums of an engine that
        has q absorbed by what makes keys, the same values within the rounding of float64."""
        a = f["latent"]
        rank, nope, values = a["rank"], a["nope"], a["values"]

        def rotated(x):
            """modeling_deepseek_v2.py, `apply_rotary_emb`: neighbours are the two parts of a complex number. [T, n, pe]"""
            turns = np.exp(1j * np.outer(np.arange(t), inv_freq))[:, None, :] * stretch
            turned = np.stack([x[..., ::2], x[..., 1::2]], axis=-1) @ [1, 1j] * turns
            return np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape)

        kv_a = keep("kv_a", h @ weight("attn_kv_a_mqa.weight").T)
        latent = rms_norm(kv_a[:, :rank], weight("attn_kv_a_norm.weight"), eps)
        keep("kv_norm", np.concatenate([latent, kv_a[:, rank:]], axis=1))
        if "q_rank" in a:
            q_a = keep("q_a", h @ weight("attn_q_a.weight").T)
            q_a = keep("q_a_norm", rms_norm(q_a, weight("attn_q_a_norm.weight"), eps))
            q = q_a @ weight("attn_q_b.weight").T
        else:
            q = h @ weight("attn_q.weight").T
        q = keep("q_proj", q).reshape(t, HEADS, -1)
        q_pe, k_pe = rotated(q[..., nope:]), rotated(kv_a[:, None, rank:])
        q = np.concatenate([q[..., :nope], q_pe], axis=-1)
        keep("q_rope", q.reshape(t, -1)), keep("k_rope", np.concatenate([latent, k_pe[:, 0]], axis=1))

        kv = (latent @ weight("kv_b_proj").T).reshape(t, HEADS, nope + values)
        k = np.concatenate([kv[..., :nope], np.repeat(k_pe, HEADS, axis=1)], axis=-1)
        v = kv[..., nope:]
        # `yarn_apply_mscale`
        scale = (nope + f["turned"]) ** -0.5 * (yarn_mscale(f["yarn"]["factor"], mscale_all_dim(f)) ** 2 if "yarn" in f else 1.0)
        seen = np.tril(np.ones((t, t), bool))
        scores = np.einsum("thd,shd->hts", q, k) * scale
        probs = softmax(np.where(seen, scores, -np.inf))
        context = np.einsum("hts,shd->thd", probs, v)
        scores = np.where(seen, scores, 0.0)
        if a["absorbed"]:
            # The rows of `k_b` are columns of those of `kv_b_proj` that make keys. One key and one value for all heads: the latent.
            absorbed = np.concatenate([np.einsum("thn,hrn->thr", q[..., :nope], weight("attn_k_b.weight")), q_pe], axis=-1)
            one = np.concatenate([latent, k_pe[:, 0]], axis=-1)
            theirs = np.where(seen, np.einsum("thd,sd->hts", absorbed, one) * scale, 0.0)
            probs_of_them = softmax(np.where(seen, theirs, -np.inf))
            attended = np.einsum("hts,sr->thr", probs_of_them, latent)
            context_of_them = np.einsum("thr,hvr->thv", attended, weight("attn_v_b.weight"))
            assert all(np.abs(x - y).max() <= 1e-12 for x, y in ((scores, theirs), (probs, probs_of_them), (context, context_of_them)))
            keep("q_absorbed", absorbed.reshape(t, -1)), keep("attn_scores", scores), keep("attn_probs", probs)
            keep("attn_latent", np.einsum("hts,sr->thr", probs, latent).reshape(t, -1))
        else:
            keep("k_up", k.reshape(t, -1)), keep("v_up", v.reshape(t, -1)), keep("attn_scores", scores), keep("attn_probs", probs)
        context = keep("attn_context", context.reshape(t, -1))
        return keep("attn_out", context @ weight("attn_output.weight").T)

    def attention(h, keep, weight, sliding):
        cos, sin = local if sliding else everywhere
        q, k, v = (h @ weight(f"attn_{part}.weight").T for part in "qkv")
        if joint:
            q, q_gate = (x.reshape(t, -1) for x in np.split(q.reshape(t, HEADS, 2 * D), 2, axis=2))
            keep("q_gate", q_gate)
        keep("q_proj", stored(q, HEADS)), keep("k_proj", stored(k, kv)), keep("v_proj", v)
        if f.get("bias"):
            q, k, v = (y + weight(f"attn_{part}.bias") for y, part in ((q, "q"), (k, "k"), (v, "v")))
            keep("q_bias", stored(q, HEADS)), keep("k_bias", stored(k, kv)), keep("v_bias", v)
        q, k, v = q.reshape(t, HEADS, D), k.reshape(t, kv, D), v.reshape(t, kv, D)
        if f.get("qk_norm"):
            # modeling_qwen3.py: each head. modeling_olmoe.py: the row, before it is cut into heads.
            whole = (lambda y: y.reshape(t, -1)) if f["qk_norm"] == "row" else (lambda y: y)
            q, k = (rms_norm(whole(y), weight(f"attn_{part}_norm.weight"), eps).reshape(y.shape) for y, part in ((q, "q"), (k, "k")))
            keep("q_norm", q.reshape(t, -1)), keep("k_norm", k.reshape(t, -1))
        q, k = (rotated(y, cos, sin) for y in (q, k))
        keep("q_rope", stored(q.reshape(t, -1), HEADS)), keep("k_rope", stored(k.reshape(t, -1), kv))
        k, v = (np.repeat(y, group, axis=1) for y in (k, v))
        scores = np.einsum("thd,shd->hts", q, k) * (np.float64(np.float32(f["attention"])) if "attention" in f else 1 / np.sqrt(D))
        seen = np.tril(np.ones((t, t), bool))
        if sliding:  # masking_utils.py, `sliding_window_overlay`: kv_idx > q_idx - sliding_window
            seen &= np.triu(np.ones((t, t), bool), 1 - f["window"])
        keep("attn_scores", np.where(seen, scores, 0.0))
        masked = np.where(seen, scores, -np.inf)
        if f.get("oss"):  # modeling_gpt_oss.py, `eager_attention_forward`: one more column, dropped after the softmax
            sinks = np.broadcast_to(weight("attn_sinks.weight")[:, None, None], (HEADS, t, 1))
            probs = softmax(np.concatenate([masked, sinks], axis=-1))[..., :-1]
        else:
            probs = softmax(masked)
        keep("attn_probs", probs)
        context = keep("attn_context", np.einsum("hts,shd->thd", probs, v).reshape(t, -1))
        if joint:
            context = keep("attn_gated", context * sigmoid(q_gate))
        out = keep("attn_out", context @ weight("attn_output.weight").T)
        if f.get("oss"):
            out = keep("attn_out_bias", out + weight("attn_output.bias"))
        if f.get("gemma"):  # whose weights have the 1 of `1 + weight` in them, in GGUF
            out = keep("attn_post_norm", rms_norm(out, weight("post_attention_norm.weight"), eps))
        return out

    # modeling_gemma3.py, `Gemma3TextScaledWordEmbedding`.
    x = w["token_embd.weight"][tokens] * (np.sqrt(H) if f.get("gemma") else 1.0)
    stages["embedding"] = x
    for n in range(f.get("layers", LAYERS)):
        sliding = "window" in f and (n + 1) % f["period"] != 0

        def keep(name, values):
            stages[f"layers.{n}.{name}"] = values
            return values

        def weight(name):
            return w[f"blk.{n}.{name}"]

        h = keep("attn_norm", rms_norm(x, weight("attn_norm.weight"), eps))
        attend = latent_attention if "latent" in f else attention
        out = linear_attention(h, keep, weight) if is_linear(family, n) else attend(h, keep, weight, sliding)
        x = keep("attn_residual", x + out)
        h = keep("ffn_norm", rms_norm(x, weight(ffn_norm(f)), eps))
        if "experts" in f and n >= f.get("leading", 0):
            # modeling_mixtral.py: a softmax over all experts, the largest of them, divided by their sum.
            logits = keep("router_logits", h @ weight("ffn_gate_inp.weight").T)
            # modeling_gpt_oss.py, `GptOssTopKRouter`: the largest logits, and the softmax of these.
            if f.get("oss"):
                probs = keep("router_bias", logits + weight("ffn_gate_inp.bias"))
            else:
                probs = keep("router_probs", sigmoid(logits) if f.get("sigmoid") else softmax(logits))
            # modeling_glm4_moe.py, `route_tokens_to_experts`: the bias is for the choice.
            choice = keep("router_choice", probs + weight("exp_probs_b.bias")) if f.get("sigmoid") else probs
            ids = chosen(choice, f["used"], f.get("groups"), softmax=not f.get("sigmoid"))
            keep("router_ids", ids.astype(np.int32))
            weights = np.take_along_axis(probs, ids, axis=-1)
            # modeling_qwen2_moe.py, modeling_olmoe.py: `norm_topk_prob` is false. modeling_deepseek_v2.py has none.
            weighed = softmax(weights) if f.get("oss") else weights if f.get("plain") else weights / weights.sum(axis=-1, keepdims=True)
            weights = keep("router_weights", weighed * np.float64(np.float32(f.get("weights_scale", 1.0))))
            of = lambda part: weight(f"ffn_{part}_exps.weight")[ids]  # [T, K, rows, cols]
            gate = keep("expert_gate", np.einsum("tkfh,th->tkf", of("gate"), h))
            up = keep("expert_up", np.einsum("tkfh,th->tkf", of("up"), h))
            if f.get("oss"):
                gate = keep("expert_gate_bias", gate + weight("ffn_gate_exps.bias")[ids])
                up = keep("expert_up_bias", up + weight("ffn_up_exps.bias")[ids])
                assert (gate > 7).any() and (np.abs(up) > 7).any()
            act = keep("expert_act", clamped_swiglu(gate, up) if f.get("oss") else silu(gate) * up)
            down = keep("expert_down", np.einsum("tkhf,tkf->tkh", of("down"), act))
            if f.get("oss"):
                down = keep("expert_down_bias", down + weight("ffn_down_exps.bias")[ids])
            out = keep("moe_out", (weights[..., None] * down).sum(axis=1))
            if f.get("sigmoid"):
                assert (np.sort(ids) != np.sort(np.argsort(-probs, axis=-1)[:, :f["used"]])).any()
            if "plain_shared" in f:
                # modeling_glm4_moe.py, `Glm4MoeMoE`: added as it is.
                gate = keep("shared_gate", h @ weight("ffn_gate_shexp.weight").T)
                up = keep("shared_up", h @ weight("ffn_up_shexp.weight").T)
                act = keep("shared_act", silu(gate) * up)
                out = keep("moe_sum", out + keep("shared_down", act @ weight("ffn_down_shexp.weight").T))
            if "shared" in f:
                # modeling_qwen2_moe.py: sigmoid(shared_expert_gate(h)) · shared_expert(h).
                router = keep("shared_router", h @ weight("ffn_gate_inp_shexp.weight")[:, None])
                gate = keep("shared_gate", h @ weight("ffn_gate_shexp.weight").T)
                up = keep("shared_up", h @ weight("ffn_up_shexp.weight").T)
                act = keep("shared_act", silu(gate) * up)
                down = keep("shared_down", act @ weight("ffn_down_shexp.weight").T)
                out = keep("moe_sum", out + keep("shared_out", down / (1 + np.exp(-router))))
        else:
            gate = keep("ffn_gate", h @ weight("ffn_gate.weight").T)
            up = keep("ffn_up", h @ weight("ffn_up.weight").T)
            act = keep("ffn_act", activation(gate) * up)
            out = keep("ffn_out", act @ weight("ffn_down.weight").T)
            if f.get("gemma"):
                out = keep("ffn_post_norm", rms_norm(out, weight("post_ffw_norm.weight"), eps))
        x = keep("layer_out", x + out)
    x = stages["final_norm"] = rms_norm(x, w["output_norm.weight"], eps)
    stages["logits"] = x @ w.get("output.weight", w["token_embd.weight"]).T
    return stages


def main():
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for family in FAMILIES:
        weights = build(out / f"{family}.gguf", family)
        stages = {name: np.ascontiguousarray(values) for name, values in run(family, weights).items()}
        save_file(stages, out / f"{family}.safetensors", metadata={"tokens": ",".join(map(str, prompt(family)))})
    expected = byte_level(out / "byte-level.gguf") | sentence_piece(out / "sentencepiece.gguf")
    (out / "tokens.json").write_text(json.dumps(expected, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
