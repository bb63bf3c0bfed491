"""The router's directory: written all at once, and read without trust."""

import dataclasses
import json
import random

import ml_dtypes
import numpy as np
import pytest
from tiny_packs import FakeBase

from mbjax.errors import FailureError, InputError, MbjaxError
from mbjax.io.router_dir import MANIFEST, TENSORS, Router, base_of, load_router, read_router, write_router


def router(n: int = 12, width: int = 16) -> Router:
    rng = np.random.default_rng(0)
    mean, whitening = (rng.standard_normal(shape).astype(np.float32) for shape in ((16,), (width, 16)))
    background = rng.standard_normal((n, width)).astype(ml_dtypes.bfloat16)
    return Router(base_of(FakeBase()), mean, whitening, background, "d" * 64, "mbjax tests", "# Router\n")


@pytest.fixture
def written(tmp_path):
    write_router(tmp_path / "router", router())
    return tmp_path / "router"


def test_what_is_written_is_read_again(written):
    found, wanted = read_router(written), router()
    for name in ("mean", "whitening", "background"):
        assert getattr(found, name).tobytes() == getattr(wanted, name).tobytes()
    same = dataclasses.replace(found, mean=wanted.mean, whitening=wanted.whitening, background=wanted.background)
    assert same == wanted
    write_router(written, router(n=5))  # over the old one
    assert read_router(written).background.shape == (5, 16)


def test_it_belongs_to_its_base(written):
    load_router(written, FakeBase())
    other = FakeBase(digest="f" * 64)
    with pytest.raises(InputError, match="mbjax train router"):
        load_router(written, other)
    load_router(written, other, force_base=True)
    wide = FakeBase(config=dataclasses.replace(FakeBase().config, d_model=32))
    with pytest.raises(InputError, match="tap"):
        load_router(written, wide, force_base=True)


def test_what_is_not_finite_is_not_written(tmp_path):
    broken = dataclasses.replace(router(), mean=np.full(16, np.nan, np.float32))
    with pytest.raises(FailureError, match="NaN"):
        write_router(tmp_path / "router", broken)
    assert not list(tmp_path.iterdir())


def test_another_directory_is_not_replaced(tmp_path):
    (tmp_path / "router").mkdir()
    (tmp_path / "router" / "precious.txt").write_text("mine")
    with pytest.raises(InputError, match="not a router"):
        write_router(tmp_path / "router", router())
    assert (tmp_path / "router" / "precious.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": 2}, "format"),
        ({"width": 10**9}, "digest"),
        ({"digest": "0" * 64}, "changed or damaged"),
        ({"extra": 1}, "digest"),
    ],
)
def test_a_changed_manifest_is_refused(written, change, reason):
    path = written / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=reason) as error:
        read_router(written)
    assert "\n" not in str(error.value) and MANIFEST in str(error.value)


def test_what_is_missing_is_named(written):
    (written / TENSORS).unlink()
    with pytest.raises(InputError, match=TENSORS):
        read_router(written)
    with pytest.raises(InputError, match="no such directory"):
        read_router(written / "none")


def test_no_mutation_loads_as_something_else(written):
    """Bytes flipped, cut and added anywhere: an error of one line, never another router."""
    rng = random.Random(0)
    files = {path.name: path.read_bytes() for path in written.iterdir()}
    for _ in range(400):
        name = rng.choice(sorted(files))
        data = bytearray(files[name])
        at = rng.randrange(len(data))
        match rng.randrange(3):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                del data[at:]
            case 2:
                data[at:at] = rng.randbytes(rng.randrange(1, 40))
        (written / name).write_bytes(data)
        try:
            found = read_router(written)
        except MbjaxError as error:
            assert "\n" not in str(error)
        else:  # white space in the manifest, for instance, says nothing
            assert name == MANIFEST and found.whitening.tobytes() == router().whitening.tobytes()
        (written / name).write_bytes(files[name])
