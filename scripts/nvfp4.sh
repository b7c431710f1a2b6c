#!/bin/sh
# Writes tests/data/captures/nvfp4.safetensors: what llama.cpp computes of a tiny model of NVFP4 with scales beside its weights.
#
#     python3 -m venv venv && venv/bin/pip install llama-cpp-python
#     scripts/nvfp4.sh target/release/twinscope venv/bin/python
#
# The model is of random weights, which tests/library/segments.rs makes again from the same numbers.
set -eu
program=$1 python=$2
root=$(dirname "$0")/..
scratch=$(mktemp -d)
trap 'rm -r "$scratch"' EXIT
"$program" -q synth "$scratch/nvfp4.gguf" --pure NVFP4 --hidden 128 --layers 1 --heads 4 --kv-heads 2 --head-dim 32 --experts 4 \
    --experts-used 2 --expert-ffn 64 --vocab 300
"$python" "$root/capture/llama_cpp.py" "$scratch/nvfp4.gguf" --tokens 5,17,93,60,0,88 --flash-attn off --threads 1 \
    --out "$root/tests/data/captures/nvfp4.safetensors"
