"""Training speed: an mbjax pack on cached tap states against PEFT LoRA in torch; same base, examples and steps.

    python infer/compare_peft.py --data DIR [--minutes 15] [--json] [--write]      needs the extra `reference`

DIR holds train.jsonl and test.jsonl, as `python train/data/medical.py --out DIR` makes them. Rates, peak memory and,
at equal wall time, the held-out score. Exits with 1 where a target is missed. Takes twice the minutes and ten more.
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from training_plan import Plan

BASE = "smollm2-135m"
PAGE = Path(__file__).parent.parent / "docs" / "training_speed.md"
THREADS = 2
LENGTH = 256  # the default of `mbjax pack train`
PACKAGES = ("jax", "torch", "transformers", "peft")
TARGETS = (  # (key, what it is, the bound, whether that is the least or the most)
    ("speed_ratio", "tokens per second, mbjax / PEFT", 2.0, "least"),
    ("memory_ratio", "peak memory, mbjax / PEFT", 0.5, "most"),
    ("score_difference", "held-out score at equal wall time, mbjax - PEFT", 0.0, "least"),
)


class Worker:
    """A trainer in its own process, see `training_worker.serve`."""

    def __init__(self, command: list[str]) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "HF_HUB_OFFLINE": "1"}
        python = [sys.executable, str(Path(__file__).parent / command[0]), *command[1:]]
        self._process = subprocess.Popen(
            python, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def ask(self, *words: object) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(*words, file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"a trainer ended early on '{words[0]}'; its own message is above")
        return json.loads(line)


def write_inputs(data: Path, folder: Path, step_rows: int) -> Plan:
    """The plan, and the base as a Hugging Face directory made of mbjax's own arrays."""
    from mbjax.io.hf_export import llama_config, write_weights
    from mbjax.io.load import load_base
    from mbjax.training.examples import read_examples
    from mbjax.training.rows import pack_rows

    base = load_base(BASE, "float32")
    examples = read_examples(data / "train.jsonl", base.tokenizer, base.config.max_context)
    plan = Plan.of(examples, pack_rows(examples, LENGTH, seed=0), step_rows)
    plan.save(folder)
    write_weights(folder / "model.safetensors", base.params)
    (folder / "config.json").write_text(json.dumps(llama_config(base.config)))
    return plan


def measure_speed(commands: dict[str, list[str]], segments: int, steps: int) -> dict[str, Any]:
    """Segments of so many steps in turns, after one that does not count: rates, peak memory, losses."""
    rates: dict[str, list[float]] = {name: [] for name in commands}
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    report: dict[str, Any] = {name: {"loss": []} for name in commands}
    workers = {name: Worker(command) for name, command in commands.items()}
    for name, worker in workers.items():
        report[name] |= worker.ask("prepare", (segments + 1) * steps)
    for segment in range(segments + 1):
        for name, worker in workers.items():
            answer = worker.ask("steps", steps)
            report[name]["loss"] += answer["loss"]
            if segment:
                rates[name].append(answer["tokens"] / answer["seconds"])
                seconds[name].append(answer["seconds"] / steps)
    for name, worker in workers.items():
        with worker:
            answer = worker.ask("memory")
        report[name] |= {"tokens_per_s": statistics.median(rates[name]), "rates": rates[name]}
        report[name] |= {"step_s": statistics.median(seconds[name]), "fastest_step_s": min(seconds[name])}
        report[name] |= {"import_bytes": answer["import"], "peak_bytes": answer["peak"] - answer["import"]}
    return report


def train_for(command: list[str], seconds: float, steps: int, folder: Path) -> dict[str, Any]:
    """One trainer alone for so long, start, imports and tap states included; `steps` is what the schedule reckons."""
    begin = time.time()
    with Worker(command) as worker:
        prepared = worker.ask("prepare", steps)
        answer = worker.ask("until", begin + seconds)
        wall = time.time() - begin
        worker.ask("save", folder)
    return prepared | {"steps": answer["steps"], "planned": steps, "wall_s": wall, "last_loss": answer["loss"][-1]}


