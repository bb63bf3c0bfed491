"""P6 by brute force: whatever is done to a pack's bytes, the reader refuses it in one line or loads it unchanged."""

import copy
import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
from tiny_packs import CONFIG, random_pack, route_key, same_trees, write_toy

from mbjax.errors import MbjaxError
from mbjax.io.pack_dir import StoredPack, read_pack
from mbjax.io.peft import export_peft, import_peft
from mbjax.io.strict_json import canonical

N_MUTATIONS = 5_500
N_HOSTILE = 1_500
N_ADAPTERS = 800
NASTY: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**53, 2**64, 10**400, 0.5, -0.0, 1e300, "", "x", "../../etc/passwd", "/etc/passwd",
    "pack.json", "a\nb", "\x1b[2J", "\ud800", "ü" * 50, "9" * 5_000, [], {}, [[]], [1, 2, 3], {"a": 1}, ["q", "q"],
)  # fmt: skip


def mutated(data: bytes, rng: random.Random) -> bytes:
    """One random change of a byte range: overwritten, flipped, cut out, doubled, truncated, inserted, appended."""
    start = rng.randrange(len(data) + 1)
    stop = min(len(data), start + rng.choice((1, 1, 1, 2, 4, 8, 64, 1_000)))
    noise = rng.randbytes(stop - start)
    kind = rng.randrange(8)
    if kind == 0:
        return data[:start] + noise + data[stop:]
    if kind == 1 and start < len(data):
        return data[:start] + bytes([data[start] ^ 1 << rng.randrange(8)]) + data[start + 1 :]
    if kind == 2:
        return data[:start] + data[stop:]
    if kind == 3:
        return data[:stop] + data[start:]
    if kind == 4:
        return data[:start]
    if kind == 5:
        return data[:start] + bytes(stop - start) + data[stop:]
    if kind == 6 and start < len(data) and chr(data[start]).isdigit():
        return data[:start] + rng.choice("0123456789").encode() + data[start + 1 :]
    return data + (noise or b"\n")


def equal(one: StoredPack, other: StoredPack) -> bool:
    """Every tensor to the bit, every setting, score and word."""
    assert one.route is not None and other.route is not None
    same = same_trees((one.params, one.route.tensors), (other.params, other.route.tensors))
    rest = [
        (s.manifest, s.scores, s.card, s.route.threshold, s.route.background_digest) for s in (one, other) if s.route
    ]
    return same and rest[0] == rest[1]


def outcome(path: Path) -> StoredPack | None:
    """What was read, or None where the reader refused in one line; anything else fails the test."""
    try:
        return read_pack(path)
    except MbjaxError as error:
        assert "\n" not in str(error) and str(error).isprintable() and len(str(error)) < 2_000, str(error)
        return None


