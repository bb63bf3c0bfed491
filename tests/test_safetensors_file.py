"""The safetensors reader against the reference implementation, and against files that lie."""

import json
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from tiny_bases import write_tensors

from mbjax.errors import InputError
from mbjax.io.safetensors_file import (
    ALIGNMENT,
    DTYPES,
    map_tensors,
    open_tensors,
    parse_tensors,
    read_header,
    write_safetensors,
)

PATH = Path("file.safetensors")


def some_tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    tensors = {f"t.{name}": rng.integers(0, 2, (3, 5)).astype(dtype) for name, dtype in DTYPES.items()}
    wide = rng.standard_normal((16, 32)).astype(np.float32)
    return tensors | {"wide": wide, "wide.half": wide.astype(ml_dtypes.bfloat16), "scalar": np.float32(3).reshape(())}


def packed(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(begin: int, end: int, shape: list, dtype: object = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_every_dtype_comes_back(tmp_path):
    tensors = some_tensors()
    write_tensors(tmp_path / PATH, tensors)
    read = map_tensors(tmp_path / PATH)
    assert read.keys() == tensors.keys()
    for name, array in tensors.items():
        assert read[name].dtype == array.dtype and not read[name].flags.writeable
        np.testing.assert_array_equal(read[name], array)
    mapped = open_tensors(tmp_path / PATH)
    assert not mapped.tensors["wide"].flags.writeable
    mapped.release()
    for name, array in tensors.items():  # read again from the file
        np.testing.assert_array_equal(mapped.tensors[name], array)


def test_the_reference_reads_what_is_written(tmp_path):
    tensors = {name: array for name, array in some_tensors().items() if "F8" not in name and "BF16" not in name}
    tensors.pop("wide.half")
    write_tensors(tmp_path / PATH, tensors)
    read = safetensors.numpy.load_file(tmp_path / PATH)
    assert read.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(read[name], array)


def test_what_the_reference_writes_is_read(tmp_path):
    tensors = {"a": np.arange(6, dtype=np.float16).reshape(2, 3), "b": np.arange(5), "none": np.zeros((0, 4))}
    safetensors.numpy.save_file(tensors, tmp_path / PATH, metadata={"format": "np"})
    read = map_tensors(tmp_path / PATH)
    for name, array in tensors.items():
        np.testing.assert_array_equal(read[name], array)
    assert read_header(tmp_path / PATH).metadata == {"format": "np"}
    from_bytes, metadata = parse_tensors((tmp_path / PATH).read_bytes(), PATH)
    assert metadata == {"format": "np"}
    np.testing.assert_array_equal(from_bytes["b"], tensors["b"])


def test_tensors_are_aligned_for_a_use_without_copy(tmp_path):
    write_tensors(tmp_path / PATH, some_tensors() | {"b": np.zeros(3, np.int8), "c": np.ones((8, 16), np.float32)})
    tensors = read_header(tmp_path / PATH).tensors
    assert min(info.begin for info in tensors.values()) % ALIGNMENT == 0
    for info in tensors.values():
        if (info.end - info.begin) % ALIGNMENT == 0:
            assert info.begin % ALIGNMENT == 0


def test_writing_something_else_than_announced_is_an_error(tmp_path):
    one = np.zeros(2, np.float32)
    for specs in (
        {"a": (one.dtype, (3,))},
        {"a": (np.dtype(np.int32), (2,))},
        {"a": (one.dtype, (2,)), "b": (one.dtype, ())},
    ):
        with open(tmp_path / PATH, "wb") as file, pytest.raises(ValueError, match="announced"):
            write_safetensors(file, specs, [("a", one)])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"\x10\0\0", "ends after 3 bytes"),
        (struct.pack("<Q", 2**62) + b"{}", "announces 4611686018427387904 bytes"),
        (struct.pack("<Q", 100) + b"{}", "announces 100 bytes"),
        (packed(b"nonsense"), "not valid JSON"),
        (packed(b"\xff\xfe{}"), "UTF-8"),
        (packed(b"[" * 100_000), "nested too deeply|not valid JSON"),
        (packed([]), "no JSON object"),
        (packed(b'{"a": {"dtype": "F32"}, "a": {}}'), "twice"),
        (packed({"__metadata__": {"a": 1}}), "metadata"),
        (packed({"a": 1}), "exactly dtype"),
        (packed({"a": entry(0, 4, [1]) | {"more": 1}}, b"1234"), "exactly dtype"),
        (packed({"a": entry(0, 4, [1], "Q4")}, b"1234"), "unknown dtype"),
        (packed({"a": entry(0, 4, [1], ["F32"])}, b"1234"), "unknown dtype"),
        (packed({"a": entry(0, 4, [-1, -1])}, b"1234"), "malformed shape"),
        (packed({"a": entry(0, 4, [True])}, b"1234"), "malformed shape"),
        (packed({"a": entry(0, 4, [1] * 9)}, b"1234"), "malformed shape"),
        (packed({"a": entry(0, 0, [2**52, 0])}), "malformed shape"),
        (packed({"a": entry(0, 4, [1.0])}, b"1234"), "malformed shape"),
        (packed({"a": entry(4, 0, [1])}, b"1234"), "does not fill"),
        (packed({"a": entry(0, 8, [1])}, b"12345678"), "does not fill"),
        (packed({"a": entry(0, 4, [1])}, b"123"), "ends at byte"),
        (packed({"a": entry(0, 4, [1])}, b"12345"), "belong to no tensor"),
        (packed({"a": entry(4, 8, [1])}, b"12345678"), "gap or overlaps"),
        (packed({"a": entry(0, 8, [2]), "b": entry(4, 8, [1])}, b"12345678"), "gap or overlaps"),
        (packed({"a\nb": entry(0, 4, [1])}, b"1234"), "unprintable"),
        (packed({"\ud800": entry(0, 4, [1])}, b"1234"), "unprintable"),
        (packed({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}, b"1234"), "malformed data_offsets"),
    ],
)
def test_malformed_files_are_refused_in_one_line(tmp_path, data, reason):
    (tmp_path / PATH).write_bytes(data)
    for read in (map_tensors, read_header, lambda path: parse_tensors(path.read_bytes(), path)):
        with pytest.raises(InputError, match=reason) as caught:
            read(tmp_path / PATH)
        assert str(tmp_path / PATH) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_file_and_directory(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            map_tensors(path)


def test_truncation_anywhere_is_refused():
    data = packed({"a": entry(0, 8, [2]), "b": entry(8, 12, [1])}, b"123456789abc")
    assert parse_tensors(data, PATH)[0].keys() == {"a", "b"}
    for length in range(len(data)):
        with pytest.raises(InputError):
            parse_tensors(data[:length], PATH)


def test_flipped_bits_are_refused_or_read():
    data = packed({"__metadata__": {"k": "v"}, "a": entry(0, 8, [2]), "b.c": entry(8, 12, [1, 1])}, b"123456789abc")
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(3000):
        mutant = bytearray(data)
        for _ in range(rng.integers(1, 4)):
            mutant[rng.integers(0, len(data) - 12)] ^= 1 << rng.integers(0, 8)
        try:
            parse_tensors(bytes(mutant), PATH)
        except InputError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 2000
