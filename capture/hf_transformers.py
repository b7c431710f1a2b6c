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
are there with eager attention, the inside of the experts with the eager implementation of experts.
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

# A module's name within its layer -> the stage that its output is. A module whose output is a tuple shows its first.
LAYER_MODULES = {
    "": "layer_out",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "q_proj",
    "self_attn.k_proj": "k_proj",
    "self_attn.v_proj": "v_proj",
    "self_attn.q_norm": "q_norm",
    "self_attn.k_norm": "k_norm",
    "self_attn.o_proj": "attn_out",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate": "router_logits",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
}
MODEL_MODULES = {"embed_tokens": "embedding", "norm": "final_norm", "lm_head": "logits"}
# A module's input -> the stage that it is.
LAYER_INPUTS = {
    "self_attn.o_proj": "attn_context",
    "post_attention_layernorm": "attn_residual",
    "mlp.down_proj": "ffn_act",
}
# The module whose output is the whole feed-forward part depends on whether it has experts.
FEED_FORWARD = {True: "moe_out", False: "ffn_out"}


def place(name):
    """A module's layer and its name within it: `model.layers.3.mlp.gate` is (3, "mlp.gate"), `model.norm` (None, "norm")."""
    match = re.fullmatch(r"(?:.*\.)?layers\.(\d+)(?:\.(.*))?", name)
    return (int(match[1]), match[2] or "") if match else (None, name.rsplit(".", 1)[-1])


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
        self.inside = []  # the modules whose forward is running, outermost first: (layer, name within it)
        self.experts = None  # the experts' rows of the call that is running
        config = getattr(model.config, "text_config", model.config)
        self.expert_ffn = getattr(config, "moe_intermediate_size", None) or getattr(config, "intermediate_size", 0)
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

    def enter(self, layer, name):
        import torch

        def hook(module, args, kwargs):
            self.inside.append((layer, name))
            if layer is not None and name in LAYER_INPUTS and args:
                self.keep(layer, LAYER_INPUTS[name], rows_of(args[0]))
            if name == "mlp.experts":
                tensors = [a for a in [*args, *kwargs.values()] if isinstance(a, torch.Tensor)]
                ids = next((t for t in tensors if not t.is_floating_point()), None)
                self.experts = None if ids is None else Experts(ids, self.expert_ffn)
        return hook

    def leave(self, layer, name):
        import torch

        def hook(module, args, kwargs, output):
            self.inside.pop()
            outputs = output if isinstance(output, (tuple, list)) else (output,)
            first = outputs[0]
            if not isinstance(first, torch.Tensor):
                first = getattr(output, "last_hidden_state", None)
                if first is None:
                    return
            if layer is None:
                stage = MODEL_MODULES.get(name)
            elif name == "mlp":
                stage = FEED_FORWARD[hasattr(module, "experts")]
            else:
                stage = LAYER_MODULES.get(name)
            if stage in ("q_proj", "k_proj", "v_proj") and getattr(module, "bias", None) is not None:
                stage = stage.replace("proj", "bias")  # the module adds it
            if stage is not None:
                self.keep(layer, stage, rows_of(first))
            elif self.modules is not None and self.modules.search(name):
                self.keep(layer, name, rows_of(first))
            if name == "self_attn" and len(outputs) > 1 and isinstance(outputs[1], torch.Tensor):
                self.keep(layer, "attn_probs", outputs[1][0], axis=1)
            if name == "mlp.gate" and len(outputs) == 3:  # logits, weights, ids
                self.keep(layer, "router_weights", rows_of(outputs[1]))
                self.keep(layer, "router_ids", rows_of(outputs[2]))
            if name == "mlp.experts" and self.experts is not None:
                for stage, values in self.experts.stages():
                    self.keep(layer, stage, values)
                self.experts = None
        return hook

    def function(self, name, args, kwargs, output):
        """A function of torch that the running module called."""
        layer, within = self.inside[-1] if self.inside else (None, "")
        if layer is None:
            return
        if name == "softmax" and within == "self_attn" and args[0].dim() == 4:
            scores = args[0][0]  # [heads, T, S], with the mask added: entries beyond a position stand for nothing
            self.keep(layer, "attn_scores", scores.tril(scores.shape[2] - scores.shape[1]), axis=1)
        elif name == "softmax" and within in ("mlp.gate", "mlp"):
            self.keep(layer, "router_probs", rows_of(output))
        elif name == "topk" and within == "mlp":
            self.keep(layer, "router_ids", rows_of(output[1]))
        elif self.experts is not None:
            self.experts.function(name, args, output)

    def rope(self, q, k):
        """Queries and keys after rope: [1, heads, T, D]."""
        layer = next((layer for layer, _ in reversed(self.inside) if layer is not None), None)
        for stage, x in (("q_rope", q), ("k_rope", k)):
            if layer is not None and x.dim() == 4:
                self.keep(layer, stage, x[0].transpose(0, 1).flatten(1))