@pytest.fixture(params=["float32", "int8", "int4"])
def toy(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    write_toy(tmp_path / "toy", dtype=request.param)
    return tmp_path / "toy"


def shares(toy: Path, n: int) -> int:
    """The formats share the mutations."""
    return n * 3 // 5 if read_pack(toy).manifest.quantisation == "none" else n // 5


def test_no_mutation_changes_what_is_loaded(toy: Path) -> None:
    n_mutations = shares(toy, N_MUTATIONS)
    original = read_pack(toy)
    files = {path: path.read_bytes() for path in sorted(toy.iterdir())}
    rng = random.Random(20)
    weights = {"pack.json": 5, "pack.safetensors": 3, "scores.json": 1, "README.md": 1}
    loaded = 0
    for i in range(n_mutations):
        (path,) = rng.choices(list(files), [weights[path.name] for path in files])
        changed = mutated(files[path], rng)
        path.write_bytes(changed)
        found = outcome(toy)
        if found is not None:
            loaded += 1
            assert equal(found, original), f"mutation {i} of {path.name} was loaded"
            assert changed == files[path] or path.name == "pack.json", f"mutation {i} of {path.name} went unnoticed"
        path.write_bytes(files[path])
    assert equal(read_pack(toy), original)
    assert loaded < n_mutations // 10  # white space in pack.json, and changes to what it was


def test_the_comparison_sees_every_kind_of_change(tmp_path: Path) -> None:
    write_toy(tmp_path / "a")
    write_toy(tmp_path / "b", random_pack(seed=1))
    write_toy(tmp_path / "c", version="1.0.1")
    packs = [read_pack(tmp_path / name) for name in "abc"]
    assert equal(packs[0], packs[0]) and not equal(packs[0], packs[1]) and not equal(packs[0], packs[2])


def test_files_of_another_sound_pack_are_refused(toy: Path, tmp_path: Path) -> None:
    write_toy(tmp_path / "other", random_pack(seed=1), version="1.0.1")
    for name in ("pack.json", "pack.safetensors"):
        kept = (toy / name).read_bytes()
        (toy / name).write_bytes((tmp_path / "other" / name).read_bytes())
        assert outcome(toy) is None
        (toy / name).write_bytes(kept)
    assert outcome(toy) is not None


def test_no_hostile_adapter_crashes_the_import(tmp_path: Path) -> None:
    path = tmp_path / "adapter"
    export_peft(path, random_pack(expert=False), "tiny")
    files = {name: (path / name).read_bytes() for name in ("adapter_config.json", "adapter_model.safetensors")}
    document = json.loads(files["adapter_config.json"]) | {"rank_pattern": {"q_proj": 2}, "layers_to_transform": [2, 3]}
    rng, refused = random.Random(22), 0
    for i in range(N_ADAPTERS):
        if i % 2:
            head = mutated(files["adapter_model.safetensors"][:1_500], rng)
            (path / "adapter_model.safetensors").write_bytes(head + files["adapter_model.safetensors"][1_500:])
        else:
            forged = copy.deepcopy(document)
            forge(forged, rng)
            (path / "adapter_config.json").write_text(json.dumps(forged))
        try:
            import_peft(path, CONFIG)
        except MbjaxError as error:
            refused += 1
            assert "\n" not in str(error) and str(error).isprintable() and len(str(error)) < 2_000, str(error)
        for name, data in files.items():
            (path / name).write_bytes(data)
    assert N_ADAPTERS // 2 < refused < N_ADAPTERS


def test_no_hostile_author_crashes_the_reader(toy: Path) -> None:
    """The same with digests that agree: files changed and their sha256 stated anew, fields of any value, signed."""
    files = {path.name: path.read_bytes() for path in sorted(toy.iterdir())}
    document = json.loads(files["pack.json"])
    rng, n_hostile = random.Random(21), shares(toy, N_HOSTILE)
    refused = 0
    for _ in range(n_hostile):
        forged = copy.deepcopy(document)
        name = rng.choice(("pack.json", "pack.safetensors", "pack.safetensors", "scores.json", "README.md"))
        if name == "pack.json":
            forge(forged, rng)
        else:
            data = mutated(files[name], rng)
            if name == "pack.safetensors" and rng.random() < 0.7:  # the header is where a parser can be fooled
                data = mutated(files[name][:1_000], rng) + files[name][1_000:]
            (toy / name).write_bytes(data)
            forged["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        forged["digest"] = hashlib.sha256(canonical({k: v for k, v in forged.items() if k != "digest"})).hexdigest()
        (toy / "pack.json").write_text(json.dumps(forged))
        refused += outcome(toy) is None
        for changed in ("pack.json", name):
            (toy / changed).write_bytes(files[changed])
    assert refused > n_hostile // 2
    assert route_key().threshold == outcome(toy).manifest.route.threshold  # pyright: ignore[reportOptionalMemberAccess]


def forge(document: dict[str, Any], rng: random.Random) -> None:
    """Puts a nasty value, or takes the value away, somewhere in the document."""
    at: Any = document
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(at[key], (dict, list)) and at[key] and rng.random() < 0.8:
            at = at[key]
            continue
        if rng.random() < 0.2:
            del at[key]
        elif isinstance(at, dict) and rng.random() < 0.2:
            at[str(rng.choice(NASTY))] = at.pop(key)
        else:
            at[key] = rng.choice(NASTY)
        return
