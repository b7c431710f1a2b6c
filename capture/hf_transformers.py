#!/usr/bin/env python3
"""Captures what a transformers model computes inside a run, for `twinscope import capture`.

Requires torch and transformers (and gguf for --gguf). It uses hooks only: the model's own code runs, in its own type.

    python3 hf_transformers.py Qwen/Qwen3-0.6B --prompt 'fn main() {' --dtype bfloat16 --out run.safetensors
    python3 hf_transformers.py --gguf model.gguf --tokens 422,472,345 --stages layer_out,logits --out run.safetensors

Around a model and a call of one's own:

    from hf_transformers import capture
    with capture(model, "run.safetensors", tokens=ids) as run:
        model(torch.tensor([ids]))

Captured is every stage that a hook reaches; what it does not reach is not in the file. Attention scores and probabilities
are there with eager attention, the inside of the experts with the eager implementation of experts. Where a module adds a
bias itself, its output is the stage with the bias, and the one without it is not there.
"""

import argparse
import contextlib
import hashlib
import inspect
import json
import os
import re
import shlex
import shutil
import struct
import sys
import tempfile

SCHEMA = "twinscope.capture/1"

# --- The parts that need neither torch nor transformers --------------------------------------------------------------

# A module's role within its layer (its name there, see `role`) -> the stage that its output is. A module whose output is a
# tuple shows its first.
LAYER_MODULES = {
    "": "layer_out",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "q_proj",
    "self_attn.k_proj": "k_proj",
    "self_attn.v_proj": "v_proj",
    "self_attn.q_norm": "q_norm",
    "self_attn.k_norm": "k_norm",
    "self_attn.kv_a_proj_with_mqa": "kv_a",
    "self_attn.q_a_proj": "q_a",
    "self_attn.q_a_layernorm": "q_a_norm",
    "self_attn.q_b_proj": "q_proj",
    "self_attn.o_proj": "attn_out",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate": "router_logits",
    "mlp.experts": "moe_out",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.shared_expert": "shared_down",
    "mlp.shared_expert.gate_proj": "shared_gate",
    "mlp.shared_expert.up_proj": "shared_up",
    "mlp.shared_expert_gate": "shared_router",
    "linear_attn.in_proj_qkv": "linear_attn_qkv",
    "linear_attn.in_proj_z": "linear_attn_z",
    "linear_attn.in_proj_b": "linear_attn_b",
    "linear_attn.in_proj_a": "linear_attn_a",
    "linear_attn.out_proj": "linear_attn_out",
}
MODEL_MODULES = {"embed_tokens": "embedding", "norm": "final_norm", "lm_head": "logits"}
# A module's input -> the stage that it is.
LAYER_INPUTS = {
    "self_attn.o_proj": "attn_context",
    "post_attention_layernorm": "attn_residual",
    "mlp.down_proj": "ffn_act",
    "mlp.shared_expert.down_proj": "shared_act",
    "linear_attn.norm": "linear_attn_delta",
    "linear_attn.out_proj": "linear_attn_gated",
}
# The same of a layer that normalises what attention and FFN add, as Gemma's do.
POST_NORM_MODULES = {
    "post_attention_layernorm": "attn_post_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "ffn_post_norm",
}
POST_NORM_INPUTS = {"post_attention_layernorm": None, "pre_feedforward_layernorm": "attn_residual"}
# Stages of a module that may have a bias -> the stage that its output is then.
BIASED = {"q_proj": "q_bias", "k_proj": "k_bias", "v_proj": "v_bias", "attn_out": "attn_out_bias", "router_logits": "router_bias"}
# Names that some models have for the same parts.
ROLES = {"block_sparse_moe": "mlp", "mlp.router": "mlp.gate", "mlp.shared_experts": "mlp.shared_expert"}
# model_type -> `general.architecture` of its GGUF files, where that is not the same without underscores.
ARCHITECTURES = {"mistral": "llama", "mixtral": "llama", "ministral3": "mistral3", "gemma3_text": "gemma3", "gpt_oss": "gpt-oss",
                 "qwen3_5_text": "qwen35", "qwen3_5_moe_text": "qwen35moe", "deepseek_v2": "deepseek2", "deepseek_v3": "deepseek2"}
# Models of which llama.cpp's converter reorders the rows of q and k (`permute`), so that GGUF's rope turns neighbours. A
# capture is held against such a file, so its q and k are written in that order.
PERMUTED = ("llama", "mistral", "mixtral", "ministral3")
PERMUTED_STAGES = ("q_proj", "k_proj", "q_bias", "k_bias", "q_rope", "k_rope")
# Models of which llama.cpp's converter reorders the value heads of linear attention: of these the first of each key head, the
# second of each, … So are the columns of such stages written.
TILED = ("qwen3_5_text", "qwen3_5_moe_text")
# Models whose q_proj has, for each head, q and then a gate of what attention gives.
GATED = ("qwen3_next", *TILED)
TILED_STAGES = tuple(f"linear_attn_{part}" for part in "qkv z b a conv beta dt decay delta norm gated".split())
MIXED_STAGES = ("linear_attn_qkv", "linear_attn_conv")  # whose first columns are those of key heads
# Models with latent attention, and the function that turns q and the one key: the first gives halves of pairs that are neighbours.
LATENT = {"deepseek_v3": "apply_rotary_pos_emb_interleave", "deepseek_v2": "apply_rotary_emb"}
# Models of which transformers computes something in 16 bits otherwise than the contracts transformers-bf16 and -f16 say: their
# contract's name ends in their architecture (`transformers-bf16+gemma3`), and says what.
OTHERWISE = ("gemma3_text", "gpt_oss", "glm4_moe", *LATENT, *GATED)
# Parts of a module's name whose weights stay float32 in a model in 16 bits, as when transformers itself loads it: model_type -> in
# which types, and which (`_keep_in_fp32_modules_strict`, and `_keep_in_fp32_modules` for float16).
KEPT_WIDE = {
    "gpt_oss": (("float16",), ("norm",)),
    **dict.fromkeys(("glm4_moe", *LATENT), (("bfloat16", "float16"), ("e_score_correction_bias", "gate.weight"))),
}


def place(name):
    """A module's layer and its name within it: `model.layers.3.mlp.gate` is (3, "mlp.gate"), `model.norm` (None, "norm")."""
    match = re.fullmatch(r"(?:.*\.)?layers\.(\d+)(?:\.(.*))?", name)
    return (int(match[1]), match[2] or "") if match else (None, name.rsplit(".", 1)[-1])


def role(name):
    """A module's name within its layer with those of its parts that models call differently called alike."""
    for theirs, ours in ROLES.items():
        if name == theirs or name.startswith(theirs + "."):
            return role(ours + name[len(theirs):])
    return name


def key(layer, stage):
    return stage if layer is None else f"layers.{layer}.{stage}"


def chosen(text, count):
    """The numbers below `count` that `text` names: `all`, `last`, or a list of numbers and ranges such as `0,5-9,-1`."""
    if text == "all":
        return list(range(count))
    if text == "last":
        return [count - 1] if count else []
    numbers = set()
    for word in text.split(","):
        match = re.fullmatch(r"\s*(-?\d+)(?:-(-?\d+))?\s*", word)
        if not match:
            raise ValueError(f"`{word}` is neither a number nor a range")
        first, last = (int(n) + (count if int(n) < 0 else 0) for n in (match[1], match[2] or match[1]))
        if not 0 <= first <= last < count:
            raise ValueError(f"`{word}` is not within 0 to {count - 1}")
        numbers.update(range(first, last + 1))
    return sorted(numbers)


