"""Training speed of a base: mbjax against plain PyTorch (transformers' LlamaForCausalLM), same shape, batches and steps.

    python infer/compare_torch_training.py [--config configs/base/tiny.toml] [--rows 8] [--length 512] [--rounds 5]
        [--steps 4] [--threads 2] [--json] [--write]                      needs the extra `reference`

Both start from the same weights and take the same rows (each one whole document, so that plain causal attention is
right) in float32 with AdamW and clipping, each in a process of its own, in turns. Rates are medians over the rounds,
after one that does not count. Exits with 1 where mbjax is less than 1.3 times as fast or the losses part.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from report import parser, publish, table

TARGET, PAGE = 1.3, "base_training_speed.md"
RATE, DECAY, BETAS, CLIP, SEED = 1e-3, 0.1, (0.9, 0.95), 1.0, 0


class Mbjax:
    """The step that `mbjax train base` compiles, on a mesh of one device."""

    def __init__(self, folder: Path, config: Path, rows: np.ndarray) -> None:
        import jax

        from mbjax.training.base_config import MeshConfig, read_base_config
        from mbjax.training.base_data import BaseBatch, row_targets
        from mbjax.training.base_loop import BaseRun
        from mbjax.training.mesh import make_mesh

        given = read_base_config(config)
        loop = dataclasses.replace(given.loop, rows=rows.shape[1], steps=10**6, seed=SEED)
        optimiser = dataclasses.replace(
            given.optimiser, name="adamw", learning_rate=RATE, warmup=0.0, weight_decay=DECAY
        )
        given = dataclasses.replace(given, loop=loop, optimiser=optimiser, z_loss=0.0)
        self._run = BaseRun(given, make_mesh(MeshConfig(1, 1, 1)), np.ones(given.model.vocab_size, np.int32))
        self._state = self._run.start()
        positions = np.broadcast_to(np.arange(rows.shape[2], dtype=np.int32), rows.shape[1:])
        ones = np.ones(rows.shape[1:], np.int32)
        self._batches = [BaseBatch(tokens, row_targets(tokens, ones), ones, positions) for tokens in rows]
        self._jax = jax

    def save(self, folder: Path) -> None:
        from mbjax.core.base_train import unstacked
        from mbjax.io.hf_export import llama_config, write_weights

        model = self._run.model
        write_weights(folder / "model.safetensors", unstacked(self._jax.device_get(self._state.params), model))
        (folder / "config.json").write_text(json.dumps(llama_config(model)))

    def step(self, number: int) -> float:
        self._state, metrics = self._run.step(self._state, self._batches[number % len(self._batches)])
        return float(metrics["loss"])


class Torch:
    """The same in PyTorch, written plainly."""

    def __init__(self, folder: Path, config: Path, rows: np.ndarray) -> None:
        import torch
        from transformers import LlamaForCausalLM

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        self._torch = torch
        self._model: Any = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self._model.config.use_cache = False
        self._model.train()
        matrices = [p for p in self._model.parameters() if p.ndim >= 2]
        others = [p for p in self._model.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
        self._optimiser = torch.optim.AdamW(groups, lr=RATE, betas=BETAS)
        self._batches = [torch.from_numpy(tokens.astype(np.int64)) for tokens in rows]

    def step(self, number: int) -> float:
        tokens = self._batches[number % len(self._batches)]
        loss = self._model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        self._torch.nn.utils.clip_grad_norm_(self._model.parameters(), CLIP)
        for group in self._optimiser.param_groups:
            group["lr"] = RATE * min(1, number)  # mbjax's warm-up of one step
        self._optimiser.step()
        self._optimiser.zero_grad()
        return float(loss.detach())


def serve(trainer: Mbjax | Torch) -> None:
    """Answers each line `N` of standard input with the seconds and losses of the next N steps."""
    done = 0
    print(json.dumps({}), flush=True)
    for line in sys.stdin:
        begin, which = time.perf_counter(), range(done, done + int(line))
        losses = [trainer.step(i) for i in which]
        done = which.stop
        print(json.dumps({"seconds": time.perf_counter() - begin, "losses": losses}), flush=True)


def measure(options: argparse.Namespace, folder: Path, rows: np.ndarray) -> dict[str, Any]:
    """Rounds of steps in turns."""
    workers = {name: _start(options, folder, name) for name in ("mbjax", "torch")}
    rates: dict[str, list[float]] = {name: [] for name in workers}
    losses: dict[str, list[float]] = {name: [] for name in workers}
    for number in range(options.rounds + 1):
        for name, worker in workers.items():
            assert worker.stdin is not None
            print(options.steps, file=worker.stdin, flush=True)
            answer = _answer(worker)
            losses[name] += answer["losses"]
            if number:
                rates[name].append(options.steps * rows[0].size / answer["seconds"])
        print(f"round {number} of {options.rounds}", file=sys.stderr)
    for worker in workers.values():
        worker.communicate()
    medians = {name: statistics.median(values) for name, values in rates.items()}
    apart = max(abs(a / b - 1) for a, b in zip(losses["mbjax"], losses["torch"], strict=True))
    return {
        "tokens_per_s": medians,
        "rates": rates,
        "ratio": medians["mbjax"] / medians["torch"],
        "losses_apart": apart,
        "losses": losses,
    }


def _start(options: argparse.Namespace, folder: Path, name: str) -> subprocess.Popen[str]:
    """A worker that is ready; mbjax's first writes the weights that torch's reads."""
    threads = str(options.threads)
    command = [sys.executable, __file__, "--worker", name, "--folder", str(folder), "--config", str(options.config)]
    environment = os.environ | {"OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"}
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    _answer(worker)
    return worker


def _answer(worker: subprocess.Popen[str]) -> dict[str, Any]:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        sys.exit("a trainer ended early; its own message is above")
    return json.loads(line)


def _work(options: argparse.Namespace) -> None:
    rows = np.load(options.folder / "rows.npy")
    trainer = {"mbjax": Mbjax, "torch": Torch}[options.worker](options.folder, options.config, rows)
    if isinstance(trainer, Mbjax):
        trainer.save(options.folder)
    serve(trainer)


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--config", type=Path, default=Path("configs/base/tiny.toml"))
    for name, default in (("rows", 8), ("length", 512), ("rounds", 5), ("steps", 4), ("threads", 2)):
        made.add_argument(f"--{name}", type=int, default=default)
    made.add_argument("--worker", choices=("mbjax", "torch"), help=argparse.SUPPRESS)
    made.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = made.parse_args()
    if options.worker:
        _work(options)
        return
    from mbjax.training.base_config import read_base_config

    n_vocab = read_base_config(options.config).model.vocab_size
    rows = np.random.default_rng(SEED).integers(0, n_vocab, (8, options.rows, options.length), dtype=np.int32)
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder, "rows.npy"), rows)
        result = measure(options, Path(folder), rows)
    cells = [(name, f"{rate:,.0f}") for name, rate in result["tokens_per_s"].items()]
    cells.append(("mbjax / torch", f"{result['ratio']:.2f} (target: at least {TARGET})"))
    cells.append(("largest difference of a step's loss", f"{result['losses_apart']:.1e}"))
    publish(options, result, "Training speed of a base", table(("", "tokens/s"), cells), PAGE)
    sys.exit(0 if result["ratio"] >= TARGET and result["losses_apart"] < 1e-3 else 1)


if __name__ == "__main__":
    main()