class Experts:
    """Puts the experts' rows in the order of router_ids: each expert computes those of the tokens that chose it.

    The eager implementation asks `where` which slot of which token an expert has, and then calls `linear` for its products:
    gate and up in one or in two, then down."""

    def __init__(self, ids, ffn):
        self.ids, self.ffn = ids.reshape(-1, ids.shape[-1]), ffn  # ids [T, K]
        self.place, self.products, self.fused = None, 0, False
        self.values = {}

    def function(self, name, args, output):
        if name in ("where", "nonzero") and isinstance(output, tuple) and len(output) == 2:
            self.place, self.products, self.fused = output, 0, False
        elif name == "linear" and self.place is not None and output.shape[0] == self.place[0].shape[0]:
            self.products += 1
            if self.products == 1 and output.shape[-1] == 2 * self.ffn:
                self.fused = True
                for stage, values in zip(("expert_gate", "expert_up"), output.chunk(2, dim=-1)):
                    self.put(stage, values)
            elif self.products == (2 if self.fused else 3):
                self.put("expert_act", args[0])
                self.put("expert_down", output)
            elif not self.fused and self.products < 3:
                self.put("expert_gate" if self.products == 1 else "expert_up", output)

    def put(self, stage, rows):
        import torch

        slot, token = self.place
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
def capture(model, out, tokens, prompt=None, prompt_tokens=None, stages=None, layers=None, positions=None, modules=None,
            command="", name=None, fingerprint=None):
    """Captures what `model` computes in the block, and writes the file `out` at its end.

    `tokens` are the ids that the block runs, all calls together; it may be a list that grows until the block ends.
    `stages` are names or globs, `layers` and `positions` sets of numbers; None is all. `modules` is a regular expression:
    outputs of modules that match and are no stage are kept under the module's name."""
    import torch
    import transformers
    from torch.overrides import TorchFunctionMode

    kind = getattr(model.config, "model_type", "")
    if kind in ("gpt_oss", "glm4_moe", "glm4v_moe", "glm4v_moe_text", "solar_open"):
        raise SystemExit(f"{kind}: its scores or its router's numbers are not where the hooks look for them; capture it with a rules file "
                         "of your own (see capture/README.md)")
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
        rope = getattr(source, "apply_rotary_pos_emb", None)
        if rope is not None and not any(s is source for s, _ in patched):
            def shown(*args, rope=rope, **kwargs):
                q, k = rope(*args, **kwargs)
                recorder.rope(q, k)
                return q, k
            source.apply_rotary_pos_emb = shown
            patched.append((source, rope))
    try:
        with torch.no_grad(), Functions():
            yield recorder
    finally:
        for handle in handles:
            handle.remove()
        for source, rope in patched:
            source.apply_rotary_pos_emb = rope
    if not writer.tensors:
        raise ValueError("nothing was captured: no stage of this model is reached by the hooks, or none was selected")
    tokens = [int(t) for t in tokens]
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    short = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "float64": "f64"}.get(dtype, dtype)
    attention = getattr(model.config, "_attn_implementation", None)
    writer.finish({
        "schema": SCHEMA,
        "engine": "transformers",
        "engine_version": f"transformers {transformers.__version__}, torch {torch.__version__}",
        "device": str(next(model.parameters()).device),
        "command": command,
        "model": {
            "name": name or os.path.basename(getattr(model.config, "_name_or_path", "") or ""),
            "architecture": getattr(model.config, "model_type", "").replace("_", ""),
            "fingerprint": fingerprint,
        },
        "tokens": tokens,
        "prompt": prompt,
        "prompt_tokens": len(tokens) if prompt_tokens is None else prompt_tokens,
        "calls": recorder.calls,
        "contract": f"transformers-{short}",
        "attention": attention,
        "flash_attention": "flash" in (attention or ""),
        "tensors": recorder.tensors,
    })


# --- The model of a GGUF file ----------------------------------------------------------------------------------------


