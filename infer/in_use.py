"""What a process with a base, a router and two packs in use really holds, against its plan.

    python infer/in_use.py [--context 8192] [--dtype int8] [--kv-dtypes bfloat16,int8] [--json] [--write]     Linux

A child process for each dtype of the KV cache: its resident memory before the engine, with base, router and the chat
pack loaded, and the most it ever held, a prompt that fills the context with two packs and some tokens after it
included. Programs come from the compilation cache, which a run before that one fills. Targets for SmolLM2-135M in int8
at 8192: resident under 200 MB, in use under 600 MB with bfloat16 KV and 400 MB with int8 KV.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from memory_peak import baseline, peak_bytes
from report import parser, publish, table
from soak import resident_bytes

BASE, PACKS, GENERATED = "smollm2-135m", Path(__file__).parent.parent / "packs", 32


def used(dtype: str, kv_dtype: str, context: int) -> dict[str, Any]:
    """Bytes that this process came to hold beyond what JAX itself takes."""
    baseline()
    before = resident_bytes()
    from mbjax.engine.account import Sizing
    from mbjax.engine.engine import Engine

    settings: dict[str, Any] = {"packs": PACKS, "dtype": dtype, "kv_dtype": kv_dtype, "context": context}
    with Engine.load(BASE, **settings) as engine:
        engine.sizing = Sizing(2, 2)
        engine.packs.limit(2, 2)
        engine.packs.load("chat")
        loaded = resident_bytes()
        engine.warm_up()
        text = " ".join(f"Item {i} costs {i * 7 % 100} francs." for i in range(context // 12))
        reply = engine.generate(text, pack="medical,code", max_tokens=GENERATED)
        account = engine.account()
    return {
        "kv_dtype": kv_dtype,
        "prompt": reply.n_prompt,
        "loaded": loaded - before,
        "peak": peak_bytes() - before,
        "planned": account.total,
        "components": account.components,
    }


def child(options: Any, kv_dtype: str, cache: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--role", kv_dtype, "--dtype", options.dtype]
    own = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command += ["--context", str(options.context)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **own})
    if done.returncode:
        sys.exit(done.stderr.strip().splitlines()[-1])
    return json.loads(done.stdout)


def main() -> None:
    command = parser(__doc__)
    command.add_argument("--dtype", default="int8")
    command.add_argument("--kv-dtypes", default="bfloat16,int8")
    command.add_argument("--context", type=int, default=8192)
    command.add_argument("--role")
    options = command.parse_args()
    if options.role is not None:
        print(json.dumps(used(options.dtype, options.role, options.context)))
        return
    with tempfile.TemporaryDirectory() as cache:
        found = [[child(options, kv, cache) for _ in range(2)][1] for kv in options.kv_dtypes.split(",")]
    lines = [
        (row["kv_dtype"], row["prompt"], *(f"{row[key] / 1e6:.0f}" for key in ("loaded", "peak", "planned")))
        for row in found
    ]
    head = ("KV", "prompt tokens", "base, router and chat loaded, MB", "most ever held, MB", "planned, MB")
    text = f"{BASE}, {options.dtype}, context {options.context}, one lane, two packs; growth of resident memory.\n"
    text += (
        "Targets in int8 at 8192: resident under 200 MB, in use under 600 MB (bfloat16 KV) and 400 MB (int8 KV).\n\n"
    )
    publish(options, {"rows": found}, "Memory in use", text + table(head, lines), "in_use.md")


if __name__ == "__main__":
    main()
