"""A pack directory keeps what was written, is replaced as a whole, and is refused when it is not as written."""

import dataclasses
import hashlib
import json
import os
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_packs import BASE, CONFIG, SCORE, FakeBase, about, random_pack, route_key, same_trees, write_toy

from mbjax.core.pack import Pack
from mbjax.errors import FailureError, InputError
from mbjax.io import pack_files
from mbjax.io.pack_check import list_packs, verify_pack
from mbjax.io.pack_dir import read_pack, update_pack, write_pack
from mbjax.io.pack_load import load_pack
from mbjax.io.pack_manifest import Compatible, FileEntry, Manifest, manifest_bytes
from mbjax.io.pack_tensors import named


def one_line(call, *words: str) -> str:
    with pytest.raises(InputError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and all(word in text for word in words), text
    return text


@pytest.mark.parametrize("parts", [{"expert": False}, {"lora": False}, {}])
def test_what_is_written_is_read(tmp_path: Path, parts: dict[str, bool]) -> None:
    pack = random_pack(**parts)
    manifest = write_toy(tmp_path / "toy", pack)
    stored = read_pack(tmp_path / "toy")
    assert same_trees(stored.params, pack)
    assert stored.manifest == manifest and stored.scores == (SCORE,) and stored.card == "# Toy\n"
    assert stored.route is not None and stored.route.threshold == 0.7
    assert same_trees(stored.route.tensors, route_key().tensors)
    assert verify_pack(tmp_path / "toy") == []


def test_bfloat16_halves_the_matrices_and_keeps_norms_and_scales(tmp_path: Path) -> None:
    pack = random_pack()
    write_pack(tmp_path / "toy", pack, about(), card="x", dtype="bfloat16")
    stored = named(read_pack(tmp_path / "toy").params)
    for name, leaf in named(pack).items():
        wanted = leaf if leaf.ndim < 2 else leaf.astype(jnp.bfloat16)
        assert stored[name].dtype == wanted.dtype and np.array_equal(stored[name], wanted), name


def test_what_bfloat16_cannot_hold_is_not_written(tmp_path: Path) -> None:
    pack = random_pack(lora=False)
    assert pack.expert is not None
    huge = dataclasses.replace(pack, expert=dataclasses.replace(pack.expert, out=np.full((16, 8), 3.4e38, np.float32)))
    with pytest.raises(FailureError, match=r"expert\.out holds NaN or infinite"):
        write_pack(tmp_path / "toy", huge, about(), card="x", dtype="bfloat16")


def test_names_are_the_documented_ones(tmp_path: Path) -> None:
    names = set(named(random_pack()))
    assert {"lora.2.q.a", "lora.3.down.scale", "expert.into", "expert.layers.0.attn.q", "expert.norm"} <= names


def test_uneven_ranks_survive(tmp_path: Path) -> None:
    pack = random_pack(expert=False)
    assert pack.lora is not None and pack.lora.layers[2] is not None and pack.lora.layers[2].q is not None
    wide = dataclasses.replace(pack.lora.layers[2].q, a=np.ones((3, 16), np.float32), b=np.ones((16, 3), np.float32))
    layer = dataclasses.replace(pack.lora.layers[2], q=wide, down=None)
    uneven = Pack(lora=dataclasses.replace(pack.lora, layers=(None, None, layer, pack.lora.layers[3])))
    manifest = write_toy(tmp_path / "toy", uneven)
    assert manifest.lora is not None and manifest.lora.ranks == {"2.q": 3, "2.down": 0}
    assert same_trees(read_pack(tmp_path / "toy").params, uneven)


def test_replacing_leaves_one_directory_and_no_stranger_is_deleted(tmp_path: Path) -> None:
    write_toy(tmp_path / "toy")
    write_toy(tmp_path / "toy", version="1.0.1")
    assert os.listdir(tmp_path) == ["toy"] and read_pack(tmp_path / "toy").manifest.version == "1.0.1"
    (tmp_path / "toy" / "notes.txt").write_text("mine")
    one_line(lambda: write_toy(tmp_path / "toy"), "notes.txt", "move it away")
    assert "notes.txt" in verify_pack(tmp_path / "toy")[0]
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis").write_text("mine")
    one_line(lambda: write_toy(tmp_path / "home"), "is not a pack")
    assert (tmp_path / "home" / "thesis").read_text() == "mine"


def test_an_update_changes_nothing_else(tmp_path: Path) -> None:
    pack, more = random_pack(), {"loss.png": b"png"}
    path = tmp_path / "toy"
    write_pack(path, pack, about(), scores=[SCORE], card="old", dtype="bfloat16", route=route_key(), more_files=more)
    before = read_pack(path)
    better = dataclasses.replace(SCORE, pack=0.9)
    update_pack(path, scores=[better], card="new")
    after = read_pack(path)
    assert after.scores == (better,) and after.card == "new" and after.more_files == more
    assert same_trees(after.params, before.params) and after.manifest.route == before.manifest.route
    kept = dataclasses.replace(after.manifest, files=before.manifest.files)
    assert kept == before.manifest and after.manifest.digest != before.manifest.digest
    other = Compatible("other", "f" * 64, "9" * 64, (better,))
    assert update_pack(path, compatible=[other]).compatible == (other,)


def test_a_failed_write_keeps_the_old_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = write_toy(tmp_path / "toy")

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mbjax.io.pack_dir.write_file", full)
    with pytest.raises(FailureError, match="disk is full"):
        write_toy(tmp_path / "toy", version="2.0.0")
    assert read_pack(tmp_path / "toy").manifest == old and os.listdir(tmp_path) == ["toy"]


def test_readers_meanwhile_see_the_old_or_the_new(tmp_path: Path) -> None:
    packs = [random_pack(seed=seed) for seed in (1, 2)]
    write_toy(tmp_path / "toy", packs[0])
    done, failures = threading.Event(), []

    def read() -> None:
        while not done.is_set():
            try:
                params = read_pack(tmp_path / "toy").params
                if not any(same_trees(params, pack) for pack in packs):
                    failures.append("a mixture")
            except InputError as error:
                failures.append(str(error))

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(20):
        write_toy(tmp_path / "toy", packs[i % 2])
    done.set()
    reader.join()
    assert not failures


def test_without_exchange_the_pack_is_still_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_files, "_exchange", lambda one, other: False)
    for version in ("1.0.0", "1.0.1"):
        write_toy(tmp_path / "toy", version=version)
    assert os.listdir(tmp_path) == ["toy"] and read_pack(tmp_path / "toy").manifest.version == "1.0.1"


