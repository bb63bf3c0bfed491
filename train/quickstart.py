"""The whole path on two CPU cores: text, tokenizer, a small base of one's own, a router, two packs, and an answer.

    python train/quickstart.py [--root ROOT] [--work build/quickstart] [--steps 200] [--json]

It took 29 minutes on two cores that other work shared for the first 18. ROOT is where the Debian packages of
train/data/base_text.py are unpacked (default: what is installed; the licences' texts of the extra `data` are always
there). Every stage is a command, printed before it runs, that can be run by hand. Interrupted, the same call goes on:
stages that are done with the same commands are passed over, and training continues from its last checkpoint. Exits with
1 where a pack scores above its base on no task, or below it on one.
"""

import argparse
import dataclasses
import hashlib
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from mbjax.errors import MbjaxError
from mbjax.io.files import atomic_write

HERE = Path(__file__).parent
MBJAX = [sys.executable, "-m", "mbjax.cli.main"]
HELD_BACK = "python.jsonl"  # Python's source stays out of the base: it is what the pack `code` brings
RUN = "@RUN"  # in a command: a name that is another one where anything before the stage has changed
PROMPTS = ("Assign this diagnosis to its ICD-10 chapter: fracture of the wrist", "The licence of this program is")
PACKS = {  # id -> (builder, its test file, steps, rate)
    "medical": ("medical.py", "test.jsonl", 200, 3e-3),
    "code": ("python_code.py", "test_body.jsonl", 150, 3e-3),
}
BASE = """# written by train/quickstart.py: the shape of configs/base/tiny.toml, fewer steps
name = "quickstart"
tokenizer = "tokenizer"
data = [{{ path = "corpus" }}]
model = {{ n_layers = 8, d_model = 256, n_heads = 4, n_kv_heads = 2, head_dim = 64, d_ff = 768, vocab_size = 8192, max_context = 1024 }}
optimiser = {{ name = "muon", learning_rate = 6e-3, warmup = 0.05, decay = 0.4 }}
loop = {{ steps = {steps}, rows = 8, accumulate = 8, report_every = 10, evaluate_every = 100, evaluate_rows = 64, checkpoint_every = 50 }}
"""
PACK = """# written by train/quickstart.py
id = "{id}"
base = "{base}"
licence = "Apache-2.0"
data = {{ train = "data/{id}/train.jsonl", valid = "data/{id}/valid.jsonl", row_length = 256 }}
lora = {{ rank = 32, alpha = 64.0 }}
optimiser = {{ learning_rate = {rate} }}
loop = {{ steps = {steps}, rows = 8, validate_every = 50, checkpoint_every = 50 }}
"""


@dataclasses.dataclass(frozen=True)
class Stage:
    """One command. `output` is where its standard output is kept, if anything reads it."""

    name: str
    command: list[str]
    output: Path | None = None


def stages(work: Path, root: Path) -> list[Stage]:
    """All of them, in order; each depends on those before it."""
    text, base, packs = work / "text", work / "base", work / "packs"
    builder = lambda name: [sys.executable, str(HERE / "data" / name)]
    made = [
        Stage("text", [*builder("base_text.py"), "--root", str(root), "--out", str(text)]),
        Stage("own text", [sys.executable, __file__, "--work", str(work), "--choose-text"]),
    ]
    chosen = str(work / "own")
    made += [
        Stage("tokenizer", [*MBJAX, *f"train tokenizer {chosen} --out {work}/tokenizer --vocab-size 8192".split()]),
        Stage(
            "corpus",
            [*MBJAX, *f"train data {chosen} --tokenizer {work}/tokenizer --out {work}/corpus --row-length 512".split()],
        ),
        Stage("base", [*MBJAX, *f"train base {work}/base.toml --out {base} --work {work}/runs/base-{RUN}".split()]),
        Stage("router", [*MBJAX, *f"train router --base {base} --out {packs}/router".split()]),
    ]
    for name, (program, test, _, _) in PACKS.items():
        data, pack = work / "data" / name, packs / name
        scored = f"pack eval {pack} {data / test} --base {base} --limit 100 --write --json"
        made += [
            Stage(f"data of {name}", [*builder(program), "--out", str(data)]),
            Stage(
                f"pack {name}",
                [*MBJAX, *f"pack train {work / name}.toml --out {pack} --work {work}/runs/{name}-{RUN}".split()],
            ),
            Stage(f"scores of {name}", [*MBJAX, *scored.split()], work / f"scores-{name}.json"),
        ]
    for i, prompt in enumerate(PROMPTS):
        answer = f"--base {base} --packs {packs} --max-tokens 24 --json".split()
        made.append(Stage(f"answer {i + 1}", [*MBJAX, "generate", prompt, *answer], work / f"answer-{i + 1}.json"))
    return made


