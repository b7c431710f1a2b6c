#!/usr/bin/env python3
"""Holds the tiny models of tests/families against llama.cpp's converter.

    python3 -m venv venv && venv/bin/pip install torch transformers gguf safetensors sentencepiece
    venv/bin/python scripts/converted.py LLAMA_CPP            # its sources: https://github.com/ggml-org/llama.cpp
    venv/bin/python scripts/converted.py LLAMA_CPP --families gpt-oss,glm4moe --full

`scripts/goldens.py` writes these files itself, as the converter would. Here the converter does: for each family transformers' model is built from
the GGUF file, as `capture/hf_transformers.py --gguf` builds it, saved as people publish models (config.json and safetensors), and taken through
`convert_hf_to_gguf.py --outtype f32`. What comes out has to have the tensors of the file in tests/families, with the values that gguf-py dequantizes
of them, to the bit but where both compute, and those of its keys that decide what is computed. Only the vocabulary is left out: the models have none.

The exit code is 1 if a tensor or a key is another.
"""

import argparse
import io
import contextlib
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent

# Keys that these files have beyond what the converter writes: of layers that guess further tokens, and two by which Gemma's file asks for what no
# published one does (llama.cpp reads them; it has a scale and a pattern of its own where there are none).
BEYOND = (".block_count", ".nextn_predict_layers", "gemma3.attention.scale", "gemma3.attention.sliding_window_pattern")

# A value that is made by exp or a logarithm on one way and the other way back: a few steps of f32.
COMPUTED = 1e-6


def read(path):
    """A file's tensors, dequantized, and its keys."""
    import gguf

    reader = gguf.GGUFReader(path)
    tensors = {t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32) for t in reader.tensors}
    keys = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    return tensors, keys


def published(model, family, folder):
    """Saves a model as people publish it, with what a configuration made of a GGUF file does not say of it."""
    import json

    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    if family == "llama3":
        # `goldens.py` has its factors; the converter makes them of these.
        config["rope_parameters"] |= {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                      "original_max_position_embeddings": 64}
    if family == "deepseek3":
        config["scoring_func"] = "sigmoid"  # as DeepSeek V3's own has it
    if family in ("qwen3next", "qwen35moe"):
        config["full_attention_interval"] = 2  # transformers 5 has `layer_types` instead, from which the converter does not take it
    (folder / "config.json").write_text(json.dumps(config))
    # Of Gemma's embedding the converter keeps as many rows as there are tokens.
    vocabulary = {str(n): n for n in range(model.config.vocab_size)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": []}))


def subclasses(cls):
    return {cls}.union(*map(subclasses, cls.__subclasses__()))


def converted(folder):
    """What the converter makes of a saved model: the path of a file."""
    import gguf
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class

    hparams = ModelBase.load_hparams(folder, False)
    cls = get_model_class(get_model_architecture(hparams, ModelType.TEXT))
    for every in subclasses(ModelBase):
        every.set_vocab = lambda self: None
        if hasattr(every, "no_mtp"):
            every.no_mtp = True  # layers that guess further tokens, which transformers does not load
    out = folder / "converted.gguf"
    with torch.inference_mode():
        cls(folder, gguf.LlamaFileType.ALL_F32, out, eager=True).write()
    return out


def as_written_today(tensors, made, keys):
    """Of the file's tensors those that the converter can have made: no layers that guess further tokens; of latent attention's keys and values, in
    one weight in older files, two weights."""
    arch = keys["general.architecture"]
    layers = keys[f"{arch}.block_count"] - keys.get(f"{arch}.nextn_predict_layers", 0)
    kept = {}
    for name, values in tensors.items():
        block = int(name.split(".")[1]) if name.startswith("blk.") else 0
        if block >= layers:
            continue
        if name.endswith("attn_kv_b.weight") and name not in made:
            rest = name.removesuffix("kv_b.weight")
            heads, width, rank = made[rest + "v_b.weight"].shape
            joint = values.reshape(heads, -1, rank)
            kept[rest + "k_b.weight"] = joint[:, :-width].transpose(0, 2, 1)
            kept[rest + "v_b.weight"] = joint[:, -width:]
            continue
        kept[name] = values
    return kept


def compare(ours, theirs):
    """Lines that say what differs."""
    (tensors, keys), (made, made_keys) = ours, theirs
    tensors = as_written_today(tensors, made, keys)
    for name in sorted(tensors.keys() | made.keys()):
        if name not in made or name not in tensors:
            yield f"{name}: only {'in tests/families' if name in tensors else 'made by the converter'}"
            continue
        a, b = tensors[name], made[name]
        if a.size != b.size or [d for d in a.shape if d > 1] != [d for d in b.shape if d > 1]:
            yield f"{name}: {a.shape}, by the converter {b.shape}"
        elif not np.array_equal(a.ravel(), b.ravel()):
            off = np.max(np.abs(a.ravel() - b.ravel())) / max(np.max(np.abs(a)), 1e-30)
            if off > COMPUTED:
                yield f"{name}: off by {off:.1e} of its largest value"
    arch = keys["general.architecture"]
    for name in sorted(key for key in keys if key == "general.architecture" or key.startswith(f"{arch}.")):
        a, b = keys[name], made_keys.get(name)
        if isinstance(a, (int, float)) and isinstance(b, (int, float)):
            same = abs(a - b) <= 1e-6 * abs(a)
        else:
            same = a == b
        predicts = f"{arch}.nextn_predict_layers" in keys
        if not same and not (name.endswith(BEYOND) and (predicts or not name.endswith(BEYOND[:2]))):
            yield f"{name}: {a}, by the converter {b}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("llama_cpp", type=Path)
    parser.add_argument("--families", help="only these, comma-separated")
    parser.add_argument("--full", action="store_true", help="what the converter says, too")
    args = parser.parse_args()
    # The converter needs the gguf-py beside it.
    sys.path[:0] = [str(args.llama_cpp / "gguf-py"), str(args.llama_cpp), str(ROOT / "capture")]
    import hf_transformers as capture

    files = sorted(f for f in (ROOT / "tests" / "families").glob("*.gguf") if f.with_suffix(".safetensors").exists())
    if args.families:
        files = [f for f in files if f.stem in args.families.split(",")]
    wrong = 0
    for path in files:
        said = io.StringIO()
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            model = capture.from_gguf(str(path), torch.float32, "eager")
            published(model, path.stem, Path(folder))
            try:
                made = read(converted(Path(folder)))
            except Exception as e:  # whatever the converter meets is what is to be told
                made, lines = None, [f"{type(e).__name__}: {e}"]
        ours = read(path)
        if made:
            lines = list(compare(ours, made))
        wrong += bool(lines)
        print(f"{path.stem:<14} {len(ours[0]):>4} tensors  {'as converted' if not lines else ''}", flush=True)
        for line in lines:
            print(f"  {line}")
        if args.full or (not made and lines):
            print(said.getvalue()[-2000:])
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
