#!/usr/bin/env python3
"""Captures what llama.cpp computes inside a run, for `twinscope import capture`.

Requires llama-cpp-python and numpy, and no rebuild of either: the values come through `cb_eval`, a callback that the
scheduler offers for every node of the graph, so any backend that llama-cpp-python was built with is captured as it runs.

    python3 llama_cpp.py model.gguf --prompt 'fn main() {' --out run.safetensors
    python3 llama_cpp.py model.gguf --tokens 422,472,345 --decode 4 --nodes '^(l_out|result_output)$' --out run.safetensors

A node that is asked for is computed before the next one starts, so a backend cannot fuse it with what follows. Ask for
few nodes (`--nodes`) to see what production runs, and for all of them to look inside.

The file is a safetensors file. Its keys are `NODE.COUNT@CALL`: NODE is llama.cpp's name, COUNT tells apart the nodes of one
graph that have the same name (`Qcur-0.0` is the projection, `Qcur-0.2` the value after rope), and CALL is the call of
llama_decode. capture/README.md describes the header.
"""

import argparse
import ctypes
import hashlib
import json
import os
import re
import shlex
import shutil
import struct
import sys
import tempfile

SCHEMA = "twinscope.capture/1"

# --- The parts that need neither llama.cpp nor numpy -----------------------------------------------------------------

# GGUF's types of metadata values: bytes of each, or None for a string (8) and an array (9).
GGUF_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
# ggml's block sizes: type -> (elements, bytes).
GGML_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 16: (256, 66),
    17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136),
    24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54),
    35: (256, 66), 39: (32, 17),
}


