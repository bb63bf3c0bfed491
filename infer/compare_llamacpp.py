"""mbjax against llama.cpp on the default base's own Q4_1 file: logits in float32, token ids and, if asked for, speed.

    python infer/compare_llamacpp.py [--speed] [--rounds 5] [--json] [--write]      needs the extra `reference`

Speed is measured on the blocks of the file itself and on those of a Q8_0 file made of it, in build/. Exits with 1 where
a target is missed. Takes about two minutes on two cores, with --speed six.
"""

import argparse
import dataclasses
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

BASE = "smollm2-135m"
PAGE = Path(__file__).parent.parent / "docs" / "llamacpp.md"
BUILD = Path(__file__).parent.parent / "build"
THREADS = 2
CONTEXT = 1024
TARGETS = {  # (section, key) -> (what it is, the bound, whether that is the least or the most)
    ("logits", "mean_kl"): ("mean KL to llama.cpp, nats", 0.006, "most"),
    ("logits", "same_top"): ("same top token", 0.95, "least"),
    ("logits", "same_top_clear"): ("same top token where the margin exceeds 0.5", 0.995, "least"),
    ("token_ids", "share"): ("mixed lines with the same token ids", 1.0, "least"),
    ("Q4_1", "prefill_ratio"): ("prefill of 512, Q4_1, mbjax / llama.cpp", 2.0, "least"),
    ("Q4_1", "decode_128_ratio"): ("decode after 128, Q4_1, mbjax / llama.cpp", 1.5, "least"),
    ("Q4_1", "bandwidth_share"): ("share of the memory bandwidth, decode after 128, Q4_1", 0.7, "least"),
    ("Q8_0", "prefill_ratio"): ("prefill of 512, Q8_0, mbjax / llama.cpp", 1.4, "least"),
    ("Q8_0", "decode_128_ratio"): ("decode after 128, Q8_0, mbjax / llama.cpp", 1.25, "least"),
    ("Q8_0", "decode_2048_ratio"): ("decode after 2,048, Q8_0, mbjax / llama.cpp", 1.5, "least"),
    ("Q8_0", "bandwidth_share"): ("share of the memory bandwidth, decode after 128, Q8_0", 0.7, "least"),
}


def compare(*, speed: bool, rounds: int = 5) -> dict[str, Any]:
    """The whole comparison as one document."""
    import llama_cpp
    from llamacpp_fidelity import compare_texts, compare_token_ids, summary

    from mbjax.engine.engine import Engine
    from mbjax.io.pull import pull

    gguf = str(pull(BASE))
    engine = Engine.load(BASE, dtype="float32", context=CONTEXT)
    options: dict[str, Any] = {"n_ctx": CONTEXT, "n_threads": THREADS, "n_threads_batch": THREADS, "verbose": False}
    llama = llama_cpp.Llama(gguf, logits_all=True, **options)
    texts = compare_texts(engine.base, llama)
    ids = compare_token_ids(engine.base, llama)
    llama.close()
    document: dict[str, Any] = {
        "base": BASE,
        "llama_cpp_python": llama_cpp.__version__,
        "machine": f"{platform.machine()}, {THREADS} threads each",
        "texts": [dataclasses.asdict(text) for text in texts],
        "logits": summary(texts),
        "token_ids": ids | {"share": ids["same"] / ids["lines"]},
    }
    if speed:
        document |= _speeds(Path(gguf), rounds)
    return document


def _speeds(q4_1: Path, rounds: int) -> dict[str, Any]:
    from llamacpp_speed import compare_speed
    from q8_gguf import write_q8_0

    q8_0 = BUILD / f"{BASE}.Q8_0.gguf"
    if not q8_0.exists():
        BUILD.mkdir(exist_ok=True)
        write_q8_0(q4_1, q8_0)
    return {kind: compare_speed(path, THREADS, rounds) for kind, path in (("Q4_1", q4_1), ("Q8_0", q8_0))}


def checks(document: dict[str, Any]) -> list[tuple[str, float, str, bool]]:
    """(what, value, bound in words, met) of every target that was measured."""
    rows = []
    for (section, key), (what, bound, kind) in TARGETS.items():
        if section in document:
            value = document[section][key]
            met = value >= bound if kind == "least" else value <= bound
            rows.append((what, value, f"at {kind} {bound:g}", met))
    return rows


def page(document: dict[str, Any]) -> str:
    """The document as Markdown."""
    lines = [
        "# Against llama.cpp",
        "",
        f"{document['base']} and llama-cpp-python {document['llama_cpp_python']}; {document['machine']}.",
        "Logits: mbjax in float32, on the Q4_1 GGUF file's weights dequantised, against llama.cpp on that file, which rounds",
        "activations to 8 bits. Speed: both on one file's own blocks, Q4_1 or Q8_0, both with activations rounded to 8 bits.",
        "Made by `python infer/compare_llamacpp.py --speed --write`.",
    ]
    lines += ["", "| what | value | target | met |", "|---|---|---|---|"]
    lines += [
        f"| {what} | {value:.4f} | {bound} | {'yes' if met else 'no'} |" for what, value, bound, met in checks(document)
    ]
    for kind in ("Q4_1", "Q8_0"):
        if kind in document:
            lines += ["", *_speed_table(kind, document[kind])]
    lines += [
        "",
        "| text | tokens | mean KL | same top token | where the margin exceeds 0.5 |",
        "|---|---|---|---|---|",
    ]
    for text in document["texts"]:
        clear = f"{text['clear_same']} of {text['clear']}"
        lines.append(f"| {text['name']} | {text['tokens']} | {text['kl']:.4f} | {text['same']} | {clear} |")
    return "\n".join(lines) + "\n"


def _speed_table(kind: str, speed: dict[str, Any]) -> list[str]:
    tasks = [("prefill", f"prefill of {speed['n_prompt']}")]
    tasks += [(f"decode_{n}", f"decode of {speed['n_decode']} after {n}") for n in speed["contexts"]]
    share, bandwidth = speed["bandwidth_share"], speed["bandwidth"] / 1e9
    lines = [
        f"{kind}, tokens per second, medians of {speed['rounds']} rounds in turns. One step of decoding reads",
        f"{speed['bytes_per_token'] / 1e6:.1f} MB of weights: {share:.0%} of the {bandwidth:.1f} GB/s that a sum reads between them.",
        "",
        f"| | mbjax {kind} | llama.cpp {kind} | ratio |",
        "|---|---|---|---|",
    ]
    for key, what in tasks:
        ours, theirs = speed[f"mbjax_{key}_tok_s"], speed[f"llamacpp_{key}_tok_s"]
        lines.append(f"| {what} | {ours:.1f} | {theirs:.1f} | {speed[f'{key}_ratio']:.2f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--speed", action="store_true", help="measure prefill and decode, too")
    parser.add_argument("--rounds", type=int, default=5, help="of the speed measurement")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the tables")
    parser.add_argument("--write", action="store_true", help=f"write the tables to {PAGE.parent.name}/{PAGE.name}")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):  # XLA makes as many threads as it sees processors
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    document = compare(speed=arguments.speed, rounds=arguments.rounds)
    print(json.dumps(document, ensure_ascii=False) if arguments.json else page(document))
    if arguments.write:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page(document))
    missed = [what for what, _, _, met in checks(document) if not met]
    if missed:
        sys.exit(f"missed: {'; '.join(missed)}")


if __name__ == "__main__":
    main()
