"""The manifest survives a round trip, and every field out of bounds is refused by its name."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_packs import BASE, CONFIG, SCORE, write_toy

from mbjax.core.config import RopeScaling
from mbjax.errors import InputError
from mbjax.io.pack_manifest import Compatible, ExpertPart, FileEntry, LoraPart, Manifest, manifest_bytes
from mbjax.io.pack_manifest_reader import read_manifest
from mbjax.io.strict_json import canonical, parse_object

WHERE = "toy/pack.json"


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return write_toy(tmp_path / "toy")


def test_every_field_survives(manifest: Manifest) -> None:
    scaling = RopeScaling("factors", factors=(1.0, 1.5, 2.0, 4.0))
    base = dataclasses.replace(BASE, template_digest=None, config=dataclasses.replace(CONFIG, rope_scaling=scaling))
    full = dataclasses.replace(
        manifest,
        base=base,
        name="Größe und Maß",
        version="1.2.3-rc.1+build.5",
        expert=ExpertPart(2, 16, 24),
        lora=LoraPart(8, ("q", "up"), (2, 3), {"3.q": 0, "0.down": 4}),
        compatible=(Compatible("other", "f" * 64, "b" * 64, (dataclasses.replace(SCORE, others={"wrong": 0.1}),)),),
        files=manifest.files | {"loss.png": FileEntry("0" * 64, 12)},
    )
    assert read_manifest(manifest_bytes(full), WHERE) == full
    assert full.parts == ("expert", "lora") and full.digest != manifest.digest
    assert full.lora is not None
    assert [full.lora.rank_of(*at) for at in ((2, "q"), (3, "q"), (0, "down"), (0, "q"))] == [8, 0, 4, 0]


def signed(manifest: Manifest, change: Callable[[Any], object]) -> bytes:
    """The manifest's JSON, changed and given the digest that belongs to it: what a hostile author would do."""
    document = json.loads(manifest_bytes(manifest))
    change(document)
    document.pop("digest")
    return json.dumps(document | {"digest": hashlib.sha256(canonical(document)).hexdigest()}).encode()


