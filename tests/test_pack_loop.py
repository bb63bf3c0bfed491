"""Training a pack: it learns, resumes to the same bits (P7), and stops with a clear error where it must."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_rows import some_examples
from tiny import PLAIN, random_base
from tiny_packs import random_pack

from mbjax.core.train import as_stored, pack_loss
from mbjax.errors import FailureError, InputError
from mbjax.io.pack_quant import SCHEMES, quantised, restored
from mbjax.io.pack_tensors import named
from mbjax.training.config import DataConfig, ExpertConfig, LoopConfig, LoraConfig, OptimiserConfig, PackConfig
from mbjax.training.pack_loop import TrainData, new_pack, train_pack
from mbjax.training.rows import pack_rows
from mbjax.training.tap_cache import tap_cache

CONFIG = PackConfig(
    id="tiny",
    data=DataConfig("train.jsonl", "valid.jsonl"),
    lora=LoraConfig(rank=4, alpha=8.0),
    expert=ExpertConfig(layers=1, copy_from=1),
    optimiser=OptimiserConfig(learning_rate=1e-2),
    loop=LoopConfig(steps=12, rows=2, validate_every=4, checkpoint_every=3),
)


def data(base) -> tuple[TrainData, TrainData]:
    both = [pack_rows(some_examples(n, seed), 64, seed) for n, seed in ((24, 0), (6, 1))]
    return tuple(TrainData(rows, tap_cache(base, "digest", PLAIN, rows)) for rows in both)  # pyright: ignore


def train(directory: Path, config: PackConfig = CONFIG, watch=lambda event: None):
    base = random_base(PLAIN)
    return train_pack(config, base, PLAIN, *data(base), directory, watch)


def leaves(pack) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(pack)]


def test_it_learns_and_a_new_pack_is_the_identity(home, tmp_path):
    base = random_base(PLAIN)
    fresh = new_pack(CONFIG, base, PLAIN)
    assert not np.asarray(fresh.lora.layers[1].q.b).any()
    assert not np.asarray(fresh.expert.out).any()
    assert fresh.lora.layers[0] is None  # the understanding layers are left alone
    _, events = train(tmp_path / "run")
    valid = [event.valid_loss for event in events if event.valid_loss is not None]
    assert len(valid) == 3
    assert valid[-1] < valid[0]


def test_muon_trains_too(home, tmp_path):
    config = dataclasses.replace(CONFIG, expert=None, optimiser=OptimiserConfig("muon", learning_rate=1e-2))
    _, events = train(tmp_path / "run", config)
    valid = [event.valid_loss for event in events if event.valid_loss is not None]
    assert valid[-1] < valid[0]


@pytest.mark.parametrize("kind", SCHEMES)
def test_quantise_aware_training_minds_the_rounded_pack(home, tmp_path, kind):
    config = dataclasses.replace(CONFIG, expert=None, quantise_aware=kind)
    pack, events = train(tmp_path / "run", config)
    valid = [event.valid_loss for event in events if event.valid_loss is not None]
    assert valid[-1] < valid[0]
    stored = as_stored(pack, SCHEMES[kind])
    base = random_base(PLAIN)
    rows = data(base)[1]
    ones = jnp.ones(len(rows.rows), jnp.float32)
    loss, n = pack_loss(stored, base, rows.batch(np.arange(len(rows.rows))), ones, config=PLAIN)
    assert float(loss) / int(n) == pytest.approx(min(valid), rel=1e-4)  # what validation saw is what the file gives


@pytest.mark.parametrize("kind", SCHEMES)
def test_what_the_loss_sees_is_what_the_file_gives_back(kind):
    pack = random_pack()
    stored = named(as_stored(jax.tree.map(jnp.asarray, pack), SCHEMES[kind]))
    for name, array in restored(named(pack), quantised(named(pack), kind), kind).items():
        np.testing.assert_allclose(stored[name], array, atol=1e-6)
    square = lambda pack, scheme: sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(as_stored(pack, scheme)))
    straight = jax.grad(square)(pack, SCHEMES[kind])
    for name, array in named(straight).items():  # the gradient of the rounded values, passed through the rounding
        np.testing.assert_allclose(array, 2 * stored[name], rtol=1e-5)


def test_an_interrupted_run_ends_in_the_same_bits(home, tmp_path):
    whole, _ = train(tmp_path / "whole")

    def stop(event):
        if event.step == 8 and event.valid_loss is None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", watch=stop)
    resumed, events = train(tmp_path / "cut")
    assert events[0].step == 7  # from the checkpoint of step 6
    for a, b in zip(leaves(whole), leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)


_KILLED = """
import sys
sys.path[:0] = [sys.argv[1]]
import conftest, test_pack_loop, numpy, pathlib
def watch(event):
    print(event.step, flush=True)
