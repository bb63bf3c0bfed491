"""Plans against what an engine really holds."""

import jax
import pytest
from tiny import random_base
from tiny_bases import CONFIG, random_weights, write_hf
from tiny_engine import TINY, tiny_engine

from mbjax.core.decode import chunk_sizes
from mbjax.engine.plan import Wishes, plan, plan_base
from mbjax.engine.programs import tree_bytes
from mbjax.engine.sizes import format_bytes, parse_bytes
from mbjax.errors import InputError


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_plan_is_what_the_arrays_take(dtype):
    result = plan(TINY, Wishes(dtype, context=20))
    width = {"float32": 4, "bfloat16": 2}[dtype]
    assert result.components["base"] == tree_bytes(random_base(TINY, dtype))
    per_position = TINY.n_layers * 2 * TINY.n_kv_heads * TINY.head_dim * width
    assert result.position_bytes == per_position + TINY.d_model * width  # a prompt's tap states between its phases
    capacity = sum(chunk_sizes(20))
    assert result.components["kv"] == capacity * per_position + 4  # and the length, one int32
    assert result.components["temporaries"] >= max(result.programs.values()) > 0
    assert result.total == sum(result.components.values())
    assert result.fits is None and result.budget is None


def test_a_plan_is_the_engines_memory_once_everything_is_compiled():
    engine = tiny_engine(context=20)
    engine.warm_up()
    assert plan(TINY, Wishes(context=20)).components == engine.memory().components


def test_planning_allocates_no_weights():
    known = {id(array) for array in jax.live_arrays()}
    plan(TINY, Wishes(context=20))
    assert not [array for array in jax.live_arrays() if id(array) not in known and array.size > 1]


def test_the_budget_decides_and_the_verdict_says_what_would_fit():
    total = plan(TINY, Wishes(context=20)).total
    fits, tight = (plan(TINY, Wishes(context=20, budget=budget)) for budget in (total, total - 1))
    assert fits.fits and not tight.fits
    assert fits.verdict() == "a context of 20 positions fits"
    assert "a context of about" in tight.verdict()
    assert "lacks" in plan(TINY, Wishes(context=20, budget=1000)).verdict()


def test_a_base_on_disk_is_planned_from_its_headers(home, tmp_path):
    directory = write_hf(tmp_path / "tiny", random_weights())
    assert plan_base(str(directory), Wishes(context=20)) == plan(CONFIG, Wishes(context=20))
    assert not home.joinpath("bases").exists()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"dtype": "int3"}, "dtype 'int3'"),
        ({"context": 0}, "context is 0"),
        ({"context": 513}, "1 to 512"),
    ],
)
def test_what_a_base_cannot_have_is_refused(home, tmp_path, settings, reason):
    directory = write_hf(tmp_path / "tiny", random_weights())
    with pytest.raises(InputError, match=reason):
        plan_base(directory, Wishes(**settings))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("smollm2-135m", "mbjax pull smollm2-135m"),
        ("smollm2-135", "did you mean 'smollm2-135m'"),
        ("nowhere/base", "no such file"),
        ("base.gguf", "no such file"),
    ],
)
def test_bases_that_are_not_here(home, name, reason):
    with pytest.raises(InputError, match=reason):
        plan_base(name, Wishes())


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GiB", 2**32), ("800MB", 800 * 10**6), ("1.5 gib", 3 * 2**29), ("123", 123), ("1kb", 1000), ("7B", 7)],
)
def test_sizes_are_read(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1GB", "4G", "4 GiB free", "1e9", "nan", "0", "0.1B", "٤GB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(InputError, match="budget"):
        parse_bytes(text)


@pytest.mark.parametrize(("size", "text"), [(999, "999 B"), (98_362_432, "98.4 MB"), (4 * 10**9, "4.0 GB")])
def test_sizes_are_shown(size, text):
    assert format_bytes(size) == text
