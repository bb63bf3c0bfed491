"""Training a base: it learns, resumes to the same bits (P7), and stops with a clear error and good checkpoints."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_base_run import CONFIG, data_of, one_device, toml, with_loop, write_data

from mbjax.cli.main import run as command
from mbjax.core.config import ModelConfig
from mbjax.errors import FailureError, InputError
from mbjax.training.base_config import BaseOptimiserConfig, MeshConfig, read_base_config
from mbjax.training.base_data import BaseBatch
from mbjax.training.base_loop import BaseEvent, train_base
from mbjax.training.base_run import held_out_batches
from mbjax.training.corpus import open_corpus
from mbjax.training.flops import flops_per_token, matrix_sizes
from mbjax.training.mesh import make_mesh, row_share
from mbjax.training.metrics_log import MetricsLog


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def train(folder: Path, work: Path, config=CONFIG, data=None, **hooks):
    mesh = one_device()
    return train_base(config, data or data_of(config, folder, mesh), mesh, work, **hooks)


def leaves(result) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(result.params)]


def checkpoints(work: Path) -> list[int]:
    return sorted(int(path.name) for path in (work / "checkpoints").iterdir() if path.name.isdigit())


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    events = []
    work = tmp_path_factory.mktemp("whole")
    return train(folder, work, watch=events.append), events, work


def test_it_learns_and_reports(whole):
    result, events, work = whole
    bits = [event.bits_per_byte for event in events if event.bits_per_byte is not None]
    assert result.finished and len(bits) == 2 and bits[1] < bits[0]
    steps = [event for event in events if event.loss is not None]
    assert [event.step for event in steps] == list(range(1, 13))
    assert all(event.tokens_per_s > 0 and event.mfu > 0 and event.grad_norm > 0 for event in steps)
    assert checkpoints(work) == [9, 12]


def test_an_interrupted_run_ends_in_the_same_bits(folder, whole, tmp_path):
    def interrupt(event):
        if event.step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(folder, tmp_path / "cut", watch=interrupt)
    events = []
    resumed = train(folder, tmp_path / "cut", watch=events.append)
    assert events[0].step == 7  # from the checkpoint of step 6
    for a, b in zip(leaves(whole[0]), leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)


def test_asked_to_stop_it_leaves_a_checkpoint_of_that_step(folder, whole, tmp_path):
    seen = []
    stopped = train(folder, tmp_path / "run", watch=seen.append, stop=lambda: seen[-1].step == 4)
    assert (stopped.step, stopped.finished) == (4, False)
    assert checkpoints(tmp_path / "run")[-1] == 4
    resumed = train(folder, tmp_path / "run")
    for a, b in zip(leaves(whole[0]), leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_loss_that_is_not_finite_is_named_and_never_saved(folder, tmp_path):
    hot = dataclasses.replace(
        with_loop(report_every=10, evaluate_every=100),
        optimiser=BaseOptimiserConfig(learning_rate=1e30, warmup=0.5, clip_norm=1e30),
    )
    with pytest.raises(FailureError, match=r"step \d+: the loss is .*learning_rate"):
        train(folder, tmp_path / "run", hot)
    kept = checkpoints(tmp_path / "run")
    cool = dataclasses.replace(hot, optimiser=BaseOptimiserConfig())
    for step in kept:  # what was saved before is finite
        path = tmp_path / f"at {step}"
        shutil.copytree(tmp_path / "run", path)
        (path / "config.json").unlink()
        result = train(folder, path, dataclasses.replace(cool, loop=dataclasses.replace(cool.loop, steps=kept[-1])))
        assert all(np.isfinite(leaf).all() for leaf in leaves(result))


def test_another_configuration_does_not_go_on(folder, whole):
    other = dataclasses.replace(CONFIG, optimiser=BaseOptimiserConfig(learning_rate=1.0))
    with pytest.raises(InputError, match="another configuration .differs in optimiser"):
        train(folder, whole[2], other)


def test_a_damaged_checkpoint_is_named(folder, whole, tmp_path):
    shutil.copytree(whole[2], tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints" / "12").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match="checkpoint 12 cannot be read"):
        train(folder, tmp_path / "run")


def test_missing_and_foreign_data_are_named(folder, tmp_path, capsys):
    shutil.copytree(folder, tmp_path / "data")
    config = tmp_path / "data" / "config.toml"
    config.write_text(toml(CONFIG))
    victim = next(path for path in (tmp_path / "data" / "corpus" / "train").iterdir() if path.suffix != ".json")
    victim.unlink()
    status = command(["train", "base", str(config), "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")])
    message = capsys.readouterr().err
    assert status == 2 and message.count("\n") == 1 and str(victim.parent) in message
    small = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, vocab_size=100))
    with pytest.raises(InputError, match="vocab_size 100"):
        data_of(small, folder, one_device())
    short = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, max_context=16))
    with pytest.raises(InputError, match="max_context 16"):
        data_of(short, folder, one_device())


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("steps", "stpes", "did you mean 'steps'"),
        ('name = "adamw"', 'name = "sgd"', "optimiser.name must be adamw or muon"),
        ("rows = 4", "rows = 0", "loop must be"),
        ("n_kv_heads = 2", "n_kv_heads = 3", "n_heads 4 is not a multiple"),
        ("z_loss = 0.0001", "z_loss = -1.0", "z_loss must be"),
    ],
)
def test_a_wrong_configuration_is_named(tmp_path, old, new, message):
    text = toml(CONFIG)
    assert old in text
    (tmp_path / "config.toml").write_text(text.replace(old, new))
    with pytest.raises(InputError, match=message):
        read_base_config(tmp_path / "config.toml")


def test_the_configuration_is_read_as_written(tmp_path):
    (tmp_path / "config.toml").write_text(toml(CONFIG))
    assert read_base_config(tmp_path / "config.toml") == CONFIG


@pytest.mark.parametrize("path", sorted((Path(__file__).parent.parent / "configs" / "base").glob("*.toml")))
def test_the_configurations_that_ship_are_read(path):
    config = read_base_config(path)
    assert config.name == path.stem


def test_the_mesh_takes_what_is_left_and_refuses_what_is_not_there():
    assert dict(make_mesh(MeshConfig(-1, 2, 1)).shape) == {"data": 2, "fsdp": 2, "tensor": 1}
    with pytest.raises(InputError, match="data 3, fsdp 1, tensor 1 do not make up the 4 devices"):
        make_mesh(MeshConfig(3, 1, 1))
    with pytest.raises(InputError, match="rows 6 cannot be spread over 4"):
        row_share(make_mesh(MeshConfig(4, 1, 1)), 6)
    assert row_share(make_mesh(MeshConfig(2, 1, 2)), 6) == (0, 1)


def test_held_out_rows_come_once_and_padding_scores_nothing(folder):
    corpus = open_corpus(folder / "corpus" / "valid")
    batches = list(held_out_batches([corpus], 8, 0))
    targets = sum((batch.targets >= 0).sum() for batch in batches)
    assert len(batches) == -(-len(corpus) // 8) and targets == corpus.info.n_targets
    halves = [list(held_out_batches([corpus], 8, 0, p, 2)) for p in range(2)]
    for one, first, second in zip(batches, *halves, strict=True):
        np.testing.assert_array_equal(one.tokens, np.concatenate([first.tokens, second.tokens]))


def test_flops_are_those_of_the_shape():
    config = ModelConfig(24, 896, 14, 2, 64, 4864, 151_936, 2048, qkv_bias=True)
    total, products = matrix_sizes(config)
    assert total == 494_032_768  # Qwen2.5-0.5B
    assert products == total - 24 * (2 * 896 + 896 + 2 * 128) - 896  # all but norms and biases
    assert flops_per_token(config, 2048) == 6 * products + 12 * 24 * 896 * 2048


def test_figures_go_to_json_lines_and_tensorboard(tmp_path):
    reader = pytest.importorskip("tensorboardX.proto.event_pb2")
    with MetricsLog(tmp_path) as log:
        log.write(BaseEvent(3, loss=1.5, grad_norm=0.5))
        log.write(BaseEvent(3, bits_per_byte=2.0))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == [{"step": 3, "loss": 1.5, "grad_norm": 0.5}, {"step": 3, "bits_per_byte": 2.0}]
    (board,) = (tmp_path / "tensorboard").iterdir()
    data, found = board.read_bytes(), {}
    while data:  # TFRecord: length, checksum, event, checksum
        size = int.from_bytes(data[:8], "little")
        event = reader.Event.FromString(data[12 : 12 + size])
        found |= {value.tag: (event.step, value.simple_value) for value in event.summary.value}
        data = data[16 + size :]
    assert found == {"loss": (3, 1.5), "grad_norm": (3, 0.5), "bits_per_byte": (3, 2.0)}


_FULL = """
import resource, sys, time
sys.path[:0] = [sys.argv[1]]
import conftest, test_base_loop, pathlib
from mbjax.cli.main import _fail
from mbjax.errors import MbjaxError
from tiny_base_run import with_loop
work = pathlib.Path(sys.argv[3])
def watch(event):
    if event.step == 5:
        deadline = time.monotonic() + 60
        while not (work / "checkpoints" / "3").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        # from now on the system refuses to write any file further than this
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
try:
    test_base_loop.train(pathlib.Path(sys.argv[2]), work, with_loop(evaluate_every=100), watch=watch)
