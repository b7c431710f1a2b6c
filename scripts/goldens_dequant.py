"""Adds the types that it lacks to tests/golden/dequant.safetensors: random blocks, and the values that gguf-py reads from them, or for the types
that gguf-py cannot dequantize those of ggml's own code.

    python scripts/goldens_dequant.py LIBGGML_BASE.so

LIBGGML_BASE.so is built from llama.cpp. What both can read is read by both, and must be equal to the bit. Blocks that are there stay as they are.
"""

import ctypes
import pathlib
import sys

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import quants
from safetensors import safe_open
from safetensors.numpy import save_file

PATH = pathlib.Path(__file__).parent.parent / "tests" / "golden" / "dequant.safetensors"

# id, weights and bytes of a block, the C function; gguf-py's own ids where it has them.
TYPES = {
    "NVFP4": (40, 64, 36, "dequantize_row_nvfp4"),
    "Q1_0": (41, 128, 18, "dequantize_row_q1_0"),
    "Q2_0": (42, 64, 18, "dequantize_row_q2_0"),
}
BLOCKS = 64
# Halves that are zero, subnormal, negative, large.
HALVES = [0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x3C00, 0xBC00, 0x7BFF, 0xFBFF]


def blocks_of(name, rng):
    _, _, size, _ = TYPES[name]
    blocks = rng.integers(0, 256, (BLOCKS, size), dtype=np.uint8)
    if name == "NVFP4":
        # Every scale, the sign bit that means nothing included.
        blocks[:, :4] = np.arange(256, dtype=np.uint8).reshape(BLOCKS, 4)
    else:
        halves = rng.normal(0, 0.05, BLOCKS).astype(np.float16).view(np.uint16)
        halves[: len(HALVES)] = HALVES
        blocks[:, :2] = halves.view(np.uint8).reshape(BLOCKS, 2)
    return blocks


def by_ggml(library, name, blocks):
    _, weights, _, function = TYPES[name]
    out = np.empty(len(blocks) * weights, dtype=np.float32)
    data = np.ascontiguousarray(blocks)
    pointer = lambda a: a.ctypes.data_as(ctypes.c_void_p)  # noqa: E731
    getattr(library, function)(pointer(data), pointer(out), ctypes.c_int64(out.size))
    return out.reshape(len(blocks), weights)


def main():
    library = ctypes.CDLL(sys.argv[1])
    with safe_open(PATH, "np") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    for name in TYPES:
        if f"{name}.blocks" in tensors:
            continue
        blocks = blocks_of(name, np.random.default_rng(TYPES[name][0]))
        values = by_ggml(library, name, blocks)
        try:
            python = quants.dequantize(blocks, Type[name]).astype(np.float32)
            assert (python.view(np.uint32) == values.view(np.uint32)).all(), f"{name}: gguf-py and ggml differ"
        except (KeyError, NotImplementedError):
            print(f"{name}: gguf-py does not dequantize it; ggml's values alone")
        tensors[f"{name}.blocks"], tensors[f"{name}.values"] = blocks, values
    metadata["source"] = "gguf-py 0.19.0; scripts/goldens_dequant.py"
    save_file(tensors, PATH, metadata)


if __name__ == "__main__":
    main()