def write_configs(work: Path, steps: int) -> None:
    """The configurations that the stages read."""
    texts = {"base": BASE.format(steps=steps)}
    for name, (_, _, pack_steps, rate) in PACKS.items():
        texts[name] = PACK.format(id=name, base=work / "base", steps=pack_steps, rate=rate)
    for name, text in texts.items():
        with atomic_write(work / f"{name}.toml") as file:
            file.write(text.encode())


def choose_text(work: Path) -> None:
    """Links all of the text but what a pack is to bring into a folder of its own."""
    own = work / "own"
    own.mkdir(exist_ok=True)
    for old in own.iterdir():
        old.unlink()
    for path in sorted((work / "text").glob("*.jsonl")):
        if path.name != HELD_BACK:
            (own / path.name).hardlink_to(path)


def run(all_stages: list[Stage], work: Path) -> dict[str, float]:
    """Runs what is not done yet; seconds of each stage as they were when it ran. Exits where a stage fails."""
    seconds, before = {}, hashlib.sha256()
    for stage in all_stages:  # a stage is done again where its command, its configuration or a stage before has changed
        before.update(json.dumps(stage.command[1:]).encode())
        for word in stage.command:
            before.update(Path(word).read_bytes() if word.endswith(".toml") else b"")
        marker, digest = work / "done" / f"{stage.name}.json", before.hexdigest()
        known = json.loads(marker.read_text()) if marker.exists() else {}
        if known.get("digest") != digest:
            command = [word.replace(RUN, digest[:8]) for word in stage.command]
            print(f"[{stage.name}] {shlex.join(command)}", file=sys.stderr, flush=True)
            start = time.monotonic()
            done = subprocess.run(command, stdout=subprocess.PIPE if stage.output else sys.stderr, check=False)
            if done.returncode:
                sys.exit(
                    f"quickstart: the stage '{stage.name}' failed; its message is above, the same call goes on here"
                )
            if stage.output:
                with atomic_write(stage.output) as file:
                    file.write(done.stdout)
            known = {"digest": digest, "seconds": round(time.monotonic() - start, 1)}
            with atomic_write(marker) as file:
                file.write(json.dumps(known).encode())
        seconds[stage.name] = known["seconds"]
    return seconds


def result(work: Path, seconds: dict[str, float]) -> dict[str, Any]:
    """Scores and answers of all stages."""
    scores = {name: json.loads((work / f"scores-{name}.json").read_text())["scores"] for name in PACKS}
    answers = [json.loads((work / f"answer-{i + 1}.json").read_text()) for i in range(len(PROMPTS))]
    run_name = f"base-{json.loads((work / 'done' / 'base.json').read_text())['digest'][:8]}"
    log = [json.loads(line) for line in (work / "runs" / run_name / "log.jsonl").read_text().splitlines()]
    bits = [event["bits_per_byte"] for event in log if "bits_per_byte" in event]
    shown = [{"prompt": p, "text": a["text"], "route": a["route"]} for p, a in zip(PROMPTS, answers, strict=True)]
    total = round(sum(seconds.values()), 1)
    return {"seconds": seconds, "total_s": total, "bits_per_byte": bits[-1], "scores": scores, "answers": shown}


def better(scores: list[dict[str, Any]]) -> bool:
    """Whether a pack scores above its base (fewer bits, more right answers) on a task, and below it on none."""
    gains = [(score["base"] - score["pack"]) * (1 if "bits" in score["metric"] else -1) for score in scores]
    return max(gains) > 0 and min(gains) >= 0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path("/"), help="where the Debian packages are unpacked")
    parser.add_argument("--work", type=Path, default=Path("build/quickstart"))
    parser.add_argument("--steps", type=int, default=200, help="of the base")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--choose-text", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.choose_text:
        choose_text(options.work)
        return
    try:
        write_configs(options.work, options.steps)
        found = result(options.work, run(stages(options.work, options.root), options.work))
    except MbjaxError as error:
        parser.exit(error.exit_status, f"quickstart: {error}\n")
    if options.json:
        print(json.dumps(found))
    else:
        print(f"{found['total_s'] / 60:.1f} minutes; base: {found['bits_per_byte']:.3f} bits per byte held out")
        for name, scores in found["scores"].items():
            for score in scores:
                values = ", ".join(f"{key} {score[key]}" for key in ("base", "pack", "routed"))
                print(f"{name}, {score['task']} ({score['metric']}): {values}")
        for answer in found["answers"]:
            print(f"{answer['prompt']}\n  {[item['pack'] for item in answer['route']] or 'base'}: {answer['text']!r}")
    sys.exit(0 if all(better(scores) for scores in found["scores"].values()) else 1)


if __name__ == "__main__":
    main()
