#!/usr/bin/env python3
"""Writes tests/data/odd_files/llama.cpp.safetensors: what llama.cpp computes of files that are not quite as its converter writes them.

    python3 -m venv venv && venv/bin/pip install numpy safetensors gguf llama-cpp-python
    venv/bin/python scripts/odd_files.py target/release/twinscope tests/data/odd_files

cases.json says what the files are: a model of random weights (`synth`), and for each case keys that are set or removed, biases of q, k and
v, and scales beside weights. Of each file that llama.cpp opens, the logits of the last token are kept under the case's name; those that it
refuses are listed on stdout. All weights are F32, and so is its KV cache: it multiplies in float32, and not in int8 as beside quantized weights.
So are those of the models of tests/families whose experts' gate and up are put into one tensor.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import dequantize
from safetensors.numpy import load_file, save_file

TYPES = {"f32": GGUFValueType.FLOAT32, "u32": GGUFValueType.UINT32, "bool": GGUFValueType.BOOL, "str": GGUFValueType.STRING}

# Of tests/families: those whose loader in llama.cpp takes `ffn_gate_up_exps`.
JOINT = ["qwen35moe", "qwen3next", "deepseek3"]
# Within every vocabulary of these.
JOINT_TOKENS = [5, 17, 33, 41, 6, 0, 8]


def written(case, base, path):
    """The file of a case: `base` with the case's changes."""
    reader = GGUFReader(base)
    keys = {f.name: (f.contents(), f.types) for f in reader.fields.values() if not f.name.startswith("GGUF.")}
    for name in case.get("remove", []):
        del keys[name]
    for name, (kind, value) in case.get("set", {}).items():
        if kind == "u32[]":
            keys[name] = (value, [GGUFValueType.ARRAY, GGUFValueType.UINT32])
        elif kind == "bytes":
            keys[name] = (bytes.fromhex("61ff"), [GGUFValueType.STRING])
        else:
            keys[name] = (value, [TYPES[kind]])
    writer = GGUFWriter(path, "qwen3moe")
    for name, (value, types) in keys.items():
        if name == "general.architecture":
            continue
        if types[0] == GGUFValueType.ARRAY:
            writer.add_key_value(name, value, types[0], sub_type=types[-1])
        else:
            writer.add_key_value(name, value, types[0])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.ascontiguousarray(tensor.data))
        # [H, rows]: the bias is as long as the matrix has rows.
        matrix = tensor.name.removesuffix(".weight")
        for key, ending in (("scales", "scale"), ("input_scales", "input_scale")):
            if matrix.split(".")[-1] in case.get(key, []):
                experts = int(tensor.shape[2]) if len(tensor.shape) > 2 else 1
                name = f"{matrix}.{ending}"
                values = [np.float32(0.5) + np.float32((len(name) * 7 + e * 3) % 15) / np.float32(10) for e in range(experts)]
                writer.add_tensor(name, np.array(values, np.float32))
        if "bias" in case and matrix.endswith(("attn_q", "attn_k", "attn_v")):
            writer.add_tensor(matrix + ".bias", np.full(int(tensor.shape[1]), case["bias"], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def joint(base, path):
    """`base` with all weights as F32, and gate and up of experts in one tensor: for each expert gate's rows, then up's."""
    reader = GGUFReader(base)
    keys = {f.name: (f.contents(), f.types) for f in reader.fields.values() if not f.name.startswith("GGUF.")}
    architecture = keys.pop("general.architecture")[0]
    shape = {t.name: [int(n) for n in reversed(t.shape)] for t in reader.tensors}
    tensors = {t.name: dequantize(t.data, t.tensor_type).astype(np.float32).reshape(shape[t.name]) for t in reader.tensors}
    keys["tokenizer.ggml.model"] = ("no_vocab", [GGUFValueType.STRING])
    keys[f"{architecture}.vocab_size"] = (shape["token_embd.weight"][0], [GGUFValueType.UINT32])
    writer = GGUFWriter(path, architecture)
    for name, (value, types) in keys.items():
        sub_type = types[-1] if types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(name, value, types[0], sub_type=sub_type)
    for name, values in tensors.items():
        if name.endswith("ffn_up_exps.weight"):
            continue
        if name.endswith("ffn_gate_exps.weight"):
            values = np.concatenate([values, tensors[name.replace("gate", "up")]], axis=1)  # [E, 2·F, H]
            name = name.replace("gate", "gate_up")
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def logits(path, tokens):
    """Of the last token, by llama.cpp, in a process of its own, as it ends the process over some files; None if it refuses."""
    out = f"{path}.npy"
    child = os.fork()
    if child == 0:
        os.environ["GGML_NO_BACKTRACE"] = "1"  # where an assertion fails
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        import llama_cpp

        defaults = llama_cpp.llama_cpp.llama_model_default_params

        def as_in_the_file():
            """Weights are not repacked for the processor."""
            params = defaults()
            params.use_extra_bufts = False
            return params

        llama_cpp.llama_cpp.llama_model_default_params = as_in_the_file
        try:
            model = llama_cpp.Llama(path, n_ctx=64, n_threads=1, logits_all=True, verbose=False, type_k=0, type_v=0)
            model.eval(tokens)
            np.save(out, np.array(model.scores[len(tokens) - 1], np.float32))
        except ValueError:
            pass
        os._exit(0)
    os.waitpid(child, 0)
    return np.load(out) if os.path.exists(out) else None


def main(program, directory):
    plan = json.loads(Path(directory, "cases.json").read_text())
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for number, case in enumerate(plan["cases"]):
            base, path = f"{scratch}/base.gguf", f"{scratch}/{number}.gguf"
            shape = plan["synth"] | {name: value for name, value in case.items() if name in plan["synth"]}
            flags = [part for name, value in shape.items() for part in (f"--{name}", str(value))]
            subprocess.run([program, "-q", "synth", base, "--force", "--pure", "F32", *flags], check=True, capture_output=True)
            written(case, base, path)
            row = logits(path, plan["tokens"])
            if row is None:
                print(f"refused by llama.cpp: {case['name']}")
            else:
                found[case["name"]] = row
        for family in JOINT:
            path = f"{scratch}/{family}.gguf"
            joint(Path(__file__).parent.parent / f"tests/families/{family}.gguf", path)
            found[f"joint experts of {family}"] = logits(path, JOINT_TOKENS)
    save_file(found, f"{directory}/llama.cpp.safetensors")
    plain = found["plain"].astype(np.float64)
    for name, row in found.items():
        if len(row) != len(plain):
            continue
        print(f"{((row - plain) ** 2).sum() / (plain**2).sum():8.1e} from the plain file: {name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
