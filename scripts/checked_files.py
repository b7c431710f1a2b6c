#!/usr/bin/env python3
"""Writes tests/data/odd_files/checked.json: which of the files that `inspect --check` is held against llama.cpp loads.

    python3 -m venv venv && venv/bin/pip install llama-cpp-python
    TWINSCOPE_CHECKED_FILES=/tmp/checked cargo test --test library -- checked
    venv/bin/python scripts/checked_files.py /tmp/checked tests/data/odd_files/checked.json

The test (tests/library/checked) writes the files and a list of them. A file is loaded if llama.cpp opens it and evaluates three tokens; all
others it refuses, with an error or by ending its process.
"""

import json
import os
import sys
from pathlib import Path

import llama_cpp

TOKENS = [5, 17, 33]

defaults = llama_cpp.llama_cpp.llama_model_default_params


def as_in_the_file():
    """Weights are not repacked for the processor."""
    params = defaults()
    params.use_extra_bufts = False
    return params


llama_cpp.llama_cpp.llama_model_default_params = as_in_the_file


def loads(path):
    """Whether llama.cpp opens the file and runs it, in a process of its own."""
    child = os.fork()
    if child == 0:
        os.environ["GGML_NO_BACKTRACE"] = "1"  # where an assertion fails
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            llama_cpp.Llama(path, n_ctx=64, n_threads=1, verbose=False).eval(TOKENS)
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def main(directory, out):
    rows = [line.split("\t") for line in Path(directory, "list.txt").read_text().splitlines()]
    found = [name for name, path in rows if loads(path)]
    Path(out).write_text(json.dumps({"llama_cpp_python": llama_cpp.__version__, "loads": found}, indent=1) + "\n")
    print(f"{len(found)} of {len(rows)} files are loaded")


if __name__ == "__main__":
    main(*sys.argv[1:])
