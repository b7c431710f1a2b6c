#!/usr/bin/env python3
"""Ten bugs patched into transformers: what twinscope says of each, from all stages and from few.

    python3 bugs.py --gguf model.gguf --twinscope target/release/twinscope --out DIR

For each bug and type, and without a bug, it runs the model once, writes two captures (every stage; layer_out and logits
alone), imports them, and lets `twinscope diff` judge them. The table says for each which layer and stage, or which segment,
was named, which side, and which causes. Requires torch, transformers and gguf, as hf_transformers.py does.
"""

import argparse
import json
import os
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from hf_transformers import capture, from_gguf, gguf_fingerprint, run  # noqa: E402

# "fn main() {\n    let x = 5;" as the demo model's tokenizer reads it.
TOKENS = [422, 472, 345, 339, 293, 473, 588, 338, 223, 23, 29]
CAPTURES = {"all": None, "few": ["layer_out", "logits"]}
DTYPES = {"f32": "float32", "bf16": "bfloat16"}

# --- The bugs --------------------------------------------------------------------------------------------------------
# Each takes the model and the module of transformers that defines it, patches them, and returns what undoes the patch.


def replaced(owner, name, value):
    """Sets an attribute; returns what sets it back."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    return lambda: setattr(owner, name, before)


def rotate_adjacent(x):
    import torch

    return torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)


def rope_pairing(model, source):
    """Rope turns elements 2i and 2i+1 together instead of i and i + D/2, in every layer."""
    def rope(q, k, cos, sin, unsqueeze_dim=1):
        half = cos.shape[-1] // 2
        cos, sin = (x[..., :half].repeat_interleave(2, dim=-1).unsqueeze(unsqueeze_dim) for x in (cos, sin))
        return q * cos + rotate_adjacent(q) * sin, k * cos + rotate_adjacent(k) * sin
    return replaced(source, "apply_rotary_pos_emb", rope)


def rope_base(model, source):
    """Rope's base is 10,000 instead of the model's, in every layer."""
    import torch

    rotary = model.model.rotary_emb
    dim = 2 * rotary.inv_freq.shape[0]
    return replaced(rotary, "inv_freq", 1.0 / 10000.0 ** (torch.arange(0, dim, 2, dtype=torch.float) / dim))


def position_offset(model, source):
    """Queries are turned as if they stood one position later; keys are right. In every layer."""
    rotary, later = model.model.rotary_emb, {}
    right, rope = rotary.forward, source.apply_rotary_pos_emb

    def forward(x, position_ids):
        later["angles"] = right(x, position_ids + 1)
        return right(x, position_ids)

    def shifted(q, k, cos, sin, unsqueeze_dim=1):
        return rope(q, k, *later["angles"], unsqueeze_dim)[0], rope(q, k, cos, sin, unsqueeze_dim)[1]

    undo = [replaced(rotary, "forward", forward), replaced(source, "apply_rotary_pos_emb", shifted)]
    return lambda: [u() for u in undo]


def eps(model, source):
    """The norms add 1e-5 instead of 1e-6, everywhere."""
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 1e-5
    return lambda: None


def no_q_norm(model, source):
    """Layer 1 does not normalise its queries."""
    return replaced(model.model.layers[1].self_attn.q_norm, "forward", lambda x: x.clone())


def kv_head(model, source):
    """Head h of layer 2 reads key and value head h mod kv_heads instead of h / group."""
    attention, inside = model.model.layers[2].self_attn, []
    right, forward = source.repeat_kv, attention.forward

    def mapped(states, n):
        return states.repeat(1, n, 1, 1) if inside else right(states, n)

    def marked(*args, **kwargs):
        inside.append(True)
        try:
            return forward(*args, **kwargs)
        finally:
            inside.pop()

    undo = [replaced(source, "repeat_kv", mapped), replaced(attention, "forward", marked)]
    return lambda: [u() for u in undo]


def mask(model, source):
    """Every position sees the one after it, too, in every layer."""
    import torch

    right = source.eager_attention_forward

    def forward(module, query, key, value, attention_mask, *args, **kwargs):
        rows, keys = query.shape[2], key.shape[2]
        seen = torch.ones(rows, keys, dtype=torch.bool).tril(keys - rows + 1)
        attention_mask = torch.zeros(rows, keys, dtype=query.dtype).masked_fill(~seen, torch.finfo(query.dtype).min)
        return right(module, query, key, value, attention_mask[None, None], *args, **kwargs)
    return replaced(source, "eager_attention_forward", forward)


def no_renormalisation(model, source):
    """Layer 1 does not divide the chosen experts' probabilities by their sum."""
    return replaced(model.model.layers[1].mlp.gate, "norm_topk_prob", False)


def gate_up_swapped(model, source):
    """The experts of layer 3 take gate for up and up for gate."""
    import torch

    experts = model.model.layers[3].mlp.experts
    gate, up = experts.gate_up_proj.data.chunk(2, dim=1)  # [E, F, H]
    experts.gate_up_proj.data = torch.cat((up, gate), dim=1)
    return lambda: None


