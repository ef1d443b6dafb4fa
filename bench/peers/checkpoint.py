"""Reads a checkpoint as `dsv2 init` writes it: config.json and bf16 safetensors, mapped, in order of use."""
import json
import mmap
import pathlib
import struct

import numpy as np

DTYPES = {"BF16": np.uint16, "F32": np.float32, "F64": np.float64}


class SafeTensors:
    """One file. Arrays are views of the mapping; bf16 comes as uint16, which numpy has no better type for."""

    def __init__(self, path):
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        (header_bytes,) = struct.unpack_from("<Q", self._map)
        self._header = json.loads(self._map[8 : 8 + header_bytes])
        self._header.pop("__metadata__", None)
        self._start = 8 + header_bytes

    def names(self):
        return self._header.keys()

    def __getitem__(self, name):
        entry = self._header[name]
        begin, end = entry["data_offsets"]
        dtype = np.dtype(DTYPES[entry["dtype"]])
        array = np.frombuffer(self._map, dtype, (end - begin) // dtype.itemsize, self._start + begin)
        return array.reshape(entry["shape"])


class Checkpoint:
    """A folder. `config` is its config.json; tensors by their HF names."""

    def __init__(self, folder):
        folder = pathlib.Path(folder)
        self.config = json.loads((folder / "config.json").read_text())
        self._files = {}
        for path in sorted(folder.glob("*.safetensors")):
            file = SafeTensors(path)
            self._files.update((name, file) for name in file.names())

    def __getitem__(self, name):
        return self._files[name][name]

    def names(self):
        return self._files.keys()


def to_f32(bf16):
    """uint16 halves of float32 as float32, exactly."""
    return (bf16.astype(np.uint32) << 16).view(np.float32)