def from_gguf(path, dtype, attention):
    """A Qwen3 or Qwen3-MoE model of transformers with the weights of a GGUF file, dequantized by gguf-py."""
    import numpy
    import torch
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

    reader = GGUFReader(path)
    field = lambda name, default=None: reader.fields[name].contents() if name in reader.fields else default
    architecture = field("general.architecture")
    if architecture not in ("qwen3", "qwen3moe"):
        raise SystemExit(f"{path}: --gguf understands qwen3 and qwen3moe, found {architecture}")
    get = lambda name, default=None: field(f"{architecture}.{name}", default)
    tensors = {t.name: t for t in reader.tensors}
    weight = lambda name: torch.from_numpy(dequantize(tensors[name].data, tensors[name].tensor_type).astype(numpy.float32))

    embedding = weight("token_embd.weight")
    layers = get("block_count")
    common = {
        "vocab_size": embedding.shape[0],
        "hidden_size": get("embedding_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": get("attention.head_count"),
        "num_key_value_heads": get("attention.head_count_kv"),
        "head_dim": get("attention.key_length"),
        "rms_norm_eps": get("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": get("context_length"),
        "rope_theta": get("rope.freq_base"),
        "rope_parameters": {"rope_type": "default", "rope_theta": get("rope.freq_base")},
        "tie_word_embeddings": "output.weight" not in tensors,
        "attn_implementation": attention,
    }
    if architecture == "qwen3moe":
        config = Qwen3MoeConfig(
            **common, num_experts=get("expert_count"), num_experts_per_tok=get("expert_used_count"),
            moe_intermediate_size=get("expert_feed_forward_length"), norm_topk_prob=True, decoder_sparse_step=1,
            mlp_only_layers=[], experts_implementation="eager",
        )
        model = Qwen3MoeForCausalLM(config)
    else:
        model = Qwen3ForCausalLM(Qwen3Config(**common, intermediate_size=get("feed_forward_length")))
    names = {"model.embed_tokens.weight": embedding, "model.norm.weight": weight("output_norm.weight")}
    if "output.weight" in tensors:
        names["lm_head.weight"] = weight("output.weight")
    attention_weights = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
                         "q_norm": "attn_q_norm", "k_norm": "attn_k_norm"}
    for n in range(layers):
        block, layer = lambda name: weight(f"blk.{n}.{name}.weight"), f"model.layers.{n}"
        names[f"{layer}.input_layernorm.weight"] = block("attn_norm")
        names[f"{layer}.post_attention_layernorm.weight"] = block("ffn_norm")
        for theirs, ours in attention_weights.items():
            names[f"{layer}.self_attn.{theirs}.weight"] = block(ours)
        if architecture == "qwen3":
            for part in ("gate", "up", "down"):
                names[f"{layer}.mlp.{part}_proj.weight"] = block(f"ffn_{part}")
            continue
        names[f"{layer}.mlp.gate.weight"] = block("ffn_gate_inp")
        gate, up, down = (block(f"ffn_{part}_exps") for part in ("gate", "up", "down"))  # [E, F, H], down [E, H, F]
        if f"{layer}.mlp.experts.gate_up_proj" in model.state_dict():
            names[f"{layer}.mlp.experts.gate_up_proj"] = torch.cat((gate, up), dim=1)
            names[f"{layer}.mlp.experts.down_proj"] = down
        else:  # transformers 4: a module for each expert
            for e in range(gate.shape[0]):
                for part, values in (("gate", gate), ("up", up), ("down", down)):
                    names[f"{layer}.mlp.experts.{e}.{part}_proj.weight"] = values[e]
    missing, unexpected = model.load_state_dict(names, strict=False)
    missing = [m for m in missing if not (m == "lm_head.weight" and common["tie_word_embeddings"])]
    if missing or unexpected:
        raise SystemExit(f"{path}: weights missing {missing[:3]}, unexpected {unexpected[:3]}")
    model.tie_weights()
    # Frequencies of rope stay f32, as in a model that transformers itself loads in another type.
    frequencies = model.model.rotary_emb.inv_freq.clone()
    model = model.to(dtype).eval()
    model.model.rotary_emb.inv_freq = frequencies
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
    parser.add_argument("--gguf", metavar="FILE", help="a qwen3 or qwen3moe model in a GGUF file instead")
    parser.add_argument("--out", required=True, metavar="FILE", help="the safetensors file to write")
    parser.add_argument("--prompt", help="the text to run, as the model's tokenizer reads it")
    parser.add_argument("--tokens", help="the token ids to run, 1,2,3, instead of a text")
    parser.add_argument("--decode", type=int, default=0, metavar="N", help="decode N tokens greedily after the prompt")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16", "float64"), default="float32")
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


def main(argv):
    args = arguments(argv)
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


if __name__ == "__main__":
    main(sys.argv[1:])