class Writer:
    """A safetensors file whose data arrive before its header can be known: they wait in a temporary file beside it."""

    def __init__(self, path):
        self.path = path
        self.tensors = {}
        self.data = tempfile.TemporaryFile(dir=os.path.dirname(os.path.abspath(path)))

    def add(self, name, dtype, shape, data):
        if name in self.tensors:
            raise ValueError(f"{name} came twice")
        start = self.data.tell()
        self.data.write(data)
        self.tensors[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, self.data.tell()]}

    def finish(self, header):
        text = json.dumps({"__metadata__": {"twinscope.capture": json.dumps(header)}, **self.tensors}).encode()
        text += b" " * (-len(text) % 8)
        partial = f"{self.path}.partial"
        with open(partial, "wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            self.data.seek(0)
            shutil.copyfileobj(self.data, out)
        os.replace(partial, self.path)


# --- Hooks -----------------------------------------------------------------------------------------------------------


class Recorder:
    """What the hooks keep of one run: `calls` are the forward calls of the model so far."""

    def __init__(self, model, writer, stages, layers, positions, modules):
        self.model, self.writer = model, writer
        self.stages = None if stages is None else [re.compile(s.replace("*", ".*")) for s in stages]
        self.layers, self.positions = layers, positions
        self.modules = None if modules is None else re.compile(modules)
        self.calls, self.tensors = [], {}
        self.inside = []  # the modules whose forward is running, outermost first: (layer, role within it, module)
        self.experts = None  # the experts' rows of the call that is running
        self.masks = {}  # layer -> the mask that its attention was given
        self.choice = None  # what the running layer's experts are chosen by, where that is a sum with a bias
        config = getattr(model.config, "text_config", model.config)
        self.expert_ffn = getattr(config, "moe_intermediate_size", None) or getattr(config, "intermediate_size", 0)
        kind = getattr(config, "model_type", "")
        heads = getattr(config, "num_attention_heads", 0)
        head_dim = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
        self.permuted_dim = head_dim if kind in PERMUTED else None
        self.gated_dim = head_dim if kind in GATED else None
        # Of linear attention: the key heads, the value heads of each, and where value heads follow in q, k and v side by side.
        self.tiled = None
        if kind in TILED:
            keys = config.linear_num_key_heads
            self.tiled = (keys, config.linear_num_value_heads // keys, 2 * keys * config.linear_key_head_dim)
        self.products = {}  # what functions and modules of the running linear attention gave, by their name
        self.gate = None  # the sigmoid of the running attention's gate
        # Of latent attention: the columns of the latent, what turns is after them. The file says whether keys and values are made.
        self.rank = config.kv_lora_rank if kind in LATENT else None
        self.halves = kind == "deepseek_v3"
        self.makes_keys = getattr(model, "makes_keys", False)
        self.heads_first = kind.startswith("gemma")  # whose norms of q and k get [1, heads, T, D]
        # Per layer the roles that it has, which say what some of them are.
        self.roles = {}
        for name, _ in model.named_modules():
            layer, within = place(name)
            self.roles.setdefault(layer, set()).add(role(within))
        # Whether experts are chosen by sigmoids plus a bias, as GLM's are.
        self.choice_bias = any(name.endswith("e_score_correction_bias") for name in model.state_dict())
        self.seen = set()  # what the running call has shown

    # What is kept.

    def wants(self, layer, stage):
        named = self.stages is None or any(s.fullmatch(stage) for s in self.stages)
        return named and (self.layers is None or layer is None or layer in self.layers)

    def keep(self, layer, stage, values, axis=0):
        """Keeps values whose axis `axis` counts the positions of the running call, or its last ones."""
        import torch

        name = key(layer, stage)
        if not self.wants(layer, stage) or name in self.seen or not self.calls:
            return
        call = self.calls[-1]
        rows = values.shape[axis]
        if rows > call["tokens"]:
            return
        # Fewer rows than tokens are the last ones: such are the logits that generate() asks for.
        first = call["start"] + call["tokens"] - rows
        kept = [i for i in range(rows) if self.positions is None or first + i in self.positions]
        if not kept:
            return
        self.seen.add(name)
        values = values.detach()
        if len(kept) != rows:
            values = values.index_select(axis, torch.tensor(kept, device=values.device))
        if self.permuted_dim and stage in PERMUTED_STAGES:
            values = values.unflatten(-1, (-1, 2, self.permuted_dim // 2)).transpose(-1, -2).flatten(-3)
        if self.tiled and stage in TILED_STAGES:
            keys, each, before = self.tiled
            before = before if stage in MIXED_STAGES else 0
            heads = values[..., before:].unflatten(-1, (keys, each, -1)).transpose(-2, -3).flatten(-3)
            values = torch.cat((values[..., :before], heads), dim=-1)
        whole = f"{name}@{len(self.calls) - 1}"
        self.tensors[whole] = {"call": len(self.calls) - 1, "positions": [first + i for i in kept]}
        self.writer.add(whole, *flat(values))

    # What is seen.

    def begin(self, model, args, kwargs):
        """A forward call of the whole model: where it starts and how many tokens it has."""
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is None:
            ids = kwargs.get("inputs_embeds")
        if ids is None or ids.shape[0] != 1:
            found = "none" if ids is None else f"a batch of {ids.shape[0]}"
            raise ValueError(f"expected a call with input_ids or inputs_embeds of one sequence, found {found}")
        cache = next((kwargs[k] for k in ("past_key_values", "cache") if kwargs.get(k) is not None), None)
        start = int(cache.get_seq_length()) if cache is not None else 0
        self.calls.append({"start": start, "tokens": int(ids.shape[1])})
        self.seen = set()

    def post_norms(self, layer):
        return "pre_feedforward_layernorm" in self.roles.get(layer, ())

    def input_of(self, layer, name):
        """The stage that a module's input is."""
        if name == "self_attn.o_proj" and self.gated_dim:
            return "attn_gated"
        own = POST_NORM_INPUTS if self.post_norms(layer) else {}
        return own.get(name, LAYER_INPUTS.get(name))

    def output_of(self, layer, name, module):
        """The stage that a module's output is."""
        roles = self.roles.get(layer, ())
        if layer is None:
            return MODEL_MODULES.get(name)
        if name == "mlp":
            if "mlp.experts" not in roles:
                return "ffn_out"
            return "moe_sum" if "mlp.shared_expert" in roles else "moe_out"
        own = POST_NORM_MODULES if self.post_norms(layer) else {}
        stage = own.get(name, LAYER_MODULES.get(name))
        return BIASED.get(stage, stage) if getattr(module, "bias", None) is not None else stage

    def enter(self, layer, name):
        import torch

        within = role(name)

        def hook(module, args, kwargs):
            self.inside.append((layer, within, module))
            stage = None if layer is None else self.input_of(layer, within)
            if within == "linear_attn" or (within == "self_attn" and self.rank):
                self.products = {}
            if within == "linear_attn.norm" and args and self.calls:  # a row for each head
                self.keep(layer, stage, args[0].reshape(self.calls[-1]["tokens"], -1))
            elif stage is not None and args:
                self.keep(layer, stage, rows_of(args[0]))
            if within == "self_attn":
                self.masks[layer] = kwargs.get("attention_mask")
            if within == "mlp":
                self.choice = None
            if within == "mlp.experts":
                tensors = [a for a in [*args, *kwargs.values()] if isinstance(a, torch.Tensor)]
                at = next((i for i, t in enumerate(tensors) if not t.is_floating_point()), None)
                if at is not None:
                    weights = next((rows_of(t) for t in tensors[at + 1:] if t.is_floating_point()), None)
                    self.route(layer, module, rows_of(tensors[at]), weights)
        return hook

    def route(self, layer, module, ids, weights):
        """The experts [T, K] that the rows of a call go to, and their weights [T, K], or [T, E] with 0 where not chosen."""
        order = None
        if self.choice is not None:
            # GLM asks for the largest in any order (`sorted=False`), and what comes is any: slots are counted from the largest.
            order = self.choice.gather(1, ids).argsort(dim=1, descending=True, stable=True)
        if weights is not None and weights.shape != ids.shape:
            weights = weights.gather(1, ids) if weights.shape[0] == ids.shape[0] else None
        if order is not None:
            ids = ids.gather(1, order)
            weights = None if weights is None else weights.gather(1, order)
        self.experts = Experts(module, ids, None if order is None else order.argsort(dim=1), self.expert_ffn)
        self.keep(layer, "router_ids", ids)
        if weights is not None:
            self.keep(layer, "router_weights", weights)

    def leave(self, layer, name):
        import torch

        within = role(name)

        def hook(module, args, kwargs, output):
            self.inside.pop()
            outputs = output if isinstance(output, (tuple, list)) else (output,)
            first = outputs[0]
            if not isinstance(first, torch.Tensor):
                first = getattr(output, "last_hidden_state", None)
                if first is None:
                    return
            stage = self.output_of(layer, within, module)
            if stage in ("q_norm", "k_norm") and self.heads_first and first.dim() == 4:
                first = first.transpose(1, 2)
            if within in ("linear_attn.in_proj_qkvz", "linear_attn.in_proj_ba"):
                self.joint(layer, within, first)
            elif within == "self_attn.kv_a_layernorm":
                latent = self.products["latent"] = rows_of(first)
                self.keep(layer, "kv_norm", torch.cat((latent, self.products["kv_a"][:, self.rank:]), dim=-1))
            elif stage == "q_proj" and self.gated_dim:
                q, gate = rows_of(first).unflatten(-1, (-1, 2, self.gated_dim)).unbind(-2)
                self.keep(layer, "q_proj", q.flatten(1))
                self.keep(layer, "q_gate", gate.flatten(1))
            elif stage is not None:
                self.keep(layer, stage, rows_of(first))
                if self.rank and stage in ("q_proj", "kv_a"):
                    self.products[stage] = rows_of(first)
            elif self.modules is not None and self.modules.search(name):
                self.keep(layer, name, rows_of(first))
            if within == "self_attn" and len(outputs) > 1 and isinstance(outputs[1], torch.Tensor):
                self.keep(layer, "attn_probs", self.all_keys(outputs[1][0]), axis=1)
            if within == "mlp.experts" and self.experts is not None:
                for stage, values in self.experts.stages():
                    self.keep(layer, stage, values)
                self.experts = None
        return hook

    def joint(self, layer, name, values):
        """What Qwen3-Next's linear attention has in two products, for each key head together: its own method takes them apart."""
        import torch

        self.products[name] = values
        both = [self.products.get(f"linear_attn.in_proj_{part}") for part in ("qkvz", "ba")]
        if any(values is None for values in both):
            return
        q, k, v, z, b, a = map(rows_of, self.inside[-1][2].fix_query_key_value_ordering(*both))
        for stage, values in (("qkv", torch.cat((q, k, v), dim=-1)), ("z", z), ("b", b), ("a", a)):
            self.keep(layer, f"linear_attn_{stage}", values)

    def linear_attention(self, layer, module, name, args, output):
        """A function of torch that linear attention called."""
        product = lambda of: name == "mul" and len(args) > 1 and args[1] is self.products.get(of, self)
        if name == "silu":  # of the convolution [1, channels, T], with rows of former calls before those of this
            self.keep(layer, "linear_attn_conv", output[0].T[-self.calls[-1]["tokens"]:])
        elif name == "sigmoid":
            self.keep(layer, "linear_attn_beta", rows_of(output))
        elif name == "softplus":
            self.products[name] = output
            self.keep(layer, "linear_attn_dt", rows_of(args[0]))
        elif name == "rsqrt":  # of the L2 norm, of q and then of k
            self.products[name] = output
        elif product("softplus"):
            self.keep(layer, "linear_attn_decay", rows_of(output))
        elif product("rsqrt"):
            # [1, value heads, T, D]: what a key head has is there for each of its value heads.
            self.keep(layer, "linear_attn_k" if "q" in self.products else "linear_attn_q",
                      output[0, ::module.num_v_heads // module.num_k_heads].transpose(0, 1).flatten(1))
            self.products["q"] = output

    def scores(self, layer, scores):
        """Scores [heads, T, S] with the mask added: entries that the mask hides stand for nothing."""
        import torch

        mask = self.masks.get(layer)
        if mask is None:
            seen = torch.ones(scores.shape[1:], dtype=torch.bool, device=scores.device).tril(scores.shape[2] - scores.shape[1])
        else:
            seen = mask[0, 0, :, :scores.shape[2]]
            seen = seen if seen.dtype == torch.bool else seen == 0
        self.keep(layer, "attn_scores", self.all_keys(torch.where(seen, scores, torch.zeros_like(scores))), axis=1)

    def all_keys(self, values):
        """Values for the keys [heads, T, S] that the cache still has, with 0 for those that it dropped behind a window."""
        import torch

        call = self.calls[-1] if self.calls else {"start": 0, "tokens": 0}
        return torch.nn.functional.pad(values, (max(call["start"] + call["tokens"] - values.shape[2], 0), 0))

    def function(self, name, args, kwargs, output):
        """A function of torch that the running module called."""
        layer, within, module = self.inside[-1] if self.inside else (None, "", None)
        if layer is None:
            return
        if within == "linear_attn":
            self.linear_attention(layer, module, name, args, output)
        elif within == "linear_attn.norm":
            if name == "mul" and args[0] is module.weight:
                self.keep(layer, "linear_attn_norm", output.reshape(self.calls[-1]["tokens"], -1))
        elif within == "self_attn" and self.gated_dim and name in ("sigmoid", "mul"):
            if name == "sigmoid":
                self.gate = output
            elif args[1] is self.gate:
                self.keep(layer, "attn_context", rows_of(args[0]))
        elif within == "self_attn":
            if name == "matmul" and self.makes_keys:  # of all keys [1, heads, D, S], and then of all values [1, heads, S, D]
                stage, values = ("v_up", args[1][0]) if "k_up" in self.products else ("k_up", args[1][0].transpose(1, 2))
                self.products[stage] = values
                self.keep(layer, stage, values[:, -self.calls[-1]["tokens"]:].transpose(0, 1).flatten(1))
            sinks = hasattr(module, "sinks")
            if name == "softmax" and not sinks and args[0].dim() == 4:
                self.scores(layer, args[0][0])
            # With sinks the softmax is over one more column, of scores that the largest was taken from.
            elif name == "cat" and sinks and args[0][0].dim() == 4 and args[0][-1].shape[-1] == 1:
                self.scores(layer, args[0][0][0])
        elif within in ("mlp.gate", "mlp"):
            if within == "mlp.gate" and name == "linear":
                # The product itself: routers of transformers 5.0 give probabilities for it.
                self.keep(layer, self.output_of(layer, within, module), rows_of(output))
            elif self.rank and not self.choice_bias:
                if name == "softmax":  # DeepSeek V2 asks for the largest in any order, as GLM does
                    self.choice = rows_of(output)
                    self.keep(layer, "router_probs", self.choice)
            elif self.choice_bias:
                if name == "sigmoid":
                    self.keep(layer, "router_probs", rows_of(output))
                elif name == "add" and self.choice is None:  # of its additions the first
                    self.choice = rows_of(output)
                    self.keep(layer, "router_choice", self.choice)
            elif name == "softmax" and getattr(module, "bias", None) is None:  # with one it is the softmax of the chosen
                self.keep(layer, "router_probs", rows_of(output))
            elif name == "topk" and within == "mlp":
                self.keep(layer, "router_ids", rows_of(output[1]))
            elif name == "mul" and within == "mlp" and hasattr(module, "shared_expert_gate"):
                self.keep(layer, "shared_out", rows_of(output))
        elif self.experts is not None:
            self.experts.function(name, args, output)

    def rope(self, q, k):
        """Queries and keys after rope: [1, heads, T, D]."""
        layer = next((layer for layer, _, _ in reversed(self.inside) if layer is not None), None)
        if self.rank and layer is not None:
            return self.latent_rope(layer, q, k)
        for stage, x in (("q_rope", q), ("k_rope", k)):
            if layer is not None and x.dim() == 4:
                self.keep(layer, stage, x[0].transpose(0, 1).flatten(1))


    def latent_rope(self, layer, q, k):
        """What turns of queries [1, heads, T, pe] and of the one key [1, 1, T, pe], after rope: the last columns of each head of q,
        and those after the latent."""
        import torch

        if self.halves:
            q, k = (x.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2) for x in (q, k))
        heads = self.products["q_proj"].unflatten(-1, (q.shape[1], -1))[..., :-q.shape[-1]]
        self.keep(layer, "q_rope", torch.cat((heads, q[0].transpose(0, 1)), dim=-1).flatten(1))
        self.keep(layer, "k_rope", torch.cat((self.products["latent"], k[0, 0]), dim=-1))


class Experts:
    """Puts the experts' rows in the order of router_ids: each expert computes those of the tokens that chose it.

    The eager implementation asks `where` which slot of which token an expert has, and then makes its products: gate and up
    in one or in two, then down. gpt-oss has gate and up in turn, and adds a bias to each product."""

    def __init__(self, module, ids, slots, ffn):
        """ids [T, K]; slots [T, K]: the slot here of each of the module's, if that is another."""
        self.ids, self.slots, self.ffn = ids, slots, ffn
        self.biased = hasattr(module, "gate_up_proj_bias")
        self.place, self.products, self.fused, self.product = None, 0, False, None
        self.values = {}

    def function(self, name, args, output):
        import torch

        if name in ("where", "nonzero") and isinstance(output, tuple) and len(output) >= 2:
            self.place, self.products, self.fused = output[-2:], 0, False
        elif name in ("linear", "matmul") and self.place is not None and output.shape[0] == self.place[1].shape[0]:
            self.products, self.product = self.products + 1, output
            if self.products == 1 and output.shape[-1] == 2 * self.ffn:
                self.fused = True
                self.put_both("", output)
            elif self.products == (2 if self.fused else 3):
                self.put("expert_act", args[0])
                self.put("expert_down", output)
            elif not self.fused and self.products < 3:
                self.put("expert_gate" if self.products == 1 else "expert_up", output)
        elif name == "add" and self.biased and isinstance(args[0], torch.Tensor) and args[0] is self.product:
            if self.products == 1:
                self.put_both("_bias", output)
            else:
                self.put("expert_down_bias", output)

    def put_both(self, suffix, values):
        gate, up = (values[..., ::2], values[..., 1::2]) if self.biased else values.chunk(2, dim=-1)
        self.put("expert_gate" + suffix, gate)
        self.put("expert_up" + suffix, up)

    def put(self, stage, rows):
        import torch

        slot, token = self.place
        slot = slot if self.slots is None else self.slots[token, slot]
        if stage not in self.values:
            shape = (*self.ids.shape, rows.shape[-1])
            there = torch.zeros(self.ids.shape, dtype=torch.bool, device=rows.device)
            self.values[stage] = torch.zeros(shape, dtype=rows.dtype, device=rows.device), there
        values, there = self.values[stage]
        values[token, slot], there[token, slot] = rows.detach(), True

    def stages(self):
        """The stages of which every row was seen: [T, K, F or H]."""
        return [(stage, values) for stage, (values, there) in self.values.items() if there.all()]


def rows_of(values):
    """[1, T, …] or [T, …] as [T, …] with heads and their size in one axis."""
    if values.dim() == 4 or (values.dim() == 3 and values.shape[0] == 1):
        values = values[0]
    return values.flatten(1) if values.dim() > 2 else values


def flat(values):
    """A tensor's safetensors type, its shape and its bytes."""
    import torch

    names = {torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16",
             torch.int64: "I64", torch.int32: "I32"}
    values = values.contiguous().cpu()
    name = names[values.dtype]
    if values.dtype == torch.bfloat16:
        values = values.view(torch.int16)  # numpy has no bfloat16
    return name, list(values.shape), values.numpy().tobytes()


@contextlib.contextmanager
def float64():
    """Makes and runs models in float64, and meets every request for float32 in it: `x.float()`, `x.to(torch.float32)`,
    `softmax(x, dtype=torch.float32)`, …

    In transformers 5.24 these are asked for, whatever a model's type, by: all RMSNorms (`to(torch.float32)`, Gemma's `float()`);
    all rotary embeddings (`arange(dtype=torch.float)` and `position_ids.float()`); `linear_ramp_factor` of YaRN;
    `eager_attention_forward` (softmax); the routers of Mixtral, Qwen and OLMoE (softmax), and all of GLM's and DeepSeek's
    (`type(torch.float32)`); the rope of DeepSeek V2 (`float()`, before numbers are complex); the decay of linear attention
    (`float()`), its delta rule, chunked or by token (`to(torch.float32, memory_format=…)`), and its gated norm."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Wide(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is torch.Tensor.float:
                return args[0].double()
            wide = lambda x: torch.float64 if x is torch.float32 else x
            return function(*map(wide, args), **{name: wide(x) for name, x in (kwargs or {}).items()})

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with Wide():
            yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def capture(model, out, tokens, prompt=None, prompt_tokens=None, stages=None, layers=None, positions=None, modules=None,
            command="", name=None, fingerprint=None):
    """Captures what `model` computes in the block, and writes the file `out` at its end.

    A model in float64 is run in it throughout (see `float64`, within which it has to be made).
    `tokens` are the ids that the block runs, all calls together; it may be a list that grows until the block ends.
    `stages` are names or globs, `layers` and `positions` sets of numbers; None is all. `modules` is a regular expression:
    outputs of modules that match and are no stage are kept under the module's name."""
    import torch
    import transformers
    from torch.overrides import TorchFunctionMode

    kind = getattr(getattr(model.config, "text_config", model.config), "model_type", "")
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    if kind in ("glm4v_moe", "glm4v_moe_text", "solar_open"):
        raise SystemExit(f"{kind}: nobody has seen whether its router's numbers are where the hooks look for them; capture it "
                         "with a rules file of your own (see capture/README.md)")
    if kind == "deepseek_v3" and not model.config.rope_interleave:
        raise SystemExit(f"{kind} without rope_interleave: its rope turns halves, and that of GGUF files turns neighbours")
    # Frequencies of rope that were made in float32 are such numbers still when a model becomes float64 later.
    single = lambda values: (values.detach().cpu().numpy() == values.detach().cpu().numpy().astype("float32")).all()
    narrow = [name for name, values in model.named_buffers() if dtype == "float64" and name.endswith("inv_freq") and len(values) > 1 and single(values)]
    if narrow:
        raise SystemExit(f"{kind} in float64: {narrow[0]} was made in float32; make the model within `with float64():` of this script")
    writer = Writer(out)
    recorder = Recorder(model, writer, stages, layers, positions, modules)
    handles, patched = [], []

    class Functions(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            output = function(*args, **(kwargs or {}))
            recorder.function(getattr(function, "__name__", ""), args, kwargs or {}, output)
            return output

    handles.append(model.register_forward_pre_hook(recorder.begin, with_kwargs=True))
    for full, module in model.named_modules():
        layer, within = place(full)
        if layer is None and within not in MODEL_MODULES and modules is None:
            continue
        handles.append(module.register_forward_pre_hook(recorder.enter(layer, within), with_kwargs=True))
        handles.append(module.register_forward_hook(recorder.leave(layer, within), with_kwargs=True))
        source = sys.modules.get(type(module).__module__)
        function = LATENT.get(kind, "apply_rotary_pos_emb")
        rope = getattr(source, function, None)
        if rope is not None and not any(s is source for s, _, _ in patched):
            def shown(*args, rope=rope, **kwargs):
                q, k = rope(*args, **kwargs)
                recorder.rope(q, k)
                return q, k
            setattr(source, function, shown)
            patched.append((source, function, rope))
    try:
        with torch.no_grad(), float64() if dtype == "float64" else contextlib.nullcontext(), Functions():
            yield recorder
    finally:
        for handle in handles:
            handle.remove()
        for source, function, rope in patched:
            setattr(source, function, rope)
    if not writer.tensors:
        raise ValueError("nothing was captured: no stage of this model is reached by the hooks, or none was selected")
    tokens = [int(t) for t in tokens]
    short = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "float64": "f64"}.get(dtype, dtype)
    attention = getattr(model.config, "_attn_implementation", None)
    architecture = ARCHITECTURES.get(kind, kind.replace("_", ""))
    contract = f"transformers-{short}" + (f"+{architecture}" if short in ("bf16", "f16") and kind in OTHERWISE else "")
    writer.finish({
        "schema": SCHEMA,
        "engine": "transformers",
        "engine_version": f"transformers {transformers.__version__}, torch {torch.__version__}",
        "device": str(next(model.parameters()).device),
        "command": command,
        "model": {
            "name": name or os.path.basename(getattr(model.config, "_name_or_path", "") or ""),
            "architecture": architecture,
            "fingerprint": fingerprint,
        },
        "tokens": tokens,
        "prompt": prompt,
        "prompt_tokens": len(tokens) if prompt_tokens is None else prompt_tokens,
        "calls": recorder.calls,
        "contract": contract,
        "attention": attention,
        "flash_attention": "flash" in (attention or ""),
        "tensors": recorder.tensors,
    })


# --- The model of a GGUF file ----------------------------------------------------------------------------------------


# `general.architecture` -> the names of transformers' classes: of the configuration, of the model.
CLASSES = {
    "llama": ("LlamaConfig", "LlamaForCausalLM"),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM"),  # which is llama with experts
    "mistral3": ("Ministral3Config", "Ministral3ForCausalLM"),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM"),
    "qwen2moe": ("Qwen2MoeConfig", "Qwen2MoeForCausalLM"),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM"),
    "qwen3moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM"),
    "olmoe": ("OlmoeConfig", "OlmoeForCausalLM"),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM"),
    "gpt-oss": ("GptOssConfig", "GptOssForCausalLM"),
    "glm4moe": ("Glm4MoeConfig", "Glm4MoeForCausalLM"),
    "qwen3next": ("Qwen3NextConfig", "Qwen3NextForCausalLM"),
    "qwen35moe": ("Qwen3_5MoeTextConfig", "Qwen3_5MoeForCausalLM"),
    "qwen35": ("Qwen3_5TextConfig", "Qwen3_5ForCausalLM"),
    "deepseek2": ("DeepseekV2Config", "DeepseekV2ForCausalLM"),
    "deepseek3": ("DeepseekV3Config", "DeepseekV3ForCausalLM"),  # which is deepseek2 whose experts are chosen by sigmoids
}
# Those with linear attention.
LINEAR = ("qwen3next", "qwen35moe", "qwen35")
# Those of whose norms transformers keeps what is added to 1.
CENTRED = ("gemma3", *LINEAR)
# What llama.cpp has for a rope base that a file does not say.
ROPE_BASES = {"gemma3": 1e6}


def divided_by_a_tenth(value):
    """A float32 by 0.1 in float32, as llama.cpp divides it: what was multiplied by 0.1 to be written is there again."""
    single = lambda x: struct.unpack("<f", struct.pack("<f", x))[0]
    return single(single(value) / single(0.1))


class GgufModel:
    """What a GGUF file says of a model, in transformers' terms: its configuration and its weights."""

    def __init__(self, path):
        from gguf import GGUFReader

        self.path = path
        self.reader = GGUFReader(path)
        self.tensors = {t.name: t for t in self.reader.tensors}
        self.architecture = self.field("general.architecture")
        self.kind = self.architecture
        if self.architecture == "llama" and self.get("expert_count"):
            self.kind = "mixtral"
        elif self.architecture == "deepseek2" and self.get("expert_gating_func") == 2:
            self.kind = "deepseek3"
        if self.kind not in CLASSES:
            raise self.refused(f"--gguf understands {', '.join(CLASSES)}, found {self.architecture}")
        self.layers = self.get("block_count") - self.get("nextn_predict_layers", 0)  # these guess further tokens
        self.heads = self.get("attention.head_count")
        self.kv_heads = self.get("attention.head_count_kv", self.heads)
        self.head_dim = self.get("attention.key_length", self.get("embedding_length") // self.heads)

    def refused(self, why):
        return SystemExit(f"{self.path}: {why}")

    def field(self, name, default=None):
        if name not in self.reader.fields:
            return default
        value = self.reader.fields[name].contents()
        if isinstance(value, list) and value and all(v == value[0] for v in value):
            value = value[0]  # one for each layer
        if isinstance(value, list):
            raise self.refused(f"{name} differs between the layers")
        return value

    def get(self, name, default=None):
        return self.field(f"{self.architecture}.{name}", default)

    def each(self, name):
        """An array's entries, of a key that the file may not have."""
        field = self.reader.fields.get(f"{self.architecture}.{name}")
        return None if field is None else field.contents()

    def has(self, name):
        return f"blk.{self.layers - 1}.{name}" in self.tensors

    # The configuration.

    def rope(self):
        """The rotation of layers without a window, as `rope_parameters` has it."""
        base = self.get("rope.freq_base", ROPE_BASES.get(self.architecture, 1e4))
        kind, factor = self.get("rope.scaling.type"), self.get("rope.scaling.factor")
        known = ["type", "factor", "original_context_length", "yarn_beta_fast", "yarn_beta_slow", "yarn_log_multiplier"]
        for name in self.reader.fields:
            part = name.removeprefix(f"{self.architecture}.rope.scal")
            if part != name and part.removeprefix("ing.") not in known:
                raise self.refused(f"{name}: not understood")
        if kind == "none" or (kind in (None, "linear") and factor in (None, 0, 1)):
            return {"rope_type": "default", "rope_theta": base}
        if kind in (None, "linear"):  # a factor without a type is linear
            return {"rope_type": "linear", "rope_theta": base, "factor": factor}
        if kind != "yarn":
            raise self.refused(f"{self.architecture}.rope.scaling.type is {kind}; none, linear and yarn are understood")
        yarn = {"rope_type": "yarn", "rope_theta": base, "factor": factor}
        for theirs, ours in [("original_max_position_embeddings", "original_context_length"), ("beta_fast", "yarn_beta_fast"),
                             ("beta_slow", "yarn_beta_slow"), ("mscale_all_dim", "yarn_log_multiplier")]:
            if self.get(f"rope.scaling.{ours}") is not None:
                yarn[theirs] = self.get(f"rope.scaling.{ours}")
        if self.architecture == "deepseek2":
            # The file has a tenth of it, and models have as much of the other: the rotation is not stretched, the scale of q·k is.
            if "mscale_all_dim" not in yarn:
                raise self.refused("rope.scaling.yarn_log_multiplier is missing, without which nobody knows the scale of q·k")
            yarn["mscale_all_dim"] = yarn["mscale"] = divided_by_a_tenth(yarn["mscale_all_dim"])
        elif "mscale_all_dim" in yarn:
            yarn["mscale"] = 1.0  # the file has the denominator of the two
        if self.kind == "gpt-oss":
            yarn["truncate"] = False  # no key says so, the definition does
        return yarn

    def config(self, attention):
        """The arguments of the configuration."""
        experts, used = self.get("expert_count"), self.get("expert_used_count")
        ffn, rope = self.get("feed_forward_length"), self.rope()
        config = {
            "vocab_size": int(self.tensors["token_embd.weight"].shape[1]),
            "hidden_size": self.get("embedding_length"),
            "intermediate_size": ffn,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "rms_norm_eps": self.get("attention.layer_norm_rms_epsilon"),
            "max_position_embeddings": self.get("context_length"),
            "rope_theta": rope["rope_theta"],
            "rope_parameters": rope,
            "tie_word_embeddings": "output.weight" not in self.tensors,
            "attn_implementation": attention,
            **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),  # the defaults may be beyond the vocabulary
        }
        if experts:
            config |= {"num_experts_per_tok": used, "experts_implementation": "eager"}
        if self.kind in ("qwen3", "qwen3moe"):
            config["attention_bias"] = self.has("attn_q.bias")
        if self.kind == "mixtral":
            if not self.get("expert_weights_norm", True):
                raise self.refused("expert_weights_norm is false, and transformers' Mixtral divides by the sum always")
            config |= {"num_local_experts": experts}
        elif self.kind == "mistral3":
            # The temperature, which rises beyond the original context.
            rope["llama_4_scaling_beta"] = self.get("attention.temperature_scale", 0.0)
            rope.setdefault("original_max_position_embeddings", self.get("context_length"))
        elif self.kind == "qwen2moe":
            config |= {"num_experts": experts, "moe_intermediate_size": self.get("expert_feed_forward_length", ffn),
                       "shared_expert_intermediate_size": int(self.tensors["blk.0.ffn_gate_shexp.weight"].shape[1]),
                       "norm_topk_prob": bool(self.get("expert_weights_norm", False)), "decoder_sparse_step": 1, "mlp_only_layers": []}
        elif self.kind == "qwen3moe":
            config |= {"num_experts": experts, "moe_intermediate_size": self.get("expert_feed_forward_length"),
                       "norm_topk_prob": bool(self.get("expert_weights_norm", True)), "decoder_sparse_step": 1, "mlp_only_layers": []}
        elif self.kind == "olmoe":
            config |= {"num_experts": experts, "norm_topk_prob": bool(self.get("expert_weights_norm", False))}
            del config["head_dim"]  # which it does not know
        elif self.kind == "gemma3":
            window, period = self.get("attention.sliding_window"), self.get("attention.sliding_window_pattern", 6)
            sliding = [bool(window) and (n + 1) % period != 0 for n in range(self.layers)]
            # Layers with a window have a base of their own, and no scaling.
            local = {"rope_type": "default", "rope_theta": self.get("rope.freq_base_swa", 1e4)}
            # Where the file does not say what q·k is multiplied by, it is 1/√D, but in the model of 62 layers (27B).
            scaled_by = self.get("embedding_length") // self.heads if self.layers == 62 else self.head_dim
            config |= {"sliding_window": window or None, "query_pre_attn_scalar": scaled_by,
                       "layer_types": ["sliding_attention" if s else "full_attention" for s in sliding],
                       "rope_parameters": {"full_attention": rope, "sliding_attention": local}}
        elif self.kind == "gpt-oss":
            config |= {"num_local_experts": experts, "sliding_window": self.get("attention.sliding_window", 128)}
            config["intermediate_size"] = self.get("expert_feed_forward_length")
        elif self.kind == "glm4moe":
            turned = self.get("rope.dimension_count", self.head_dim) / self.head_dim
            rope["partial_rotary_factor"] = turned
            config |= {
                "n_routed_experts": experts, "moe_intermediate_size": self.get("expert_feed_forward_length"),
                "n_shared_experts": self.get("expert_shared_count"), "first_k_dense_replace": self.get("leading_dense_block_count"),
                "norm_topk_prob": bool(self.get("expert_weights_norm", False)),
                "routed_scaling_factor": self.get("expert_weights_scale", 1.0), "partial_rotary_factor": turned,
                "n_group": self.get("expert_group_count", 1), "topk_group": self.get("expert_group_used_count", 1),
                "attention_bias": self.has("attn_q.bias"), "use_qk_norm": self.has("attn_q_norm.weight"),
            }
        elif self.architecture == "deepseek2":
            if abs(config["rms_norm_eps"] - 1e-6) > 1e-12:
                raise self.refused("attention.layer_norm_rms_epsilon is not 1e-6, which transformers' norms of latents always add")
            k, v = ("key_length_mla", "value_length_mla") if self.has("attn_k_b.weight") else ("key_length", "value_length")
            turned, normed = self.get("rope.dimension_count"), bool(self.get("expert_weights_norm", False))
            groups, used_groups = self.get("expert_group_count", 1), self.get("expert_group_used_count", 1)
            config |= {
                "num_key_value_heads": self.heads, "q_lora_rank": self.get("attention.q_lora_rank"),
                "kv_lora_rank": self.get("attention.kv_lora_rank"), "qk_rope_head_dim": turned,
                "qk_nope_head_dim": self.get(f"attention.{k}") - turned, "v_head_dim": self.get(f"attention.{v}"),
                "n_routed_experts": experts, "moe_intermediate_size": self.get("expert_feed_forward_length"),
                "n_shared_experts": self.get("expert_shared_count"), "first_k_dense_replace": self.get("leading_dense_block_count", 0),
                "norm_topk_prob": normed, "routed_scaling_factor": self.get("expert_weights_scale", 0.0) or 1.0,
                "n_group": groups, "topk_group": used_groups,
            }
            del config["head_dim"]  # which is what turns
            if self.kind == "deepseek3":
                config |= {"rope_interleave": True, "num_mtp_layers": 0}
            elif normed:
                raise self.refused("expert_weights_norm is true, and transformers' DeepSeek V2 never divides by the sum")
            else:
                config["topk_method"] = "group_limited_greedy" if groups > 1 else "greedy"
        elif self.kind in LINEAR:
            if abs(config["rms_norm_eps"] - 1e-6) > 1e-12:
                raise self.refused("attention.layer_norm_rms_epsilon is not 1e-6, which transformers' L2 norm of q and k always adds")
            rope["partial_rotary_factor"] = self.get("rope.dimension_count", self.head_dim) / self.head_dim
            if sections := self.each("rope.dimension_sections"):  # which differ for images only
                rope["mrope_section"] = sections[:3]
            recurrent = self.each("attention.recurrent_layers")
            if recurrent is None:
                interval = self.get("full_attention_interval", 4)
                recurrent = [(n + 1) % interval != 0 for n in range(self.layers)]
            state, keys, values = self.get("ssm.state_size"), self.get("ssm.group_count"), self.get("ssm.time_step_rank")
            config |= {
                "layer_types": ["linear_attention" if r else "full_attention" for r in recurrent[:self.layers]],
                "partial_rotary_factor": rope["partial_rotary_factor"], "linear_conv_kernel_dim": self.get("ssm.conv_kernel"),
                "linear_key_head_dim": state, "linear_value_head_dim": self.get("ssm.inner_size") // values,
                "linear_num_key_heads": keys, "linear_num_value_heads": values,
            }
            if self.kind != "qwen35":
                if not self.get("expert_weights_norm", True):
                    raise self.refused("expert_weights_norm is false, and these models divide by the sum always")
                config |= {"num_experts": experts, "moe_intermediate_size": self.get("expert_feed_forward_length"),
                           "shared_expert_intermediate_size": self.get("expert_shared_feed_forward_length", ffn)}
            if ffn is None:  # which a model of experts alone does without
                del config["intermediate_size"]
        return config

    # The weights.

    def untiled(self, values, axis=0, first=0):
        """Values whose axis counts value heads of linear attention from `first` on, in transformers' order of these."""
        import torch

        keys, heads = self.get("ssm.group_count"), self.get("ssm.time_step_rank")
        if self.kind not in ("qwen35moe", "qwen35"):
            return values
        values = values.transpose(0, axis)
        tiled = values[first:].unflatten(0, (heads // keys, keys, -1)).transpose(0, 1).flatten(0, 2)
        return torch.cat((values[:first], tiled)).transpose(0, axis)

    def linear_attention(self, n):
        """A layer's weights of linear attention by transformers' names within the layer."""
        import torch

        weight = lambda name: self.weight(f"blk.{n}.{name}")
        keys, state = self.get("ssm.group_count"), self.get("ssm.state_size")
        first = 2 * keys * state
        qkv, z = weight("attn_qkv.weight"), weight("attn_gate.weight")
        if self.kind == "qwen3next":  # the rows of each key head together
            parts = [part.unflatten(0, (keys, -1)) for part in (qkv[:first // 2], qkv[first // 2:first], qkv[first:], z)]
            found = {"in_proj_qkvz.weight": torch.cat(parts, dim=1).flatten(0, 1), "in_proj_ba.weight": weight("ssm_ba.weight")}
        else:
            found = {"in_proj_qkv.weight": self.untiled(qkv, first=first), "in_proj_z.weight": self.untiled(z),
                     "in_proj_b.weight": self.untiled(weight("ssm_beta.weight")),
                     "in_proj_a.weight": self.untiled(weight("ssm_alpha.weight"))}
        found |= {
            "conv1d.weight": self.untiled(weight("ssm_conv1d.weight"), first=first)[:, None],
            "dt_bias": self.untiled(weight("ssm_dt.bias")),
            "A_log": self.untiled((-weight("ssm_a").double()).log()),  # the file has -exp(A_log)
            "norm.weight": weight("ssm_norm.weight"),
            "out_proj.weight": self.untiled(weight("ssm_out.weight"), axis=1),
        }
        return {f"linear_attn.{name}": values for name, values in found.items()}

    def latent_attention(self, n):
        """A layer's weights of latent attention by transformers' names within the layer, but those of q and of what attention gives."""
        import torch

        weight = lambda name: self.weight(f"blk.{n}.{name}.weight")
        parts = {"kv_a_proj_with_mqa": "attn_kv_a_mqa", "kv_a_layernorm": "attn_kv_a_norm"}
        if f"blk.{n}.attn_q_a.weight" in self.tensors:
            parts |= {"q_a_proj": "attn_q_a", "q_a_layernorm": "attn_q_a_norm", "q_b_proj": "attn_q_b"}
        found = {theirs: weight(ours) for theirs, ours in parts.items()}
        if self.has("attn_k_b.weight"):  # for each head what makes its key, transposed, and what makes its value
            found["kv_b_proj"] = torch.cat((weight("attn_k_b").transpose(1, 2), weight("attn_v_b")), dim=1).flatten(0, 1)
        else:
            found["kv_b_proj"] = weight("attn_kv_b")
        return {f"self_attn.{name}.weight": values for name, values in found.items()}

    def weight(self, name, heads=None):
        """A tensor's values in transformers' order, as gguf-py dequantizes them; `heads`: the converter reordered its rows."""
        import torch
        from gguf.quants import dequantize

        values = torch.from_numpy(dequantize(self.tensors[name].data, self.tensors[name].tensor_type).astype("float32"))
        if heads is None:
            return values
        # Rows (2i, 2i + 1) of each head are (i, i + D/2).
        return values.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)

    def layer_weights(self, n, names):
        """A layer's weights by transformers' names within the layer, of which `names` are all."""
        import torch

        permuted = self.architecture in ("llama", "mistral3")
        found = {}

        def take(theirs, ours, **kwargs):
            if f"blk.{n}.{ours}" in self.tensors:
                found[theirs] = self.weight(f"blk.{n}.{ours}", **kwargs)

        for part, ours, heads in [("q_proj", "attn_q", self.heads), ("k_proj", "attn_k", self.kv_heads), ("v_proj", "attn_v", None),
                                  ("o_proj", "attn_output", None)]:
            for kind in ("weight", "bias"):
                take(f"self_attn.{part}.{kind}", f"{ours}.{kind}", heads=heads if permuted else None)
        take("self_attn.sinks", "attn_sinks.weight")
        norms = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "input_layernorm": "attn_norm"}
        if self.kind == "gemma3":
            norms |= {"post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
                      "post_feedforward_layernorm": "post_ffw_norm"}
        else:
            norms["post_attention_layernorm"] = "post_attention_norm" if self.kind in ("gpt-oss", "glm4moe", *LINEAR) else "ffn_norm"
        for theirs, ours in norms.items():
            take(f"{theirs}.weight", f"{ours}.weight")
        if self.kind in CENTRED:  # the file has 1 + weight; in float64 the difference is exact
            found |= {name: values.double() - 1 for name, values in found.items() if name.endswith("norm.weight")}
        if f"blk.{n}.attn_kv_a_mqa.weight" in self.tensors:
            found |= self.latent_attention(n)
        if f"blk.{n}.ssm_a" in self.tensors:
            found |= self.linear_attention(n)
        mlp = "block_sparse_moe" if any(name.startswith("block_sparse_moe.") for name in names) else "mlp"
        for part in ("gate", "up", "down"):
            take(f"mlp.{part}_proj.weight", f"ffn_{part}.weight")
            for shared in ("shared_expert", "shared_experts"):
                if f"mlp.{shared}.{part}_proj.weight" in names:
                    take(f"mlp.{shared}.{part}_proj.weight", f"ffn_{part}_shexp.weight")
        if f"blk.{n}.ffn_gate_inp.weight" not in self.tensors:
            return found
        router = f"{mlp}.router" if f"{mlp}.router.weight" in names else f"{mlp}.gate"
        for kind in ("weight", "bias"):
            take(f"{router}.{kind}", f"ffn_gate_inp.{kind}")
        take(f"{router}.e_score_correction_bias", "exp_probs_b.bias")
        if f"blk.{n}.ffn_gate_inp_shexp.weight" in self.tensors:
            found["mlp.shared_expert_gate.weight"] = self.weight(f"blk.{n}.ffn_gate_inp_shexp.weight")[None]
        gate, up, down = (self.weight(f"blk.{n}.ffn_{part}_exps.weight") for part in ("gate", "up", "down"))  # [E, F, H], down [E, H, F]
        experts = f"{mlp}.experts"
        if self.kind == "gpt-oss":
            in_turn = lambda a, b: torch.stack((a, b), dim=2).flatten(1, 2)
            gate_bias, up_bias, down_bias = (self.weight(f"blk.{n}.ffn_{part}_exps.bias") for part in ("gate", "up", "down"))
            found[f"{experts}.gate_up_proj"] = in_turn(gate, up).transpose(1, 2)
            found[f"{experts}.gate_up_proj_bias"] = in_turn(gate_bias, up_bias)
            found[f"{experts}.down_proj"] = down.transpose(1, 2)
            found[f"{experts}.down_proj_bias"] = down_bias
        elif f"{experts}.gate_up_proj" in names:
            found[f"{experts}.gate_up_proj"] = torch.cat((gate, up), dim=1)
            found[f"{experts}.down_proj"] = down
        else:  # transformers 4: a module for each expert
            for e in range(gate.shape[0]):
                for part, values in (("gate", gate), ("up", up), ("down", down)):
                    found[f"{experts}.{e}.{part}_proj.weight"] = values[e]
        return found


def from_gguf(path, dtype, attention):
    """A model of transformers with the weights of a GGUF file, dequantized by gguf-py."""
    import torch
    import transformers

    file = GgufModel(path)
    config_class, model_class = (getattr(transformers, name, None) for name in CLASSES[file.kind])
    if model_class is None:
        raise file.refused(f"{file.architecture}: transformers {transformers.__version__} has no {CLASSES[file.kind][1]}")
    model = model_class(config_class(**file.config(attention)))
    model = model.to(torch.promote_types(dtype, torch.float32))  # rounding to 16 bits comes last
    # What an engine of the file makes of latents: keys and values, where it has the weight of both.
    model.makes_keys = file.has("attn_kv_b.weight")
    # With biases of q, k and v comes one of attention's output, which no GGUF file of these has.
    if file.kind in ("qwen3", "qwen3moe"):
        for layer in model.model.layers:
            layer.self_attn.o_proj.register_parameter("bias", None)
    names = set(model.state_dict())
    weights = {"model.embed_tokens.weight": file.weight("token_embd.weight"), "model.norm.weight": file.weight("output_norm.weight")}
    if file.kind in CENTRED:
        weights["model.norm.weight"] = weights["model.norm.weight"].double() - 1
    if "output.weight" in file.tensors:
        weights["lm_head.weight"] = file.weight("output.weight")
    for n in range(file.layers):
        layer = f"model.layers.{n}."
        within = {name.removeprefix(layer) for name in names if name.startswith(layer)}
        weights |= {layer + name: values for name, values in file.layer_weights(n, within).items()}
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # another shape
        raise file.refused(error) from None
    missing = [m for m in missing if not (m == "lm_head.weight" and "output.weight" not in file.tensors)]
    if missing or unexpected:
        raise file.refused(f"weights missing {missing[:3]}, unexpected {unexpected[:3]}")
    model.tie_weights()
    if file.kind == "gemma3" and file.get("attention.scale") is not None:  # no integer's root, which the configuration has
        for layer in model.model.layers:
            layer.self_attn.scaling = file.get("attention.scale")
    # Frequencies of rope stay f32, as in a model that transformers itself loads in another type, and what it keeps so besides.
    rotary = model.model.rotary_emb
    frequencies = {name: values.clone() for name, values in rotary.named_buffers()}
    types, parts = KEPT_WIDE.get(model.config.model_type, ((), ()))
    wide = {name for name in model.state_dict() if str(dtype).removeprefix("torch.") in types and any(part in name for part in parts)}
    wide = {name: values.clone() for name, values in model.state_dict().items() if name in wide}
    model = model.to(dtype).eval()
    for name, values in wide.items():
        module, _, last = name.rpartition(".")
        getattr(model.get_submodule(module), last).data = values
    for name, values in frequencies.items():
        if "rope_freqs.weight" in file.tensors:
            values = values / file.weight("rope_freqs.weight")
        setattr(rotary, name, values)
    return model


def gguf_fingerprint(path):
    """The identity that twinscope gives a model in one GGUF file: SHA-256 over the header (without its padding) and over
    the first and last 4 KiB of each tensor."""
    from gguf import GGUFReader

    end = 4096
    reader = GGUFReader(path)
    last = reader.tensors[-1].field
    digest = hashlib.sha256(reader.data[: last.offset + sum(int(part.nbytes) for part in last.parts)].tobytes())
    for tensor in reader.tensors:
        data = tensor.data.reshape(-1).view("uint8")
        digest.update(data[:end].tobytes() + data[max(len(data) - end, 0):].tobytes())
    return digest.hexdigest()


def run(model, tokens, decode):
    """Runs the prompt in one call and decodes greedily after it; `tokens` grows."""
    import torch

    device = next(model.parameters()).device
    # transformers 5 calls the argument `cache`, its predecessors `past_key_values`.
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    step, cache = list(tokens), None
    for n in range(decode + 1):
        output = model(input_ids=torch.tensor([step], device=device), use_cache=True, **{name: cache})
        cache = getattr(output, name)
        if n < decode:
            step = [int(output.logits[0, -1].argmax())]
            tokens.append(step[0])


def arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a directory or name that transformers loads")
    parser.add_argument("--gguf", metavar="FILE", help="a model in a GGUF file instead, of any family that twinscope runs")
    parser.add_argument("--out", required=True, metavar="FILE", help="the safetensors file to write")
    parser.add_argument("--prompt", help="the text to run, as the model's tokenizer reads it")
    parser.add_argument("--tokens", help="the token ids to run, 1,2,3, instead of a text")
    parser.add_argument("--decode", type=int, default=0, metavar="N", help="decode N tokens greedily after the prompt")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16", "float64"), default="float32",
                        help="float64 is float64 throughout, also where the model asks for float32: norms, softmax, angles, routers")
    parser.add_argument("--attn", choices=("eager", "sdpa"), default="eager", help="sdpa shows no scores")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--stages", metavar="LIST", help="only these stages, names or globs: layer_out,logits,router*")
    parser.add_argument("--layers", metavar="LIST", help="only these layers: 0,5-7,-1")
    parser.add_argument("--positions", default="all", metavar="LIST", help="only these positions: all, last, 0,5-9,-1")
    parser.add_argument("--modules", metavar="REGEX", help="also outputs of modules that are no stage")
    args = parser.parse_args(argv)
    if (args.model is None) == (args.gguf is None):
        parser.error("give either a model or --gguf")
    if (args.prompt is None) == (args.tokens is None):
        parser.error("give either --prompt or --tokens")
    if args.gguf and args.prompt:
        parser.error("--gguf has no tokenizer: give --tokens")
    return args


def tokens_sha256(tokens):
    """As twinscope's documents have it: of the ids in order, each as four bytes with the lowest first."""
    return hashlib.sha256(struct.pack(f"<{len(tokens)}I", *tokens)).hexdigest()


def main(argv):
    args = arguments(argv)
    with float64() if args.dtype == "float64" else contextlib.nullcontext():
        captured(args, argv)


def captured(args, argv):
    import torch

    dtype = getattr(torch, args.dtype)
    fingerprint = None
    if args.gguf:
        model = from_gguf(args.gguf, dtype, args.attn)
        tokens = [int(t) for t in args.tokens.split(",")]
        fingerprint = gguf_fingerprint(args.gguf)
    else:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype, attn_implementation=args.attn).eval()
        if hasattr(model, "set_experts_implementation"):
            model.set_experts_implementation("eager")
        if args.tokens:
            tokens = [int(t) for t in args.tokens.split(",")]
        else:
            tokens = AutoTokenizer.from_pretrained(args.model)(args.prompt)["input_ids"]
    model = model.to(args.device)
    if not tokens or not all(0 <= t < model.config.vocab_size for t in tokens):
        raise SystemExit(f"expected at least one token and ids below {model.config.vocab_size}, found {tokens}")
    prompt_tokens = len(tokens)
    layers = None if args.layers is None else set(chosen(args.layers, model.config.num_hidden_layers))
    positions = None if args.positions == "all" else set(chosen(args.positions, prompt_tokens + args.decode))
    with capture(
        model, args.out, tokens, args.prompt, prompt_tokens, args.stages and args.stages.split(","), layers, positions,
        args.modules, shlex.join([os.path.basename(__file__), *argv]), os.path.basename(args.gguf or args.model), fingerprint,
    ) as recorder:
        run(model, tokens, args.decode)
    print(f"{args.out}: {len(recorder.tensors)} tensors of {len(tokens)} tokens in {len(recorder.calls)} calls, "
          f"{args.dtype}, {args.attn} attention")
    print(f"prompt of {prompt_tokens} tokens, sha256 {tokens_sha256(tokens[:prompt_tokens])}")


if __name__ == "__main__":
    main(sys.argv[1:])
