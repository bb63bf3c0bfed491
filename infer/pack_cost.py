"""What a pack that is switched on costs in decoding, for either part: seconds per token with it over those without.

    python infer/pack_cost.py [--base NAME|PATH] [--dtype auto] [--rounds 31] [--json]

A fresh pack (the identity, as training starts it) of each kind on an engine of its own: low-rank 16 on the fusion
layers, and an expert of two layers. With and without take turns, one token a step (drafts would make steps of several
rows); the median of the ratios of two neighbouring turns. Target: what a token takes longer is at most 1.15 times the
pack's share of the bytes that a step reads. Exits with 1 where it is missed. About a minute.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from mbjax.core.pack import Pack
from mbjax.engine.bench import run_tokens
from mbjax.engine.engine import Engine
from mbjax.engine.programs import tree_bytes
from mbjax.io.load import LoadedBase, load_base
from mbjax.io.pack_dir import About, write_pack
from mbjax.io.pack_load import binding
from mbjax.io.pack_manifest import DataSource
from mbjax.training.config import DataConfig, ExpertConfig, LoraConfig, PackConfig
from mbjax.training.pack_loop import new_pack

TARGET = 1.15
PROMPT = "The history of the city begins with a small settlement at the mouth of the river, where traders from the"
N_DECODE = 64
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"lora": LoraConfig(rank=16)},
    "expert": {"lora": None, "expert": ExpertConfig(layers=2)},
}


def fresh_pack(kind: str, base: LoadedBase) -> Pack:
    return new_pack(PackConfig(kind, DataConfig("", ""), **KINDS[kind]), base.params, base.config)


def write(kind: str, pack: Pack, base: LoadedBase, folder: Path) -> None:
    data = (DataSource("none", "CC0-1.0", "not trained"),)
    about = About(kind, kind, "0.0.0", binding(base), "Apache-2.0", "infer/pack_cost.py", data)
    write_pack(folder / kind, pack, about, card=f"# {kind}\n")


def measure(name: str, dtype: str, rounds: int) -> list[dict[str, Any]]:
    """A line per kind of pack."""
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            base = load_base(name, dtype)
            pack = fresh_pack(kind, base)
            write(kind, pack, base, Path(folder) / f"with_{kind}")
            share = tree_bytes(pack) / tree_bytes(base.params)
            engine = Engine.load(name, packs=Path(folder) / f"with_{kind}", dtype=dtype, context=512)
            prompt = base.tokenizer.encode(PROMPT)
            seconds: dict[str, list[float]] = {"none": [], kind: []}
            for _ in range(rounds + 1):
                for which, found in seconds.items():
                    found.append(run_tokens(engine, prompt, N_DECODE, which)[1] / (N_DECODE - 1))
            without, with_it = (found[1:] for found in seconds.values())
            cost = statistics.median(b / a for a, b in zip(without, with_it, strict=True))
            tok_s, allowed = 1 / statistics.median(without), 1 + TARGET * share
            lines.append({"kind": kind, "share": share, "cost": cost, "allowed": allowed, "tok_s": tok_s})
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    lines = measure(arguments.base, arguments.dtype, arguments.rounds)
    for line in lines if not arguments.json else []:
        text = "{kind}: {cost:.3f} times the seconds of a token ({tok_s:.1f} tokens/s without); allowed {allowed:.3f}"
        print(text.format(**line), f"({line['share']:.1%} of the base's bytes)")
    if arguments.json:
        print(json.dumps(lines))
    missed = [line["kind"] for line in lines if line["cost"] > line["allowed"]]
    if missed:
        sys.exit(f"missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