def other_expert(model, source):
    """Every expert of layer 2 has the weights of the next one."""
    experts = model.model.layers[2].mlp.experts
    for weights in (experts.gate_up_proj, experts.down_proj):
        weights.data = weights.data.roll(-1, dims=0)
    return lambda: None


# Name -> (the patch, the layer and the stages where the fault is: any of them is right).
BUGS = {
    "none": (lambda model, source: lambda: None, None, []),
    "rope-pairing": (rope_pairing, 0, ["q_rope", "k_rope"]),
    "rope-base": (rope_base, 0, ["q_rope", "k_rope"]),
    "position-offset": (position_offset, 0, ["q_rope"]),
    "eps": (eps, 0, ["attn_norm"]),
    "no-q-norm": (no_q_norm, 1, ["q_norm"]),
    "kv-head": (kv_head, 2, ["attn_scores"]),
    "mask": (mask, 0, ["attn_probs"]),
    "no-renormalisation": (no_renormalisation, 1, ["router_weights"]),
    "gate-up-swapped": (gate_up_swapped, 3, ["expert_gate", "expert_up"]),
    "other-expert": (other_expert, 2, ["expert_gate", "expert_up", "expert_down"]),
}


def captured(gguf, bug, dtype, tokens, path, stages, positions=None):
    """Runs the model with a bug and writes a capture; the logits of the chosen positions only, if any are."""
    import torch

    model = from_gguf(gguf, getattr(torch, dtype), "eager")
    source = sys.modules[type(model).__module__]
    undo = BUGS[bug][0](model, source)
    try:
        with capture(model, path, tokens, stages=stages, positions=positions, command=f"bugs.py: {bug}",
                     name=os.path.basename(gguf), fingerprint=gguf_fingerprint(gguf)):
            run(model, list(tokens), 0)
    finally:
        undo()


def judged(twinscope, gguf, directory):
    """What `diff` says of an imported trace: its JSON document."""
    command = [twinscope, "diff", gguf, "--reference", "cpu", "--subject", f"trace:{directory}", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        return {"error": done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]}
    return json.loads(done.stdout)


def row(document, bug):
    """What the table says of one document: where, the side, the causes, and whether the place is right."""
    _, layer, stages = BUGS[bug]
    if "error" in document:
        return {"where": document["error"][0], "side": "", "causes": "", "right": False}
    fault = document.get("first_fault")
    if fault is None:
        return {"where": "agrees", "side": "", "causes": "", "right": layer is None}
    segment = fault.get("segment") or {"hidden": []}
    names = [key.split(".")[-1] for key in segment["hidden"]] + [fault["stage"]]
    inside = any(name in stages for name in names)
    cause = fault.get("cause") or {}
    causes = [cause] + cause.get("others", []) if cause.get("reproduced") else []
    causes = [f"{c['id']} ({' and '.join(c['stages'])})" if c["stages"] else c["id"] for c in causes]
    where = fault["stage"] if len(names) < 2 else f"{names[0]} … {names[-1]}"
    return {"where": f"layer {fault['layer']} · {where}", "side": fault.get("side", ""),
            "causes": "; ".join(causes), "right": fault["layer"] == layer and inside}


def main(argv):
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", default=os.path.join(here, "models", "demo-moe-Q4_K_M.gguf"), metavar="FILE")
    parser.add_argument("--twinscope", metavar="PROGRAM", help="the built program; without it only captures are written")
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--bugs", default=",".join(BUGS), metavar="LIST")
    parser.add_argument("--dtypes", default=",".join(DTYPES), metavar="LIST")
    parser.add_argument("--tokens", default=",".join(map(str, TOKENS)), metavar="LIST")
    args = parser.parse_args(argv)
    tokens = [int(t) for t in args.tokens.split(",")]
    os.makedirs(args.out, exist_ok=True)
    rows = []
    for bug in args.bugs.split(","):
        for short in args.dtypes.split(","):
            for which, stages in CAPTURES.items():
                base = os.path.join(args.out, f"{bug}-{short}-{which}")
                captured(args.gguf, bug, DTYPES[short], tokens, base + ".safetensors", stages)
                if args.twinscope is None:
                    continue
                command = [args.twinscope, "import", "capture", base + ".safetensors", "--out", base, "--force"]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                document = judged(args.twinscope, args.gguf, base)
                with open(base + ".json", "w") as file:
                    json.dump(document, file)
                rows.append({"bug": bug, "type": short, "capture": which, **row(document, bug)})
    if rows:
        columns = ["bug", "type", "capture", "where", "side", "causes", "right"]
        print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
        for r in rows:
            print("| " + " | ".join({True: "yes", False: "no"}.get(r[c], str(r[c])) for c in columns) + " |")
        right = sum(r["right"] for r in rows)
        print(f"\n{right} of {len(rows)} places right")


if __name__ == "__main__":
    main(sys.argv[1:])