def score(adapters: dict[str, Path], data: Path, n_test: int) -> dict[str, float]:
    """Share of greedy answers to the chapter questions that are exactly right, of all adapters by the same program."""
    import jax
    import jax.numpy as jnp

    from mbjax.engine.batch import answer_all
    from mbjax.engine.compile_cache import use_compile_cache
    from mbjax.engine.evaluate import ANSWER_TOKENS
    from mbjax.io.load import load_base
    from mbjax.io.peft import import_peft

    use_compile_cache()
    base = load_base(BASE, "float32")
    template, ends = base.tokenizer.template, base.tokenizer.eos_ids
    assert template is not None
    lines = [json.loads(line) for line in (data / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if line["task"] == "chapter"][:n_test]
    texts = [template.render([{"role": "user", "content": line["prompt"]}]) for line in lines]
    prompts = [base.tokenizer.encode(text, add_bos=False) for text in texts]
    scores = {}
    for name, path in adapters.items():
        packs = (jax.tree.map(jnp.asarray, import_peft(path, base.config).pack),)
        answers = answer_all(base.params, base.config, prompts, packs, max_tokens=ANSWER_TOKENS, ends=ends)
        texts = [base.tokenizer.decode(ids).strip() for ids in answers]
        right = [text == line["answer"].strip() for text, line in zip(texts, lines, strict=True)]
        scores[name] = sum(right) / len(right)
    return scores


def compare(
    data: Path, *, rows: int, batch: int, segments: int, steps: int, minutes: float, n_test: int
) -> dict[str, Any]:
    """The whole comparison as one document."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        plan = write_inputs(data, folder, rows)
        commands = {
            "mbjax": ["mbjax_trainer.py", str(folder), BASE],
            "peft": ["peft_trainer.py", str(folder), "--batch", str(batch), "--threads", str(THREADS)],
        }
        with Worker(commands["mbjax"]) as warming:  # memory and time count with a warm compilation cache
            warming.ask("prepare", 1)
            warming.ask("steps", 1)
        report = measure_speed(commands, segments, steps)
        mbjax, peft = report["mbjax"], report["peft"]
        document: dict[str, Any] = {
            "base": BASE,
            "machine": machine(),
            "versions": {name: version(name) for name in PACKAGES},
            "examples_per_step": round(sum(len(plan.examples_of(i)) for i in range(steps)) / steps, 1),
            "step_rows": rows,
            "peft_batch": batch,
            "segments": segments,
            "steps": steps,
            **report,
            "speed_ratio": mbjax["tokens_per_s"] / peft["tokens_per_s"],
            "memory_ratio": mbjax["peak_bytes"] / peft["peak_bytes"],
            "first_loss_difference": mbjax["loss"][0] - peft["loss"][0],
        }
        if minutes:
            adapters = {}
            for name, command in commands.items():
                tap_step_s = report[name]["tap_s"] / ((segments + 1) * steps)  # states of each row are built once
                step_s = report[name]["fastest_step_s"] + tap_step_s  # a plan too short would leave minutes unused
                planned = max(1, math.ceil(minutes * 60 / step_s))
                adapters[name] = folder / name
                report[name] |= train_for(command, minutes * 60, planned, adapters[name])
            for name, value in score(adapters, data, n_test).items():
                report[name]["score"] = value
            document |= {"minutes": minutes, "n_test": n_test, "score_difference": mbjax["score"] - peft["score"]}
    return document


def machine() -> str:
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {THREADS} threads of {os.cpu_count()} for each"


def checks(document: dict[str, Any]) -> list[tuple[str, float, str, bool]]:
    """(what, value, bound in words, met) of every target that was measured."""
    rows = []
    for key, what, bound, kind in TARGETS:
        if key in document:
            value = document[key]
            met = value >= bound if kind == "least" else value <= bound
            rows.append((what, value, f"at {kind} {bound:g}", met))
    return rows


def page(document: dict[str, Any]) -> str:
    """The document as Markdown."""
    versions = ", ".join(f"{name} {number}" for name, number in document["versions"].items())
    lines = [
        "# Training speed against PEFT",
        "",
        (
            f"{document['base']} in float32 on the medical data, the same examples in the same optimiser steps of about"
            f" {document['examples_per_step']:.0f} examples. {document['machine']}; {versions}. Made by"
        ),
        "",
        (
            f"    python infer/compare_peft.py --data DIR --rows {document['step_rows']}"
            f" --minutes {document.get('minutes', 0):g} --segments {document['segments']} --steps {document['steps']}"
            f"{' --test ' + str(document['n_test']) if 'n_test' in document else ''} --write"
        ),
        "",
        (
            f"- mbjax: a pack of the default form, rank 16 on the fusion layers, cached tap states, {document['step_rows']}"
            f" packed rows of {LENGTH} tokens to a step."
        ),
        (
            f"- PEFT: LoRA of rank 16 on all linear maps in torch, batches of {document['peft_batch']} examples of like"
            " length padded to the longest, gradients summed up to the step, loss on the answers only."
        ),
        (
            "- Both: AdamW with the same rates, each in its own process, in turns. Tokens are those of the examples: no"
            " padding, the shared prefix counted in each. Memory is the resident peak less that of the imports alone."
        ),
        "- Equal wall time counts everything from the start of the process: imports, loading, tap states, training.",
        "",
        "| what | value | target | met |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {what} | {value:.2f} | {bound} | {'yes' if met else 'no'} |" for what, value, bound, met in checks(document)
    ]
    return "\n".join([*lines, "", *_table(document)]) + "\n"


def _table(document: dict[str, Any]) -> list[str]:
    rows = [
        (f"tokens per second, median of {document['segments']} segments", "tokens_per_s", "{:.0f}", 1.0),
        ("seconds of a step", "step_s", "{:.2f}", 1.0),
        ("peak memory, MB", "peak_bytes", "{:.0f}", 1e6),
        ("loss of the first step, nats per scored token", None, "{:.4f}", 1.0),
    ]
    if "minutes" in document:
        rows += [
            (f"steps in {document['minutes']:g} minutes", "steps", "{:.0f}", 1.0),
            ("of these minutes, seconds spent on tap states", "tap_s", "{:.0f}", 1.0),
            (f"exact match on {document['n_test']} held-out chapter questions", "score", "{:.3f}", 1.0),
        ]
    lines = ["| | mbjax | PEFT |", "|---|---|---|"]
    for what, key, form, unit in rows:
        values = [document[name][key] if key else document[name]["loss"][0] for name in ("mbjax", "peft")]
        lines.append(f"| {what} | {' | '.join(form.format(value / unit) for value in values)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="train.jsonl and test.jsonl")
    parser.add_argument("--minutes", type=float, default=15, help="wall time of each for the score; 0 leaves it out")
    parser.add_argument("--test", type=int, default=400, help="chapter questions to score on")
    parser.add_argument("--segments", type=int, default=5, help="timed turns of each")
    parser.add_argument("--steps", type=int, default=2, help="optimiser steps of a segment")
    parser.add_argument("--rows", type=int, default=8, help="packed rows of one optimiser step, for both")
    parser.add_argument("--batch", type=int, default=8, help="examples of one batch on PEFT's side")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the tables")
    parser.add_argument("--write", action="store_true", help=f"write the tables to {PAGE.parent.name}/{PAGE.name}")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):  # XLA makes as many threads as it sees processors
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    settings = {name: getattr(arguments, name) for name in ("rows", "batch", "segments", "steps", "minutes")}
    document = compare(arguments.data, n_test=arguments.test, **settings)
    print(json.dumps(document, ensure_ascii=False) if arguments.json else page(document))
    if arguments.write:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page(document))
    missed = [what for what, _, _, met in checks(document) if not met]
    if missed:
        sys.exit(f"missed: {'; '.join(missed)}")


if __name__ == "__main__":
    main()