pack = test_pack_loop.train(pathlib.Path(sys.argv[2]), watch=watch)[0]
numpy.savez(sys.argv[3], *test_pack_loop.leaves(pack))
"""


def _run(tmp_path: Path, kill_after: int | None) -> Path:
    out = tmp_path / "pack.npz"
    command = [sys.executable, "-c", _KILLED, str(Path(__file__).parent), str(tmp_path / "run"), str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    assert process.stdout is not None
    for line in process.stdout:
        if kill_after is not None and int(line) >= kill_after:
            time.sleep(np.random.default_rng(kill_after).uniform(0, 0.1))
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.close()
    process.wait()
    return out


def test_a_killed_process_resumes_to_the_same_bits(home, tmp_path):
    """P7 with kill -9 at a random step: the checkpoint being written may be lost, never damaged."""
    assert not _run(tmp_path, kill_after=int(np.random.default_rng().integers(4, 11))).exists()
    resumed = np.load(_run(tmp_path, kill_after=None))
    whole, _ = train(tmp_path / "whole")
    for a, b in zip(leaves(whole), (resumed[name] for name in resumed.files), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_loss_that_is_not_finite_names_step_and_lines(home, tmp_path):
    base = random_base(PLAIN)
    train_data, valid = data(base)
    tap = np.array(train_data.tap)
    tap[3] = np.inf
    broken = dataclasses.replace(train_data, tap=tap)
    with pytest.raises(FailureError, match=r"step \d+: the loss is nan.*lines \d+"):
        train_pack(CONFIG, base, PLAIN, broken, valid, tmp_path / "run")


def test_checkpoints_of_another_configuration_are_refused(home, tmp_path):
    train(tmp_path / "run")
    other = dataclasses.replace(CONFIG, lora=LoraConfig(rank=8))
    with pytest.raises(InputError, match="another configuration .*lora"):
        train(tmp_path / "run", other)


def test_an_unwritable_place_is_one_line(home, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FailureError) as raised:
        train(tmp_path / "file" / "run")
    assert "\n" not in str(raised.value)


def test_one_row_a_step(home, tmp_path):
    config = dataclasses.replace(CONFIG, loop=LoopConfig(steps=3, rows=1, validate_every=3, checkpoint_every=3))
    _, events = train(tmp_path / "run", config)
    assert events[-1].step == 3


def test_early_stop(home, tmp_path):
    eager = LoopConfig(steps=40, rows=2, validate_every=1, checkpoint_every=40, patience=1)
    config = dataclasses.replace(CONFIG, loop=eager, optimiser=OptimiserConfig(learning_rate=0.5))
    _, events = train(tmp_path / "run", config)
    assert events[-1].step < 40


def test_tap_states_are_reused_only_for_the_same_rows(home, tmp_path):
    base = random_base(PLAIN)
    rows = pack_rows(some_examples(8), 64, 0)
    calls = []
    first = np.array(tap_cache(base, "digest", PLAIN, rows, lambda done, total: calls.append(done)))
    again = tap_cache(base, "digest", PLAIN, rows, lambda done, total: calls.append(done))
    built = len(calls)
    assert built == len({*calls}) > 0  # passes of the first call, none of the second
    np.testing.assert_array_equal(first.view(np.uint16), np.array(again).view(np.uint16))
    tap_cache(base, "another base", PLAIN, rows, lambda done, total: calls.append(done))
    shifted = dataclasses.replace(rows, tokens=rows.tokens + 1)
    tap_cache(base, "digest", PLAIN, shifted, lambda done, total: calls.append(done))
    tap_cache(base, "digest", dataclasses.replace(PLAIN, tap=2), rows, lambda done, total: calls.append(done))
    assert len(calls) == 4 * built
    assert jnp.isfinite(jnp.asarray(first.astype(np.float32))).all()