except MbjaxError as error:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    sys.exit(_fail(str(error), error.exit_status))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
def test_a_disk_that_fills_up_leaves_the_last_good_checkpoint(folder, whole, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _FULL, str(Path(__file__).parent), str(folder), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "could not be written" in done.stderr and "last good one is of step 3" in done.stderr
    assert checkpoints(tmp_path / "run") == [3]
    events = []
    resumed = train(folder, tmp_path / "run", watch=events.append)
    assert events[0].step == 4
    for a, b in zip(leaves(whole[0]), leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGTERM")
def test_sigterm_stops_the_command_with_a_checkpoint_and_it_goes_on(folder, tmp_path):
    config = folder / "long.toml"
    config.write_text(toml(dataclasses.replace(with_loop(steps=100_000), mesh=MeshConfig(-1, 1, 1))))
    arguments = ["train", "base", str(config), "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    process = subprocess.Popen(
        [sys.executable, "-m", "mbjax.cli.main", *arguments, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = tmp_path / "work" / "log.jsonl"
    deadline = time.monotonic() + 240
    while not (log.exists() and '"step": 5,' in log.read_text()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    report = json.loads(out)
    assert process.returncode == 143 and "stopped after step" in err
    assert not report["finished"] and checkpoints(tmp_path / "work")[-1] == report["step"]
    assert not (tmp_path / "out").exists()


def test_a_batch_is_checked_by_its_values(folder, tmp_path):
    """A token that the base's table lacks is an error of the data, not a silent NaN."""
    mesh = one_device()
    data = data_of(CONFIG, folder, mesh)

    def broken(start):
        for batch in data.batches(start):
            yield BaseBatch(batch.tokens + 10_000, batch.targets, batch.segments, batch.positions)

    with pytest.raises((FailureError, InputError)):
        train(folder, tmp_path / "run", data=dataclasses.replace(data, batches=broken))