def test_non_finite_tensors_are_neither_written_nor_read(tmp_path: Path) -> None:
    pack = random_pack()
    assert pack.expert is not None
    sick = dataclasses.replace(pack, expert=dataclasses.replace(pack.expert, norm=np.full(8, np.nan, np.float32)))
    with pytest.raises(FailureError, match=r"expert\.norm holds NaN"):
        write_toy(tmp_path / "toy", sick)
    assert not os.listdir(tmp_path)
    write_toy(tmp_path / "toy")
    _rewrite_tensors(tmp_path / "toy", lambda data: data[:-4] + np.float32(np.inf).tobytes())
    one_line(lambda: read_pack(tmp_path / "toy"), "pack.safetensors", "NaN or infinite")


def test_a_pack_that_does_not_fit_its_base_is_not_written(tmp_path: Path) -> None:
    wider = dataclasses.replace(CONFIG, d_model=32)
    one_line(lambda: write_toy(tmp_path / "toy", random_pack(wider, expert=False)), "does not fit", "shape")
    one_line(lambda: write_toy(tmp_path / "toy", random_pack(), id="../evil"), "id", "small letters")
    assert not os.listdir(tmp_path)


def test_files_of_the_wrong_size_are_never_read(tmp_path: Path) -> None:
    write_toy(tmp_path / "toy")
    with open(tmp_path / "toy" / "pack.safetensors", "r+b") as file:
        file.truncate(2**40)  # a terabyte of nothing
    one_line(lambda: read_pack(tmp_path / "toy"), "pack.safetensors", "1099511627776 bytes, the manifest says")
    with open(tmp_path / "toy" / "pack.json", "r+b") as file:
        file.truncate(2**40)
    one_line(lambda: read_pack(tmp_path / "toy"), "pack.json", "at most")


def test_a_manifest_that_announces_a_huge_file_is_refused_before_reading(tmp_path: Path) -> None:
    write_toy(tmp_path / "toy")
    with open(tmp_path / "toy" / "pack.safetensors", "r+b") as file:
        file.truncate(2**35)
    manifest = read_manifest_of(tmp_path / "toy")
    entry = dataclasses.replace(manifest.files["pack.safetensors"], bytes=2**35)
    _sign(tmp_path / "toy", dataclasses.replace(manifest, files=manifest.files | {"pack.safetensors": entry}))
    one_line(lambda: read_pack(tmp_path / "toy"), "the parts announced take")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_a_pipe_in_a_files_place_does_not_hang(tmp_path: Path) -> None:
    write_toy(tmp_path / "toy")
    os.unlink(tmp_path / "toy" / "README.md")
    os.mkfifo(tmp_path / "toy" / "README.md")
    one_line(lambda: read_pack(tmp_path / "toy"), "README.md", "not a plain file")


def test_missing_things_are_named(tmp_path: Path) -> None:
    one_line(lambda: read_pack(tmp_path / "none"), "none", "no such directory")
    (tmp_path / "file").write_text("x")
    one_line(lambda: read_pack(tmp_path / "file"), "not a directory")
    (tmp_path / "empty").mkdir()
    one_line(lambda: read_pack(tmp_path / "empty"), "pack.json: is missing")
    write_toy(tmp_path / "toy")
    for name in ("scores.json", "README.md"):
        os.unlink(tmp_path / "toy" / name)
    assert [Path(line.split(":")[0]).name for line in verify_pack(tmp_path / "toy")] == ["scores.json", "README.md"]


