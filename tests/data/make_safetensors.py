#!/usr/bin/env python3
"""Python's safetensors beside ours: needs `pip install safetensors numpy ml_dtypes`.

make_safetensors.py            writes python.safetensors, which the suite `data` reads
make_safetensors.py FILE...    reads files that ulp wrote and prints what is in them; checks "ulp_checksum" where there is one
"""
import pathlib
import sys
import zlib

import ml_dtypes
import numpy as np
import safetensors
from safetensors.numpy import save_file

TYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "I32": np.int32, "I8": np.int8, "U8": np.uint8,
    "BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
}


def make(path):
    tensors = {
        "f32": np.array([[1.5, -0.0, np.inf], [2.0**-149, 3.4028235e38, 0.1]], np.float32),
        "f64": np.array([np.pi, -1e300]),
        "f16": np.array([1.0, 65504.0, 2.0**-24], np.float16),
        "i32": np.array([[-(2**31)], [2**31 - 1]], np.int32),
        "i8": np.array([-128, 127, 0], np.int8),
        "u8": np.arange(7, dtype=np.uint8),
        "nothing": np.zeros((0, 4), np.float32),
        "scalar": np.array(42, np.int32),
        "name \" \u00fc \\": np.array([7], np.uint8),
    }
    save_file(tensors, path, metadata={"made by": "safetensors \u00fc", "empty": ""})


def show(path):
    raw = bytearray(pathlib.Path(path).read_bytes())
    with safetensors.safe_open(path, "np") as file:
        metadata = file.metadata() or {}
    if "ulp_checksum" in metadata:
        place = raw.index(b'"ulp_checksum":"') + len(b'"ulp_checksum":"')
        raw[place : place + 8] = b"00000000"
        right = metadata["ulp_checksum"] == f"{zlib.crc32(raw):08x}"
        print(f"{path}: checksum {metadata['ulp_checksum']} {'is right' if right else 'is WRONG'}")
    for key, value in metadata.items():
        print(f"{path}: {key} = {value[:60]!r}")
    for name, entry in safetensors.deserialize(pathlib.Path(path).read_bytes()):
        tensor = np.frombuffer(entry["data"], TYPES[entry["dtype"]]).reshape(entry["shape"])
        print(f"{path}: {name} {tensor.dtype} {tensor.shape} sum {tensor.astype(np.float64).sum():.9g}")


if len(sys.argv) > 1:
    for name in sys.argv[1:]:
        show(name)
else:
    make(pathlib.Path(__file__).parent / "python.safetensors")
