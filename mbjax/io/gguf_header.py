"""The header of a GGUF file, read without trust (format: github.com/ggml-org/ggml, docs/gguf.md, versions 2 and 3).

The `gguf` package's own reader takes seconds over a tokenizer's arrays and believes every count that a file gives.
"""

import dataclasses
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from mbjax.errors import InputError
from mbjax.io.safetensors_file import map_file
from mbjax.io.strict_json import shown

TYPES: dict[int, tuple[str, int, int]] = {  # id -> name, values per block, bytes per block
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    30: ("BF16", 1, 2),
}
SCALARS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 10: "<u8", 11: "<i8", 12: "<f8"}
BOOL, STRING, ARRAY = 7, 8, 9
MAX_RANK = 4
MAX_KEY = 65_535  # bytes
MAX_NAME = 255  # bytes of a tensor's name; ggml itself allows 63


@dataclasses.dataclass(frozen=True)
class GgufTensor:
    """One tensor: its quantisation type, its shape with the contiguous axis last, and its bytes in the file."""

    type: str
    shape: tuple[int, ...]
    begin: int
    n_bytes: int


@dataclasses.dataclass(frozen=True)
class GgufHeader:
    """Metadata (str, int, float, bool or a list of one of these) and tensors by name; `data` maps the whole file."""

    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]
    data: Any


def read_gguf_header(path: Path) -> GgufHeader:
    """Map the file at `path` and read its header, every count and offset checked against the file's size.

    Raises InputError where the file is missing, empty, truncated, malformed, or has a tensor of an unknown type.
    """
    data = map_file(path)
    cursor = _Cursor(data, path)
    if data[:4] != b"GGUF":
        cursor.refuse("it does not begin with GGUF")
    cursor.position = 4
    version = cursor.number("<u4")
    if version not in (2, 3):
        cursor.refuse(f"version {version}; versions 2 and 3 are read, little-endian")
    n_tensors, n_pairs = cursor.number("<u8"), cursor.number("<u8")
    metadata: dict[str, Any] = {}
    for _ in range(n_pairs):
        key = cursor.text(MAX_KEY)
        if key in metadata:
            cursor.refuse(f"the key {shown(key)} is there twice")
        metadata[key] = _value(cursor, cursor.number("<u4"), key)
    infos: dict[str, tuple[int, tuple[int, ...], int]] = {}
    for _ in range(n_tensors):
        name = cursor.text(MAX_NAME)
        if name in infos or not name.isprintable():
            cursor.refuse(f"the tensor name {shown(name)} is there twice or not printable")
        infos[name] = _tensor_info(cursor, name)
    return GgufHeader(metadata, _placed(cursor, infos, metadata.get("general.alignment", 32)), data)


class _Cursor:
    """A position in the file; every read is checked against the file's end."""

    def __init__(self, data: Any, path: Path) -> None:
        self.data, self.path, self.position, self.size = data, path, 0, len(data)

    def take(self, n_bytes: int) -> int:
        """Step over `n_bytes` and return where they begin."""
        begin = self.position
        if n_bytes > self.size - begin:
            self.refuse(f"byte {begin} announces {n_bytes} more bytes, the file holds {self.size}")
        self.position = begin + n_bytes
        return begin

    def array(self, dtype: str, count: int) -> np.ndarray:
        begin = self.take(count * np.dtype(dtype).itemsize)
        return np.frombuffer(self.data, dtype, count, begin) if count else np.zeros(0, dtype)

    def number(self, dtype: str) -> Any:
        return self.array(dtype, 1)[0].item()

    def text(self, limit: int) -> str:
        (length,) = struct.unpack_from("<Q", self.data, self.take(8))
        if length > limit:
            self.refuse(f"byte {self.position} announces a text of {length} bytes")
        begin = self.take(length)
        try:
            return self.data[begin : begin + length].decode("utf-8")
        except UnicodeDecodeError:
            self.refuse(f"the text at byte {begin} is not UTF-8")

    def refuse(self, reason: str) -> NoReturn:
        raise InputError(f"{self.path}: not a valid GGUF file: {reason}; fetch it again")


def _value(cursor: _Cursor, kind: int, key: str) -> Any:
    if kind in SCALARS:
        return cursor.number(SCALARS[kind])
    if kind == BOOL:
        return cursor.number("<u1") != 0
    if kind == STRING:
        return cursor.text(cursor.size)
    if kind != ARRAY:
        cursor.refuse(f"{shown(key)} has the unknown value type {kind}")
    item, count = cursor.number("<u4"), cursor.number("<u8")
    if item in SCALARS:
        return cursor.array(SCALARS[item], count).tolist()
    if item == BOOL:
        return (cursor.array("<u1", count) != 0).tolist()
    if item != STRING:
        cursor.refuse(f"{shown(key)} is an array of the unknown value type {item}")
    return _texts(cursor, count)


def _texts(cursor: _Cursor, count: int) -> list[str]:
    if count * 8 > cursor.size - cursor.position:
        cursor.refuse(f"byte {cursor.position} announces {count} texts, the file holds {cursor.size} bytes")
    read: Callable[[int], str] = cursor.text
    return [read(cursor.size) for _ in range(count)]


def _tensor_info(cursor: _Cursor, name: str) -> tuple[int, tuple[int, ...], int]:
    rank = cursor.number("<u4")
    if not 1 <= rank <= MAX_RANK:
        cursor.refuse(f"tensor {shown(name)} has {rank} dimensions")
    shape = tuple(reversed(cursor.array("<u8", rank).tolist()))
    return cursor.number("<u4"), shape, cursor.number("<u8")


def _placed(
    cursor: _Cursor, infos: dict[str, tuple[int, tuple[int, ...], int]], alignment: Any
) -> dict[str, GgufTensor]:
    if type(alignment) is not int or not 8 <= alignment <= 2**20 or alignment & (alignment - 1):
        cursor.refuse("general.alignment is not a power of two of at least 8")
    data_begin = -(-cursor.position // alignment) * alignment
    tensors, end = {}, data_begin
    for name, (kind, shape, offset) in sorted(infos.items(), key=lambda item: item[1][2]):
        if kind not in TYPES:
            known = ", ".join(name for name, _, _ in TYPES.values())
            what = f"tensor {shown(name)} has the quantisation type {kind}"
            raise InputError(f"{cursor.path}: {what}, which is not known here; known: {known}")
        type_name, block, block_bytes = TYPES[kind]
        if shape[-1] % block or not all(0 < size < 2**48 for size in shape):
            cursor.refuse(f"tensor {shown(name)} of type {type_name} has the shape {shape}")
        begin, n_bytes = data_begin + offset, math.prod(shape) // block * block_bytes
        if begin < end or offset % alignment:
            cursor.refuse(f"tensor {shown(name)} overlaps another or is not aligned")
        end = begin + n_bytes
        if end > cursor.size:
            cursor.refuse(f"tensor {shown(name)} ends at byte {end}, the file holds {cursor.size}")
        tensors[name] = GgufTensor(type_name, shape, begin, n_bytes)
    return tensors