def test_loading_binds_to_the_base(tmp_path: Path) -> None:
    path = tmp_path / "toy"
    write_toy(path)
    loaded = load_pack(path, FakeBase())  # pyright: ignore[reportArgumentType]
    assert loaded.notes == () and all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(loaded.params))
    other = FakeBase(digest="f" * 64, name="other")
    one_line(lambda: load_pack(path, other), "trained on tiny", "not on other", "--force-base")
    assert "by force" in load_pack(path, other, force_base=True).notes[0]  # pyright: ignore[reportArgumentType]
    one_line(lambda: load_pack(path, FakeBase(tokenizer_digest="f" * 64)), "another tokenizer")
    assert "chat template" in load_pack(path, FakeBase(template_digest=None)).notes[0]  # pyright: ignore[reportArgumentType]


def test_a_compatible_base_needs_scores(tmp_path: Path) -> None:
    other = FakeBase(digest="f" * 64, name="other", tokenizer_digest="9" * 64)
    entry = Compatible("other", other.digest, other.tokenizer_digest, (SCORE,))
    write_toy(tmp_path / "toy", compatible=(entry,))
    assert load_pack(tmp_path / "toy", other).manifest.compatible == (entry,)  # pyright: ignore[reportArgumentType]
    unmeasured = dataclasses.replace(entry, scores=())
    one_line(lambda: write_toy(tmp_path / "toy", compatible=(unmeasured,)), "compatible[0].scores", "at least one")


@pytest.mark.parametrize(
    ("change", "word"), [({"tap": 1}, "tap"), ({"d_ff": 32}, "gate"), ({"rope_theta": 5e5}, "rotary")]
)
def test_shapes_that_do_not_fit_are_refused_even_by_force(tmp_path: Path, change: dict, word: str) -> None:
    write_toy(tmp_path / "toy")
    base = FakeBase(config=dataclasses.replace(CONFIG, **change))
    one_line(lambda: load_pack(tmp_path / "toy", base, force_base=True), "does not fit", word)


def test_list_shows_damage_duplicates_and_passes_over_the_router(tmp_path: Path) -> None:
    write_toy(tmp_path / "a")
    write_toy(tmp_path / "b", id="other")
    write_toy(tmp_path / "c")
    (tmp_path / "router").mkdir()
    (tmp_path / "b" / "pack.json").write_text("{}")
    packs = list_packs(tmp_path)
    assert [pack.id for pack in packs] == ["toy", "b", "toy"]
    assert packs[1].manifest is None and "format" in packs[1].problems[0]
    assert all("another pack" in pack.problems[0] for pack in (packs[0], packs[2]))
    one_line(lambda: list_packs(tmp_path / "none"), "cannot be listed")


def test_the_digest_is_that_of_the_canonical_manifest(tmp_path: Path) -> None:
    manifest = write_toy(tmp_path / "toy")
    document = json.loads((tmp_path / "toy" / "pack.json").read_bytes())
    assert document["digest"] == manifest.digest and document["base"]["digest"] == BASE.digest
    (tmp_path / "toy" / "pack.json").write_text(json.dumps(document, separators=(" ,", " : "), sort_keys=True))
    assert read_pack(tmp_path / "toy").manifest.digest == manifest.digest


def read_manifest_of(path: Path) -> Manifest:
    return pack_files.with_folder(path, pack_files.PackFolder.manifest)


def _sign(path: Path, manifest: Manifest) -> None:
    (path / "pack.json").write_bytes(manifest_bytes(manifest))


def _rewrite_tensors(path: Path, change) -> None:
    """What a hostile author can do: other bytes, with a manifest that agrees."""
    data = change((path / "pack.safetensors").read_bytes())
    (path / "pack.safetensors").write_bytes(data)
    entry = FileEntry(hashlib.sha256(data).hexdigest(), len(data))
    manifest = read_manifest_of(path)
    _sign(path, dataclasses.replace(manifest, files=manifest.files | {"pack.safetensors": entry}))


def test_a_large_file_is_looked_at_while_it_comes_and_used_only_if_right(tmp_path):
    data, seen = np.random.default_rng(0).bytes(3 * 2**20 + 17), []
    entry = FileEntry(hashlib.sha256(data).hexdigest(), len(data))

    def read() -> bytes:
        folder = pack_files.PackFolder(tmp_path)
        folder.announce("large")
        try:
            return bytes(folder.listed("large", entry, lambda came: seen.append(bytes(came[: 2**20]))))
        finally:
            folder.close()

    file = tmp_path / "large"
    file.write_bytes(data)
    assert read() == data and seen == [data[: 2**20]]
    file.write_bytes(data[:-9] + b"x" + data[-8:])
    with pytest.raises(InputError, match="sha256"):
        read()
    file.write_bytes(data[:-1])
    with pytest.raises(InputError, match="incomplete"):
        read()