def gguf_fingerprint(path):
    """The identity that twinscope gives a model in one GGUF file: SHA-256 over the header (without its padding) and over
    the first and last 4 KiB of each tensor. None for a file that this does not understand, such as one part of several."""
    end = 4096
    with open(path, "rb") as file:
        def take(form):
            size = struct.calcsize("<" + form)
            data = file.read(size)
            if len(data) != size:
                raise ValueError("the header ends early")
            return struct.unpack("<" + form, data)[0]

        def text():
            return file.read(take("Q"))

        def skip(kind, depth=0):
            if kind == 8:
                text()
            elif kind == 9 and depth < 4:
                inner, count = take("I"), take("Q")
                if inner in GGUF_SIZES:
                    file.seek(GGUF_SIZES[inner] * count, os.SEEK_CUR)
                else:
                    for _ in range(count):
                        skip(inner, depth + 1)
            elif kind in GGUF_SIZES:
                file.seek(GGUF_SIZES[kind], os.SEEK_CUR)
            else:
                raise ValueError(f"metadata of type {kind}")

        try:
            if file.read(4) != b"GGUF" or take("I") not in (2, 3):
                return None
            tensors, keys = take("Q"), take("Q")
            alignment = 32
            for _ in range(keys):
                key, kind = text(), take("I")
                if key == b"split.count":
                    return None
                if key == b"general.alignment" and kind == 4:
                    alignment = take("I")
                else:
                    skip(kind)
            found = []
            for _ in range(tensors):
                text()
                elements = 1
                for _ in range(take("I")):
                    elements *= take("Q")
                kind, offset = take("I"), take("Q")
                if kind not in GGML_BLOCKS:
                    return None
                per_block, size = GGML_BLOCKS[kind]
                found.append((offset, elements // per_block * size))
            length = file.tell()
            start = -(-length // alignment) * alignment
            file.seek(0)
            digest = hashlib.sha256(file.read(length))
            for offset, size in found:
                for at in (0, max(size - end, 0)):
                    file.seek(start + offset + at)
                    digest.update(file.read(min(size, end)))
            return digest.hexdigest()
        except (ValueError, struct.error, MemoryError, OverflowError):
            return None


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


def layer_of(name):
    """The layer in a node's name, `attn_norm-3`; None where there is none."""
    match = re.fullmatch(r".*-(\d+)", name)
    return int(match[1]) if match else None


def layer_read(name):
    """The layer of an operand: a weight `blk.3.…`, a node `Qcur-3 (view)`, a cache `cache_k_l3 (view)`; None without one."""
    match = re.match(r"blk\.(\d+)\.|cache_[kv]_l(\d+)|[^ ]*-(\d+)(?: |$)", name)
    return int(next(n for n in match.groups() if n)) if match else None


def position_axis(name, shape, rows):
    """The axis of `shape` (slowest first) that counts positions, if one does: `rows` of them are in the call.

    Attention matrices are [heads, T, S], and some nodes have their heads outermost, too; every other has its positions there."""
    base = re.sub(r"-\d+$", "", name)
    by_head = ("kq", "kq_soft_max", "kqv", "kqv_mla", "fattn_mla", "q_nope_absorbed")
    axis = 1 if base in by_head and len(shape) == 3 else 0
    return axis if len(shape) > axis and shape[axis] == rows else None


class Writer:
    """A safetensors file whose data arrive before its header can be known: they wait in a temporary file beside it."""

    def __init__(self, path):
        self.path = path
        self.tensors = {}
        self.data = tempfile.TemporaryFile(dir=os.path.dirname(os.path.abspath(path)))

    def add(self, key, dtype, shape, data):
        if key in self.tensors:
            raise ValueError(f"{key} came twice")
        start = self.data.tell()
        self.data.write(data)
        self.tensors[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, self.data.tell()]}

    def finish(self, header):
        text = json.dumps({"__metadata__": {"twinscope.capture": json.dumps(header)}, **self.tensors}).encode()
        text += b" " * (-len(text) % 8)
        partial = f"{self.path}.partial"
        with open(partial, "wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            self.data.seek(0)
            shutil.copyfileobj(self.data, out)
        os.replace(partial, self.path)


# --- llama.cpp -------------------------------------------------------------------------------------------------------


class Tensor(ctypes.Structure):
    """ggml's struct ggml_tensor, as far as this script reads it."""


Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(Tensor) * 10),
    ("view_src", ctypes.POINTER(Tensor)),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
]

# ggml's types that a node can have -> safetensors' and numpy's names and the bytes of an element.
TYPES = {0: ("F32", "f4", 4), 1: ("F16", "f2", 2), 30: ("BF16", "u2", 2), 26: ("I32", "i4", 4)}
VIEWS = ("RESHAPE", "VIEW", "PERMUTE", "TRANSPOSE", "NONE")
CACHE_TYPES = {"f32": 0, "f16": 1, "bf16": 30, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8}


def sources(tensor):
    """The names of an operation's operands."""
    return [s.contents.name.decode(errors="replace") for s in tensor.src if s]


class Ggml:
    """The functions of libggml-base that say what a tensor is and copy it out of its backend."""

    def __init__(self):
        from llama_cpp import _ggml

        self.lib = _ggml.libggml
        try:
            self.lib.ggml_backend_tensor_get
        except AttributeError:  # libggml does not always pass on what libggml-base defines
            lib = os.path.join(os.path.dirname(_ggml.__file__), "lib")
            names = [n for n in sorted(os.listdir(lib)) if "ggml-base" in n]
            self.lib = ctypes.CDLL(os.path.join(lib, names[0]))
        pointer = ctypes.c_void_p
        for name, result, arguments in (
            ("ggml_backend_tensor_get", None, [pointer, pointer, ctypes.c_size_t, ctypes.c_size_t]),
            ("ggml_nbytes", ctypes.c_size_t, [pointer]),
            ("ggml_op_name", ctypes.c_char_p, [ctypes.c_int]),
            ("ggml_get_name", ctypes.c_char_p, [pointer]),
            ("ggml_backend_buffer_name", ctypes.c_char_p, [pointer]),
            ("ggml_commit", ctypes.c_char_p, []),
            ("ggml_version", ctypes.c_char_p, []),
        ):
            function = getattr(self.lib, name, None)
            if function is not None:
                function.restype, function.argtypes = result, arguments

    def version(self):
        try:
            version, commit = self.lib.ggml_version().decode(), self.lib.ggml_commit().decode()
        except AttributeError:
            return "ggml of unknown version"
        return f"ggml {version}" + ("" if commit == "unknown" else f" ({commit})")

    def op(self, tensor):
        return self.lib.ggml_op_name(tensor.op).decode()

    def check(self, pointer, tensor):
        """Whether the struct above is the one that this build of ggml has."""
        if tensor.name != self.lib.ggml_get_name(pointer):
            raise RuntimeError("this build's struct ggml_tensor is not the one that this script knows")

    def device(self, tensor):
        """The name of the buffer that the value lies in, such as CPU, Vulkan0 or CUDA0."""
        owner = tensor.view_src.contents if tensor.view_src else tensor
        return self.lib.ggml_backend_buffer_name(owner.buffer).decode() if owner.buffer else ""

    def read(self, pointer, tensor):
        """The values as a contiguous array, slowest axis first, whatever the strides: [ne3, ne2, ne1, ne0]."""
        import numpy

        _, kind, size = TYPES[tensor.type]
        span = self.lib.ggml_nbytes(pointer)
        raw = numpy.empty(span, dtype=numpy.uint8)
        self.lib.ggml_backend_tensor_get(pointer, raw.ctypes.data, 0, span)
        shape, strides = list(tensor.ne)[::-1], list(tensor.nb)[::-1]
        last = sum((n - 1) * s for n, s in zip(shape, strides)) + size if min(shape) else 0
        if last > span:
            raise RuntimeError(f"{tensor.name.decode()}: strides {strides} reach beyond its {span} bytes")
        values = numpy.ndarray(shape, dtype="<" + kind, buffer=raw, strides=strides)
        while values.ndim > 2 and values.shape[0] == 1:
            values = values[0]
        return numpy.ascontiguousarray(values)


class Recorder:
    """What the callback keeps."""

    def __init__(self, ggml, writer, nodes, layers, views):
        self.ggml, self.writer = ggml, writer
        self.nodes, self.layers, self.views = re.compile(nodes), layers, views
        self.tensors, self.devices = {}, {}
        self.flash = False
        self.error = None
        self.skipped = {}

    def begin(self, call, start, rows, outputs, keep):
        """A call of `rows` tokens from position `start` on; `outputs` are the rows whose logits are asked for."""
        self.call, self.start, self.rows, self.outputs, self.keep = call, start, rows, outputs, set(keep)
        self.counts, self.asked = {}, None

    def wants(self, tensor, name):
        base = re.sub(r"-\d+$", "", name)
        layer = layer_of(name)
        if layer is None:
            layer = next((n for n in map(layer_read, sources(tensor)) if n is not None), None)
        if self.layers is not None and layer is not None and layer not in self.layers:
            return False
        if not (self.nodes.search(base) or self.nodes.search(name)):
            return False
        op = self.ggml.op(tensor)
        if not self.views and (name.startswith("cache_") or op in VIEWS and self.is_same(tensor, name)):
            return False
        if tensor.type not in TYPES:
            self.skipped[name] = f"ggml type {tensor.type}"
            return False
        return True

    @staticmethod
    def is_same(tensor, name):
        """Whether a view shows nothing that its source does not: another shape of it, or a part that the graph never names."""
        elements = lambda t: t.ne[0] * t.ne[1] * t.ne[2] * t.ne[3]
        if " (" in name or not tensor.src[0]:
            return True
        source = tensor.src[0].contents
        # A name given to a node that has none, as kqv_out is with flash attention, is worth having.
        return elements(source) == elements(tensor) and not source.name.startswith(b"node_")

    def callback(self, pointer, ask, _):
        try:
            tensor = ctypes.cast(pointer, ctypes.POINTER(Tensor)).contents
            name = tensor.name.decode(errors="replace")
            if ask:
                self.ggml.check(pointer, tensor)
                count = self.counts.get(name, 0)
                self.counts[name] = count + 1
                self.flash |= self.ggml.op(tensor) == "FLASH_ATTN_EXT"
                self.asked = f"{name}.{count}@{self.call}" if self.wants(tensor, name) else None
                return self.asked is not None
            self.keep_value(pointer, tensor, name)
            return True
        except Exception as error:  # an exception cannot cross C: the run stops, and main raises it
            self.error = error
            return False

    def keep_value(self, pointer, tensor, name):
        import numpy

        values = self.ggml.read(pointer, tensor)
        device = self.ggml.device(tensor)
        self.devices[device] = self.devices.get(device, 0) + 1
        entry = {
            "call": self.call,
            "op": self.ggml.op(tensor),
            "inputs": sources(tensor),
        }
        every = list(range(self.start, self.start + self.rows))
        axis, positions = position_axis(name, values.shape, self.rows), every
        if axis is None:  # behind the last layer's attention only the rows are left whose logits are asked for
            positions = [every[i] for i in self.outputs]
            axis = position_axis(name, values.shape, len(positions))
        if axis is None and len(positions) == 1:  # ggml does not tell a missing axis from one of length 1
            values = values[None]
            axis = position_axis(name, values.shape, 1)
        if axis is not None:
            kept = [i for i, position in enumerate(positions) if position in self.keep]
            if not kept:
                return
            if len(kept) != len(positions):
                values = numpy.ascontiguousarray(numpy.take(values, kept, axis=axis))
            entry["positions"] = [positions[i] for i in kept]
        self.tensors[self.asked] = entry
        self.writer.add(self.asked, TYPES[tensor.type][0], values.shape, values.tobytes())


def contract_name(devices, flash=False, cache=("f16", "f16")):
    """The contract of the backend that made most of the nodes, with the options it ran under."""
    most = max(devices, key=devices.get) if devices else ""
    base = "llama.cpp-cpu"
    for part in ("vulkan", "cuda", "metal", "rocm", "sycl", "opencl"):
        if part in most.lower() and not most.lower().endswith("_host"):
            base = f"llama.cpp-{part}"
    options = "+fa" if flash else ""
    if cache[0] == cache[1] and cache[0] != "f16":
        options += f"+kv={cache[0]}"
    return base + options


def tokens_of(llama, vocab, text, special, parse):
    data = text.encode()
    room = len(data) + 16
    buffer = (llama.llama_token * room)()
    count = llama.llama_tokenize(vocab, data, len(data), buffer, room, special, parse)
    if count < 0:
        raise SystemExit(f"llama_tokenize failed with {count}")
    return list(buffer[:count])


def arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a GGUF file")
    parser.add_argument("--out", required=True, metavar="FILE", help="the safetensors file to write")
    parser.add_argument("--prompt", help="the text to run")
    parser.add_argument("--tokens", help="the token ids to run, 1,2,3, instead of a text")
    parser.add_argument("--no-special", action="store_true", help="add no BOS or EOS, even where the model asks for it")
    parser.add_argument("--no-parse-special", action="store_true", help="read `<|name|>` in the text as plain text")
    parser.add_argument("--decode", type=int, default=0, metavar="N", help="decode N tokens greedily after the prompt")
    parser.add_argument("--nodes", default="", metavar="REGEX", help="only nodes whose name matches; default: all")
    parser.add_argument("--layers", metavar="LIST", help="only these layers: 0,5-7,-1")
    parser.add_argument("--positions", default="all", metavar="LIST", help="only these positions: all, last, 0,5-9,-1")
    parser.add_argument("--views", action="store_true", help="also reshapes and permutations of other nodes")
    parser.add_argument("--logits", choices=("all", "last"), default="all", help="which rows the last layer computes")
    parser.add_argument("--n-gpu-layers", type=int, default=0, metavar="N", help="layers on the GPU; 999 for all")
    parser.add_argument("--no-repack", action="store_true",
                        help="weights as they are in the file, where a processor's repacked ones are not wanted, or crash")
    parser.add_argument("--flash-attn", choices=("on", "off", "auto"), default="auto")
    parser.add_argument("--ubatch", type=int, default=512, metavar="N", help="most tokens of one call")
    parser.add_argument("--cache-type-k", choices=CACHE_TYPES, default="f16")
    parser.add_argument("--cache-type-v", choices=CACHE_TYPES, default="f16")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), metavar="N")
    parser.add_argument("--verbose", action="store_true", help="show llama.cpp's own log")
    args = parser.parse_args(argv)
    if (args.prompt is None) == (args.tokens is None):
        parser.error("give either --prompt or --tokens")
    if args.decode < 0 or args.ubatch < 1:
        parser.error("--decode is 0 or more, --ubatch 1 or more")
    return args