def put(*path: str | int, value: Any) -> Callable[[Any], object]:
    def change(document: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = value

    return change


ENTRY = {"sha256": "0" * 64, "bytes": 1}
BAD = [
    (put("format", value=2), "format must be 1"),
    (put("format", value=True), "format must be 1"),
    (put("format", value=1.0), "format must be 1"),
    (put("id", value="Toy"), "id is 'Toy'"),
    (put("id", value="../toy"), "id is '../toy'"),
    (put("id", value=7), "id must be printable text"),
    (put("name", value="a\x1b[2Jb"), "name must be printable"),
    (put("name", value="x" * 101), "name must be printable text of 1 to 100"),
    (put("version", value="1.0"), "semantic version"),
    (put("surprise", value=1), "unknown keys: 'surprise'"),
    (put("parts", value={}), "neither an expert nor a lora"),
    (put("parts", "magic", value={}), "parts has unknown keys: 'magic'"),
    (put("parts", "lora", "rank", value=0), "parts.lora.rank must be a whole number from 1"),
    (put("parts", "lora", "rank", value=10**9), "parts.lora.rank must be a whole number"),
    (put("parts", "lora", "rank", value=2.0), "parts.lora.rank must be a whole number"),
    (put("parts", "lora", "targets", value=["q", "q"]), "names something twice"),
    (put("parts", "lora", "targets", value=["head"]), "parts.lora.targets must be among"),
    (put("parts", "lora", "layers", value=[4]), "parts.lora.layers must be a whole number from 0 to 3"),
    (put("parts", "lora", "layers", value=[3, 2]), "parts.lora.layers must rise"),
    (put("parts", "lora", "layers", value=[]), "leave no map touched"),
    (put("parts", "lora", "ranks", value={"03.q": 4}), "keys LAYER.TARGET"),
    (put("parts", "expert", "n_layers", value=10**6), "parts.expert.n_layers must be"),
    (put("parts", "expert", "d_model", value=-1), "parts.expert.d_model must be"),
    (put("base", "digest", value="A" * 64), "base.digest is"),
    (put("base", "config", "n_layers", value=10**7), "base.config.n_layers must be"),
    (put("base", "config", "tap", value=5), "base.config.tap must be a whole number from 0 to 4"),
    (put("base", "config", "head_dim", value=7), "base.config.head_dim must be even"),
    (put("base", "config", "n_kv_heads", value=3), "multiple of n_kv_heads"),
    (put("base", "config", "rms_eps", value=0), "base.config.rms_eps must be a number"),
    (put("base", "config", "rope_scaling", value={"kind": "yarn"}), "base.config.rope_scaling"),
    (put("route", "threshold", value=1.5), "route.threshold must be a number from 0 to 1"),
    (put("route", "threshold", value="0.5"), "route.threshold must be a number"),
    (put("route", "tensors", "route.vectors", value=[2**24, 2, -1]), "route.tensors.route.vectors"),
    (put("route", "tensors", "lora.2.q.a", value=[1]), "names such as route.vectors"),
    (put("dtype", value="float64"), "dtype must be one of: float32, bfloat16"),
    (put("quantisation", value="int3"), "quantisation must be one of: none, int8, int4; for another, update"),
    (put("requires", value=["time-travel"]), "requires time-travel"),
    (put("files", "../x", value=ENTRY), "is no name for a pack's file"),
    (put("files", "a/b", value=ENTRY), "is no name for a pack's file"),
    (put("files", "/etc/passwd", value=ENTRY), "is no name for a pack's file"),
    (put("files", "..", value=ENTRY), "is no name for a pack's file"),
    (put("files", "pack.json", value=ENTRY), "is no name for a pack's file"),
    (put("files", "readme.MD", value=ENTRY), "by case only"),
    (put("files", "README.md", "bytes", value=2**40), "files.README.md.bytes must be"),
    (put("files", "README.md", "sha256", value="0"), "files.README.md.sha256"),
    (lambda document: document["files"].pop("pack.safetensors"), "files.pack.safetensors is missing"),
    (lambda document: document["files"].update({f"f{i}": ENTRY for i in range(40)}), "files has more than 32"),
    (lambda document: document.pop("licence"), "licence is missing"),
    (put("data", 0, "licence", value=None), "data[0].licence must be"),
    (put("compatible", value=[1]), "compatible[0] must be an object"),
    (put("compatible", value={}), "compatible must be a list"),
]


@pytest.mark.parametrize(("change", "reason"), BAD, ids=[reason for _, reason in BAD])
def test_what_is_out_of_bounds_is_refused_by_name(manifest: Manifest, change: Callable, reason: str) -> None:
    with pytest.raises(InputError) as caught:
        read_manifest(signed(manifest, change), WHERE)
    assert str(caught.value).startswith(WHERE) and reason in str(caught.value) and "\n" not in str(caught.value)


def test_an_unsigned_change_is_refused(manifest: Manifest) -> None:
    text = manifest_bytes(manifest).decode()
    assert '"threshold": 0.7' in text
    with pytest.raises(InputError, match="digest does not match"):
        read_manifest(text.replace('"threshold": 0.7', '"threshold": 0.1').encode(), WHERE)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "not valid JSON"),
        (b"[]", "no JSON object"),
        (b'{"a": 1, "a": 2}', "a key stands there twice"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": -Infinity}', "-Infinity is no number"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": 99999999999999999999}', "too large"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": 1} x', "Extra data"),
        (b'{"a": "\x01"}', "not valid JSON"),
    ],
)
def test_json_that_python_would_let_pass_is_refused(text: bytes, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        parse_object(text, WHERE)
    assert "\n" not in str(caught.value)
