"""The GGUF reader against files written by the `gguf` package, and against files that lie."""

import struct

import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import quantize
from tiny_bases import CONFIG, random_weights, write_gguf

from mbjax.core.config import RopeScaling
from mbjax.errors import InputError
from mbjax.io.gguf_file import read_gguf
from mbjax.io.gguf_header import TYPES, read_gguf_header
from mbjax.io.names import check_tensors

STEPS = {"F16": 0.0, "BF16": 0.0, "Q8_0": 1 / 127, "Q5_1": 1 / 31, "Q5_0": 1 / 15, "Q4_1": 1 / 15, "Q4_0": 1 / 7}


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def crafted(tensors: list[bytes] = (), pairs: list[bytes] = (), data: bytes = b"", **changes) -> bytes:
    """A GGUF file by hand: `tensors` and `pairs` are header entries; changes: version, n_tensors, n_pairs."""
    counts = {"version": 3, "n_tensors": len(tensors), "n_pairs": len(pairs)} | changes
    header = b"GGUF" + struct.pack("<IQQ", counts["version"], counts["n_tensors"], counts["n_pairs"])
    header += b"".join(pairs) + b"".join(tensors)
    return header + b"\0" * (-len(header) % 32) + data


def tensor(name: str, shape: tuple, kind: int = 0, offset: int = 0, rank: int | None = None) -> bytes:
    dims = struct.pack(f"<{len(shape)}Q", *shape)
    return (
        text(name) + struct.pack("<I", len(shape) if rank is None else rank) + dims + struct.pack("<IQ", kind, offset)
    )


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def test_every_kind_of_metadata_comes_back(tmp_path):
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "x.gguf", "llama")
    scalars = {"uint8": 200, "int8": -3, "uint16": 60_000, "int16": -5, "uint32": 2**31, "int32": -7, "uint64": 2**63}
    scalars |= {"int64": -(2**40), "float32": 0.5, "float64": 0.1, "bool": True, "string": "größe\n"}
    for kind, value in scalars.items():
        getattr(writer, f"add_{kind}")(f"x.{kind}", value)
    arrays = {"ints": [1, 2, 3], "floats": [0.5, 1.5], "texts": ["a", "", "日本"], "flags": [True, False]}
    for name, value in arrays.items():
        writer.add_array(f"x.{name}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    metadata = read_gguf_header(tmp_path / "x.gguf").metadata
    assert metadata.pop("general.architecture") == "llama"
    expected = scalars | arrays
    assert metadata == {f"x.{name}": value for name, value in expected.items()}
    assert all(type(metadata[f"x.{name}"]) is type(value) for name, value in expected.items())


def test_configuration_and_float_weights_are_those_of_the_model(tmp_path):
    weights = random_weights()
    base = read_gguf(write_gguf(tmp_path / "x.gguf", weights))
    assert base.config == CONFIG and base.dtype == "float32"
    check_tensors(base.config, base.shapes, base.path)
    for name, array in weights.items():
        np.testing.assert_array_equal(base.read(name), array)


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_other_architectures_are_not_permuted(tmp_path, architecture):
    weights = random_weights()
    base = read_gguf(write_gguf(tmp_path / "x.gguf", weights, architecture=architecture))
    for name, array in weights.items():
        np.testing.assert_array_equal(base.read(name), array)
    assert base.config.qkv_bias == (architecture == "qwen2") and base.config.qk_norm == (architecture == "qwen3")


@pytest.mark.parametrize("kind", STEPS)
def test_quantised_weights_are_near_the_originals(tmp_path, kind):
    weights = random_weights()
    base = read_gguf(write_gguf(tmp_path / "x.gguf", weights, matrices=kind))
    assert base.dtype == ("bfloat16" if kind in ("F16", "BF16") else "float32")
    for name, array in weights.items():
        read = base.read(name)
        assert read.dtype == np.float32 and read.shape == array.shape
        assert np.abs(read - array).max() <= STEPS[kind] * 1.05


def test_block_sizes_are_those_of_the_package():
    for number, (name, block, block_bytes) in TYPES.items():
        assert GGMLQuantizationType[name] == number and GGML_QUANT_SIZES[number] == (block, block_bytes)


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_k_quants_give_finite_rows_of_the_right_shape(tmp_path, kind):
    name, block, block_bytes = TYPES[GGMLQuantizationType[kind].value]
    number = int(GGMLQuantizationType[kind])
    data = np.random.default_rng(0).integers(0, 60, 2 * 3 * block_bytes, dtype=np.uint8).tobytes()
    infos = [tensor("token_embd.weight", (2 * block, 3), number)]
    path = tmp_path / "x.gguf"
    path.write_bytes(crafted(infos, base_pairs(), data))
    base = read_gguf(path)
    read = base.read("model.embed_tokens.weight")
    assert name == kind and read.shape == (3, 2 * block) and np.isfinite(read).all() and np.ptp(read) > 0


def base_pairs(**changes: bytes) -> list[bytes]:
    keys = ("block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count")
    pairs = {"general.architecture": pair("general.architecture", 8, text("llama"))}
    pairs |= {key: pair(f"llama.{key}", 4, struct.pack("<I", 4)) for key in keys}
    eps = "attention.layer_norm_rms_epsilon"
    pairs |= {"key_length": pair("llama.attention.key_length", 4, struct.pack("<I", 8))}
    return list((pairs | {eps: pair(f"llama.{eps}", 6, struct.pack("<f", 1e-5))} | changes).values())


def test_scaled_rope(tmp_path):
    factors = (1.0, 1.0, 1.5, 2.0, 4.0, 8.0, 8.0, 8.0)
    base = read_gguf(write_gguf(tmp_path / "a.gguf", random_weights(), factors=factors))
    assert base.config.rope_scaling == RopeScaling("factors", factors=factors)
    check_tensors(base.config, base.shapes, base.path)
    linear = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}
    base = read_gguf(write_gguf(tmp_path / "b.gguf", random_weights(), extra=linear))
    assert base.config.rope_scaling == RopeScaling("linear", factor=2.0)
    for bad in (factors[:4], (0.0, *factors[1:]), (float("nan"), *factors[1:])):
        with pytest.raises(InputError, match="rope_freqs.weight must be 8 positive numbers"):
            read_gguf(write_gguf(tmp_path / "c.gguf", random_weights(), factors=bad))


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({"llama.expert_count": 8}, "mixture of '8' experts"),
        ({"llama.rope.scaling.type": "yarn"}, "rope type 'yarn'"),
        ({"llama.rope.dimension_count": 8}, "rope.dimension_count 8"),
        ({"llama.attention.value_length": 32}, "attention.value_length 32"),
        ({"llama.attention.sliding_window": 128}, "sliding window of '128'"),
        ({"split.count": 2}, "split file"),
        ({"llama.block_count": 0}, "llama.block_count is '0'"),
        ({"llama.block_count": "x"}, "llama.block_count is 'x'"),
        ({"llama.attention.head_count": [4, 2]}, "head_count is"),
        ({"llama.attention.head_count_kv": 3}, "not a multiple"),
        ({"llama.rope.freq_base": float("nan")}, "rope.freq_base is 'nan'"),
        ({"general.alignment": 33}, "alignment"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(tmp_path, extra, reason):
    path = tmp_path / "x.gguf"
    if "general.alignment" in extra:
        path.write_bytes(crafted(pairs=[pair("general.alignment", 4, struct.pack("<I", 33))]))
    else:
        write_gguf(path, random_weights(), extra=extra)
    with pytest.raises(InputError, match=reason) as caught:
        read_gguf(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_architecture_is_named(tmp_path):
    with pytest.raises(InputError, match="architecture 'gpt2'; known: llama, qwen2, qwen3"):
        read_gguf(write_gguf(tmp_path / "x.gguf", random_weights(), architecture="gpt2"))


ONE = tensor("a", (8,))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"GGUF", "announces 4 more bytes"),
        (b"GGML" + bytes(40), "does not begin with GGUF"),
        (crafted(version=1), "version 1"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(16), "version 50331648"),
        (crafted(n_tensors=2**62), "announces"),
        (crafted(n_pairs=2**62), "announces"),
        (crafted(pairs=[text("k" * 70_000) + bytes(5)]), "text of 70000 bytes"),
        (crafted(pairs=[struct.pack("<Q", 2**63)]), "announces a text of"),
        (crafted(pairs=[pair("k", 8, struct.pack("<Q", 500))]), "announces a text of|announces 500 more bytes"),
        (crafted(pairs=[pair("k", 8, text("ab")[:-2] + b"\xff\xfe")]), "not UTF-8"),
        (crafted(pairs=[pair("k", 13, b"")]), "unknown value type 13"),
        (crafted(pairs=[pair("k", 9, struct.pack("<IQ", 9, 1))]), "array of the unknown value type 9"),
        (crafted(pairs=[pair("k", 9, struct.pack("<IQ", 4, 2**60))]), "more bytes"),
        (crafted(pairs=[pair("k", 9, struct.pack("<IQ", 8, 2**60))]), "texts"),
        (crafted(pairs=[pair("k", 7, b"\1"), pair("k", 7, b"\1")]), "there twice"),
        (crafted([ONE, ONE], data=bytes(64)), "there twice"),
        (crafted([tensor("a\nb", (8,))], data=bytes(32)), "not printable"),
        (crafted([tensor("a", (8,), kind=99)], data=bytes(32)), "quantisation type 99, which is not known here"),
        (crafted([tensor("a", (8,), kind=4)], data=bytes(32)), "quantisation type 4,"),
        (crafted([tensor("a", (33,), kind=2)], data=bytes(64)), "of type Q4_0 has the shape"),
        (crafted([tensor("a", (0,))]), "has the shape"),
        (crafted([tensor("a", (2**50,))]), "has the shape"),
        (crafted([tensor("a", (2**40, 2**40))]), "ends at byte"),
        (crafted([tensor("a", (8,), rank=0)], data=bytes(32)), "0 dimensions"),
        (crafted([tensor("a", (8,), rank=2**31)], data=bytes(32)), "dimensions"),
        (crafted([ONE], data=bytes(31)), "ends at byte"),
        (crafted([tensor("a", (8,), offset=8)], data=bytes(64)), "not aligned"),
        (crafted([tensor("a", (16,)), tensor("b", (8,), offset=32)], data=bytes(96)), "overlaps"),
        (crafted([tensor("a", (8,), offset=2**63)], data=bytes(64)), "ends at byte"),
    ],
)
def test_malformed_files_are_refused_in_one_line(tmp_path, data, reason):
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    with pytest.raises(InputError, match=reason) as caught:
        read_gguf(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_gguf(tmp_path / "none.gguf")


def test_truncation_anywhere_is_refused(tmp_path):
    whole = write_gguf(tmp_path / "x.gguf", random_weights()).read_bytes()
    header = read_gguf_header(tmp_path / "x.gguf")
    end = max(info.begin + info.n_bytes for info in header.tensors.values())
    path = tmp_path / "cut.gguf"
    for length in [*range(200), *np.random.default_rng(0).integers(200, end, 100)]:
        path.write_bytes(whole[:length])
        with pytest.raises(InputError):
            read_gguf(path)


def test_flipped_bits_are_refused_or_read(tmp_path):
    infos = [tensor("token_embd.weight", (32, 4), 8), tensor("rope_freqs.weight", (4,), 0, 160)]
    factors = np.ones(4, np.float32).tobytes()
    whole = crafted(infos, base_pairs(), quantize(np.ones((4, 32), np.float32), 8).tobytes().ljust(160) + factors)
    path = tmp_path / "x.gguf"
    path.write_bytes(whole)
    assert read_gguf(path).read("model.embed_tokens.weight").shape == (4, 32)
    rng = np.random.default_rng(2)
    refused = 0
    for _ in range(2000):
        mutant = bytearray(whole)
        for _ in range(rng.integers(1, 3)):
            mutant[rng.integers(0, len(whole) - 176)] ^= 1 << rng.integers(0, 8)
        path.write_bytes(mutant)
        try:
            base = read_gguf(path)
            for name in base.names:
                base.read(name)
        except InputError as error:
            assert "\n" not in str(error)
            refused += 1
    assert 1000 < refused < 2000