def tokens_sha256(tokens):
    """As twinscope's documents have it: of the ids in order, each as four bytes with the lowest first."""
    return hashlib.sha256(struct.pack(f"<{len(tokens)}I", *tokens)).hexdigest()


def main(argv):
    args = arguments(argv)
    # Python looks for modules beside the script first, where this file would hide the package of the same name.
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path = [p for p in sys.path if os.path.abspath(p or ".") != here]
    import llama_cpp as package
    from llama_cpp import llama_cpp as llama

    if not args.verbose:
        quiet = llama.llama_log_callback(lambda level, text, user: None)
        llama.llama_log_set(quiet, ctypes.c_void_p(0))
    llama.llama_backend_init()
    ggml = Ggml()

    params = llama.llama_model_default_params()
    params.n_gpu_layers = args.n_gpu_layers
    params.use_extra_bufts = not args.no_repack
    model = llama.llama_model_load_from_file(args.model.encode(), params)
    if not model:
        raise SystemExit(f"{args.model}: llama.cpp cannot load it; --verbose shows why")
    vocab = llama.llama_model_get_vocab(model)
    if args.tokens is not None:
        tokens = [int(t) for t in args.tokens.split(",")]
        size = llama.llama_vocab_n_tokens(vocab)
        if any(not 0 <= t < size for t in tokens):
            raise SystemExit(f"--tokens: ids are 0 to {size - 1}")
    else:
        tokens = tokens_of(llama, vocab, args.prompt, not args.no_special, not args.no_parse_special)
    if not tokens:
        raise SystemExit("the prompt is empty: at least one token is needed")
    prompt_tokens, total = len(tokens), len(tokens) + args.decode
    keep = chosen(args.positions, total)
    layers = None if args.layers is None else set(chosen(args.layers, llama.llama_model_n_layer(model)))

    writer = Writer(args.out)
    recorder = Recorder(ggml, writer, args.nodes, layers, args.views)
    callback = llama.ggml_backend_sched_eval_callback(recorder.callback)
    params = llama.llama_context_default_params()
    params.n_ctx = max(256, -(-total // 256) * 256)
    params.n_batch = params.n_ubatch = min(args.ubatch, max(prompt_tokens, 1))
    params.n_threads = params.n_threads_batch = args.threads
    params.flash_attn_type = {"on": 1, "off": 0, "auto": -1}[args.flash_attn]
    params.type_k, params.type_v = CACHE_TYPES[args.cache_type_k], CACHE_TYPES[args.cache_type_v]
    params.cb_eval = callback
    context = llama.llama_init_from_model(model, params)
    if not context:
        raise SystemExit("llama.cpp cannot make a context with these settings; --verbose shows why")

    calls, start = [], 0
    while start < total:
        if start < prompt_tokens:
            rows = min(args.ubatch, prompt_tokens - start)
        else:
            logits = llama.llama_get_logits_ith(context, -1)
            tokens.append(max(range(llama.llama_vocab_n_tokens(vocab)), key=lambda i: logits[i]))
            rows = 1
        outputs = list(range(rows)) if args.logits == "all" else [rows - 1]
        batch = llama.llama_batch_init(rows, 0, 1)
        batch.n_tokens = rows
        for i in range(rows):
            batch.token[i], batch.pos[i] = tokens[start + i], start + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = i in outputs
        recorder.begin(len(calls), start, rows, outputs, keep)
        status = llama.llama_decode(context, batch)
        llama.llama_batch_free(batch)
        if recorder.error:
            raise recorder.error
        if status:
            raise SystemExit(f"llama_decode failed with {status} at position {start}")
        calls.append({"start": start, "tokens": rows})
        start += rows

    text = ctypes.create_string_buffer(256)
    llama.llama_model_meta_val_str(model, b"general.architecture", text, 256)
    devices = sorted(recorder.devices, key=recorder.devices.get, reverse=True)
    header = {
        "schema": SCHEMA,
        "engine": "llama.cpp",
        "engine_version": f"llama-cpp-python {package.__version__}, {ggml.version()}",
        "device": ", ".join(devices),
        "command": shlex.join([os.path.basename(__file__), *argv]),
        "model": {
            "name": os.path.basename(args.model),
            "architecture": text.value.decode(errors="replace"),
            "fingerprint": gguf_fingerprint(args.model),
        },
        "tokens": tokens,
        "prompt": args.prompt,
        "prompt_tokens": prompt_tokens,
        "calls": calls,
        "contract": contract_name(recorder.devices, recorder.flash, (args.cache_type_k, args.cache_type_v)),
        "flash_attention": recorder.flash,
        "kv_cache": {"k": args.cache_type_k, "v": args.cache_type_v},
        "threads": args.threads,
        "tensors": recorder.tensors,
    }
    if not writer.tensors:
        raise SystemExit("no node of the graph was selected")
    writer.finish(header)
    llama.llama_free(context)
    llama.llama_model_free(model)
    for name, why in recorder.skipped.items():
        print(f"not captured: {name}: {why}", file=sys.stderr)
    print(f"{args.out}: {len(writer.tensors)} tensors of {len(tokens)} tokens in {len(calls)} calls on "
          f"{header['device']}; {header['contract']}, flash attention {'on' if recorder.flash else 'off'}")
    print(f"prompt of {prompt_tokens} tokens, sha256 {tokens_sha256(tokens[:prompt_tokens])}")


if __name__ == "__main__":
    main(sys.argv[1:])
