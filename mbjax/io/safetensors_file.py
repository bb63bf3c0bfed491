"""safetensors files, read without trust and written so that they can be mapped straight into an array.

The format (github.com/huggingface/safetensors): eight bytes little-endian header length, a JSON header of
`{name: {"dtype", "shape", "data_offsets": [begin, end]}}`, then the tensors' bytes without gaps.
"""

import dataclasses
import json
import math
import mmap
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import ml_dtypes
import numpy as np

from mbjax.errors import InputError
from mbjax.io.strict_json import parse_object, shown

DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
ALIGNMENT = 64  # bytes; JAX on the CPU uses a host array without a copy only from such an address
MAX_HEADER = 100_000_000  # bytes, the limit of the reference implementation
MAX_RANK = 8
MAX_SIZE = 2**48  # elements along one axis


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: its dtype and shape, and its bytes as `[begin, end)` counted from the file's start."""

    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclasses.dataclass(frozen=True)
class Header:
    """The checked header of a safetensors file."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """The header of the file at `path`, every field checked against the file's true size.

    Raises InputError where the file is missing, empty, truncated or malformed in any way.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            text = file.read(min(length, MAX_HEADER))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    return _checked_header(start, text, size, path)


@dataclasses.dataclass(frozen=True)
class MappedTensors:
    """The tensors of a file that is mapped, and its map."""

    tensors: dict[str, np.ndarray]
    buffer: mmap.mmap

    def release(self) -> None:
        """Hands the pages read so far back to the system, which reads them again if they are used again."""
        if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
            self.buffer.madvise(mmap.MADV_DONTNEED)


def map_tensors(path: Path) -> dict[str, np.ndarray]:
    """Every tensor as a read-only array over the mapped file: nothing is read before it is used.

    Raises InputError as `read_header` does. The file must not be shortened while the arrays live.
    """
    return open_tensors(path).tensors


def open_tensors(path: Path) -> MappedTensors:
    """The same with a hold on the map."""
    header = read_header(path)
    buffer = map_file(path)
    if len(buffer) < max((info.end for info in header.tensors.values()), default=0):
        raise InputError(f"{path}: was shortened while it was read; fetch it again")
    return MappedTensors({name: _view(buffer, info) for name, info in header.tensors.items()}, buffer)


def map_file(path: Path) -> mmap.mmap:
    """A read-only map of a whole file. Raises InputError where it is missing, empty or cannot be mapped."""
    try:
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise InputError(f"{path}: the file is empty; fetch it again") from None


def parse_tensors(data: bytes | memoryview, path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and metadata of a whole file already read into memory; `path` is only named in errors (InputError)."""
    start = bytes(data[:8])
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    header = _checked_header(start, bytes(data[8 : 8 + min(length, MAX_HEADER)]), len(data), path)
    return {name: _view(data, info) for name, info in header.tensors.items()}, header.metadata


def write_safetensors(
    file: BinaryIO,
    specs: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
    tensors: Iterable[tuple[str, np.ndarray]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors into a new seekable file, each at its place as it comes.

    specs gives dtype and shape of every tensor beforehand, so that one tensor at a time needs to be in memory. Data
    starts at a multiple of 64 bytes; tensors whose size is not such a multiple come last, so that all others stay
    aligned. Raises ValueError where `tensors` and `specs` differ.
    """
    places, head = _layout(specs, metadata or {})
    missing = set(specs)
    file.write(head)
    for name, array in tensors:
        dtype, shape = specs[name]
        if array.dtype != dtype or array.shape != shape:
            raise ValueError(f"{name} is {array.dtype}{array.shape}, announced as {dtype}{shape}")
        missing.remove(name)
        file.seek(len(head) + places[name])
        file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    if missing:
        raise ValueError(f"tensors announced but not written: {sorted(missing)}")


def _layout(
    specs: Mapping[str, tuple[np.dtype, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[dict[str, int], bytes]:
    names = {dtype: name for name, dtype in DTYPES.items()}
    sizes = {name: math.prod(shape) * dtype.itemsize for name, (dtype, shape) in specs.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    places, offset = {}, 0
    for name in sorted(specs, key=lambda name: (sizes[name] % ALIGNMENT != 0, -specs[name][0].itemsize, name)):
        dtype, shape = specs[name]
        places[name] = offset
        header[name] = {"dtype": names[dtype], "shape": list(shape), "data_offsets": [offset, offset + sizes[name]]}
        offset += sizes[name]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return places, struct.pack("<Q", len(text)) + text


def _view(buffer: Any, info: TensorInfo) -> np.ndarray:
    count = math.prod(info.shape)
    if not count:
        return np.zeros(info.shape, info.dtype)  # an empty tensor may lie at the very end, where nothing can be mapped
    return np.frombuffer(buffer, info.dtype, count, info.begin).reshape(info.shape)


def _checked_header(start: bytes, text: bytes, size: int, path: Path) -> Header:
    if size == 0:
        _refuse(path, "the file is empty")
    if len(start) < 8:
        _refuse(path, f"the file ends after {size} bytes, within the header's length")
    (length,) = struct.unpack("<Q", start)
    if length > MAX_HEADER or length > size - 8:
        _refuse(path, f"the header announces {length} bytes, the file holds {size}")
    if len(text) != length:
        _refuse(path, "the file ends within the header")
    entries = parse_object(text, f"{path}: the header")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _refuse(path, "the header's metadata are not strings")
    data_start = 8 + length
    tensors = {name: _checked_entry(name, entry, data_start, path) for name, entry in entries.items()}
    _check_places(tensors, data_start, size, path)
    return Header(tensors, metadata)


def _checked_entry(name: str, entry: Any, data_start: int, path: Path) -> TensorInfo:
    what = f"tensor {shown(name)}"
    if not name.isprintable():  # a name is shown to people and hashed as UTF-8: no line breaks, no lone surrogates
        _refuse(path, f"{what} has unprintable characters in its name")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        _refuse(path, f"{what} needs exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        _refuse(path, f"{what} has the unknown dtype {shown(str(dtype))}; known: {', '.join(DTYPES)}")
    if not _naturals(shape) or len(shape) > MAX_RANK:
        _refuse(path, f"{what} has a malformed shape")
    if not _naturals(offsets) or len(offsets) != 2:
        _refuse(path, f"{what} has malformed data_offsets")
    begin, end = offsets
    if end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
        _refuse(path, f"{what} of shape {shape} and dtype {dtype} does not fill its {end - begin} bytes")
    return TensorInfo(DTYPES[dtype], tuple(shape), data_start + begin, data_start + end)


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < MAX_SIZE for n in value)


def _check_places(tensors: dict[str, TensorInfo], data_start: int, size: int, path: Path) -> None:
    position = data_start
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.end > size:
            _refuse(path, f"tensor {shown(name)} ends at byte {info.end}, the file holds {size}")
        if info.begin != position:
            _refuse(path, f"tensor {shown(name)} leaves a gap or overlaps another")
        position = info.end
    if position != size:
        _refuse(path, f"{size - position} bytes at the end belong to no tensor")


def _refuse(path: Path, reason: str) -> NoReturn:
    raise InputError(f"{path}: not a valid safetensors file: {reason}; fetch it again")
