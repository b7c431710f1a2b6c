#!/usr/bin/env python3
"""Holds the goldens against transformers' own code, in float64: every stage of every model that a hook reaches.

    python3 -m venv venv && venv/bin/pip install torch transformers gguf safetensors
    venv/bin/python scripts/goldens_transformers.py                        # tests/families
    venv/bin/python scripts/goldens_transformers.py --families gpt-oss,glm4moe --full
    venv/bin/python scripts/goldens_transformers.py --gguf models/demo-moe-Q4_K_M.gguf tests/golden/*.safetensors

`scripts/goldens.py` computes transformers' definitions in numpy. Here nothing is computed: for each family the classes of
transformers are built from the GGUF file, as `capture/hf_transformers.py --gguf` builds them, run on the golden's tokens with
eager attention and eager experts, and what its hooks show is compared with what `goldens.py` wrote. The weights are
gguf-py's, in transformers' order; q and k, and the value heads of linear attention, are compared in the file's order, which is
what the goldens have. Where a file has q absorbed by what makes keys, transformers makes the keys: `q_absorbed` and `attn_latent` are
what no hook reaches there, and what follows from them, the scores and the context, is compared.

transformers asks for float32 in places whatever a model's type: norms, softmax of attention and router, the routers of GLM and
DeepSeek, cosines
and sines, the frequencies of rope, the delta rule. All of these requests are met in float64 (`float64` of the capture script), so what is left is the rounding of
float64 and the definitions.

The exit code is 1 if a stage is beyond the bound, or a golden has no value for what the hooks show, or none for a whole family.
"""

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "capture"))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors import safe_open  # noqa: E402

import hf_transformers as capture  # noqa: E402

# Two programs in float64 that do the same sums in another order: 2⁻⁵³ ≈ 1e-16 an operation, of some hundred that follow one
# another, and cancellation that loses at most three digits in these models. (1e-16 · 1e3)² = 1e-26.
# One operation in float32 anywhere is (2⁻²⁵)² ≈ 1e-15: eleven orders above.
BOUND = 1e-26

# What a file does not say of how its frequency factors came about: `llama3_factors` in goldens.py, as transformers takes it.
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}


def tensors(path):
    """The tensors of a safetensors file, and its metadata."""
    with safe_open(path, "numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()


def computed(gguf, tokens):
    """What transformers computes of the tokens, by the goldens' names; the model, too."""
    with tempfile.TemporaryDirectory() as folder, capture.float64():
        out = str(Path(folder) / "run.safetensors")
        model = capture.from_gguf(str(gguf), torch.float64, "eager")
        with capture.capture(model, out, tokens):
            capture.run(model, list(tokens), 0)
        found, _ = tensors(out)
    narrow = {name: values.dtype for name, values in found.items() if values.dtype not in (np.float64, np.int64)}
    assert not narrow, f"not in float64: {narrow}"
    return {name.removesuffix("@0"): values for name, values in found.items()}, model


def nmse(expected, found):
    return float(((expected - found) ** 2).sum() / (expected ** 2).sum())


def compared(golden, found):
    """The largest nmse of each stage over the layers, with the layer; what only one of both has."""
    worst = {}
    for name in golden.keys() & found.keys():
        expected, values = golden[name], found[name]
        stage, layer = name.rsplit(".", 1)[-1], name.rsplit(".", 1)[0] if "." in name else ""
        if expected.shape != values.shape:
            error = np.inf
        elif stage == "router_ids":
            error = 0.0 if (expected == values).all() else np.inf
        else:
            error = nmse(expected, values)
        if error >= worst.get(stage, (-1.0, ""))[0]:
            worst[stage] = (error, layer)
    of = lambda names: sorted({name.rsplit(".", 1)[-1] for name in names})
    return worst, of(golden.keys() - found.keys()), of(found.keys() - golden.keys())


def llama3_factors(gguf, model):
    """How far the file's frequency factors are from what transformers' `llama3` makes of the parameters, relative."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    with capture.float64():
        config = model.config
        config.rope_parameters = LLAMA3 | {"rope_theta": config.rope_parameters["rope_theta"]}
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
        return float((scaled / model.model.rotary_emb.inv_freq - 1).abs().max())


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=ROOT / "tests" / "families", metavar="DIR")
    parser.add_argument("--families", metavar="LIST", help="only these: llama,gpt-oss")
    parser.add_argument("--gguf", type=Path, metavar="FILE", help="another model instead, with its goldens")
    parser.add_argument("goldens", nargs="*", type=Path, help="the goldens of --gguf")
    parser.add_argument("--bound", type=float, default=BOUND, help="the largest nmse that passes (default %(default)s)")
    parser.add_argument("--full", action="store_true", help="a row for every stage, not only for the worst")
    args = parser.parse_args(argv)
    if (args.gguf is None) != (not args.goldens):
        parser.error("--gguf and goldens belong together")
    torch.set_num_threads(1)
    if args.gguf:
        pairs = [(path.stem, args.gguf, path) for path in args.goldens]
    else:
        goldens = sorted(args.directory.glob("*.safetensors"))
        pairs = [(path.stem, path.with_suffix(".gguf"), path) for path in goldens]
        if args.families:
            pairs = [pair for pair in pairs if pair[0] in args.families.split(",")]
    if not pairs or (args.families and len(pairs) != len(set(args.families.split(",")))):
        raise SystemExit(f"{args.directory}: no goldens{' of some of ' + args.families if args.families else ''}")
    print(f"transformers {transformers.__version__}, torch {torch.__version__}, float64; bound of the nmse {args.bound:.0e}\n")
    print("| family | class | stage | layer | worst nmse | |\n|---|---|---|---|---|---|")
    failed, notes = 0, []
    for family, gguf, path in pairs:
        golden, metadata = tensors(path)
        found, model = computed(gguf, [int(t) for t in metadata["tokens"].split(",")])
        worst, hidden, unknown = compared(golden, found)
        rows = sorted(worst.items(), key=lambda row: -row[1][0])
        for stage, (error, layer) in rows if args.full else rows[:1] + [r for r in rows[1:] if not r[1][0] <= args.bound]:
            passes = error <= args.bound
            failed += not passes
            print(f"| {family} | {type(model).__name__} | {stage} | {layer or 'model'} | {error:.1e} | {'ok' if passes else 'DIFFERS'} |")
        failed += bool(unknown) + (not worst)
        shown = len(golden.keys() & found.keys())
        notes.append(f"{family}: {shown} of {len(golden)} values" + (f"; no hook reaches {', '.join(hidden)}" if hidden else "")
                     + (f"; no golden has {', '.join(unknown)}" if unknown else ""))
        if family == "llama3":
            # The file's factors are f32: half a unit in the last place.
            error = llama3_factors(gguf, model)
            failed += error > 2**-24
            notes.append(f"{family}: frequencies are those of transformers' llama3 within {error:.1e}, "
                         f"{'within' if error <= 2**-24 else 'DIFFERS: beyond'} the 2⁻²⁴ = 6.0e-8 of factors in f32")
    print("\n" + "\n".join(f"- {note}" for note in notes))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
