"""Training a base over several devices and processes: the same losses, checkpoints for any mesh, and no one waits for
a process that is gone (P7 for the base)."""

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_base_run import data_of, one_device, toml, with_loop, write_data

from mbjax.training.base_config import MeshConfig
from mbjax.training.base_loop import train_base

STEPS = 50
LONG = with_loop(steps=STEPS, evaluate_every=25, checkpoint_every=25)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the CPU's collectives are not built there")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def alone(folder, tmp_path_factory):
    """Step -> loss, and step -> bits per byte, of the run on one device."""
    events, mesh = [], one_device()
    train_base(LONG, data_of(LONG, folder, mesh), mesh, tmp_path_factory.mktemp("alone"), events.append)
    return {e.step: e.loss for e in events if e.loss}, {e.step: e.bits_per_byte for e in events if e.bits_per_byte}


def start(config, folder: Path, place: Path) -> list[subprocess.Popen[str]]:
    """Both processes of a run, two devices each, as the command starts them."""
    path = folder / f"{place.name}.toml"
    path.write_text(toml(config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    arguments = [sys.executable, "-m", "mbjax.cli.main", "train", "base", str(path), "--json"]
    arguments += ["--out", str(place / "out"), "--work", str(place / "work")]
    arguments += ["--coordinator", address, "--processes", "2", "--process"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [subprocess.Popen([*arguments, str(i)], env=environment, **pipes) for i in range(2)]  # pyright: ignore


def finish(processes: list[subprocess.Popen[str]], seconds: float = 400) -> list[tuple[int, str, str]]:
    """Status, stdout and stderr of each; none is left running."""
    try:
        return [(*process.communicate(timeout=seconds), process.returncode) for process in processes]  # pyright: ignore
    finally:
        for process in processes:
            process.kill()


def logged(work: Path, key: str) -> dict[int, float]:
    events = map(json.loads, (work / "log.jsonl").read_text().splitlines())
    return {event["step"]: event[key] for event in events if key in event}


@pytest.mark.parametrize("mesh", [MeshConfig(2, 2, 1), MeshConfig(2, 1, 2)], ids=["data 2 x fsdp 2", "tensor 2"])
def test_two_processes_give_the_losses_of_one_device(folder, alone, tmp_path, mesh):
    ends = finish(start(dataclasses.replace(LONG, mesh=mesh), folder, tmp_path))
    assert [status for _, _, status in ends] == [0, 0], ends
    report = json.loads(ends[0][0])
    assert report["finished"] and (tmp_path / "out" / "model.safetensors").exists() and not ends[1][0]
    losses = logged(tmp_path / "work", "loss")
    assert sorted(losses) == list(range(1, STEPS + 1))
    for step, loss in losses.items():
        assert loss == pytest.approx(alone[0][step], rel=1e-5), f"step {step}"
    for step, bits in logged(tmp_path / "work", "bits_per_byte").items():
        assert bits == pytest.approx(alone[1][step], rel=1e-5)
    # the checkpoint of that mesh goes on, on one device
    shutil.rmtree(tmp_path / "work" / "checkpoints" / str(STEPS))
    events, single = [], one_device()
    train_base(LONG, data_of(LONG, folder, single), single, tmp_path / "work", events.append)
    resumed = {event.step: event.loss for event in events if event.loss}
    assert sorted(resumed) == list(range(26, STEPS + 1))
    for step, loss in resumed.items():
        assert loss == pytest.approx(alone[0][step], rel=1e-5), f"step {step}"


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others_and_the_run_goes_on(folder, tmp_path, victim):
    every = 20
    config = dataclasses.replace(with_loop(steps=10**6, checkpoint_every=every), mesh=MeshConfig(2, 2, 1))
    processes = start(config, folder, tmp_path)
    checkpoint, log = tmp_path / "work" / "checkpoints" / str(every), tmp_path / "work" / "log.jsonl"
    deadline = time.monotonic() + 400
    while not checkpoint.exists():
        if time.monotonic() > deadline or any(process.poll() is not None for process in processes):
            pytest.fail(str(finish(processes, 1)))
        time.sleep(0.05)
    processes[victim].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    other = processes[1 - victim]
    try:
        _, message = other.communicate(timeout=60)
    finally:
        finish(processes, 10)
    assert time.monotonic() - killed < 60
    assert other.returncode not in (0, None)
    lines = [line for line in message.splitlines() if line.startswith("mbjax: ")]
    assert any("goes on from its last checkpoint" in line for line in lines), message
    reached = max(json.loads(line)["step"] for line in log.read_text().splitlines())
    events, mesh = [], one_device()
    stop = lambda: True  # after the first step
    result = train_base(config, data_of(config, folder, mesh), mesh, tmp_path / "work", events.append, stop)
    assert reached - every <= result.step - 1 and result.step - 1 >= every
    assert np.isfinite(events[0].loss)


def test_processes_that_do_not_go_together_are_refused(capsys):
    from mbjax.cli.main import run

    config = str(Path(__file__).parent.parent / "configs" / "base" / "debug.toml")
    assert run(["train", "base", config, "--processes", "2"]) == 2
    assert "--coordinator HOST:PORT" in capsys.readouterr().err
    assert run(["train", "base", config, "--coordinator", "127.0.0.1:1", "--processes", "2", "--process", "2"]) == 2
    assert "from 0 to M - 1" in capsys.readouterr().err
