"""Writes a valid capture of two tensors with nothing but Python: python3 capture.py FILE"""

import array
import json
import struct
import sys

header = {
    "schema": "twinscope.capture/1",
    "engine": "an example in Python",
    "tokens": [422, 472, 345],
    "contract": "f32",
}
# [T, H] = [3, 4], slowest axis first.
tensors = {
    "layers.0.attn_norm": ([3, 4], [0.5 * i for i in range(12)]),
    "layers.0.layer_out": ([3, 4], [0.25 * i - 1 for i in range(12)]),
}

entries, data = {"__metadata__": {"twinscope.capture": json.dumps(header)}}, b""
for key, (shape, values) in tensors.items():
    values = array.array("f", values)
    if sys.byteorder == "big":
        values.byteswap()
    entries[key] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + 4 * len(values)]}
    data += values.tobytes()
text = json.dumps(entries).encode()
text += b" " * (-len(text) % 8)
with open(sys.argv[1], "wb") as file:
    file.write(struct.pack("<Q", len(text)) + text + data)
