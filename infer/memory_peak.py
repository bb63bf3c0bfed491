"""Peak memory of a process that answers with a quantised base, against what it must hold.

    python infer/memory_peak.py [--dtype int8] [--context 2048] [--json] [--write]     Linux

Two child processes: one that starts JAX and runs a small program, one that loads the base, takes in a prompt that
fills most of the context and generates. Target: at most 1.25 times weights, KV cache and the first process's peak.
Exits with 1 where it is missed. Each runs twice: a first start compiles every program, a second one finds them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

BASE = "smollm2-135m"
TARGET = 1.25
PAGE = Path(__file__).parent.parent / "docs" / "memory.md"
GENERATED = 64


def peak_bytes() -> int:
    """The most memory that this process has held so far (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc/self/status: Linux is needed")


def baseline() -> dict[str, Any]:
    """JAX started and a small program run."""
    import jax
    import jax.numpy as jnp

    from mbjax.engine.compile_cache import use_compile_cache

    use_compile_cache()
    jax.block_until_ready(jax.jit(lambda x: x @ x)(jnp.ones((64, 64))))
    return {"peak": peak_bytes()}


def answer(dtype: str, context: int) -> dict[str, Any]:
    """A base loaded, a long prompt taken in, and some tokens generated."""
    from mbjax.engine.engine import Engine

    engine = Engine.load(BASE, dtype=dtype, context=context)
    loaded = peak_bytes()
    text = " ".join(f"Item {i} costs {i * 7 % 100} francs." for i in range(context))
    prompt = engine.base.tokenizer.decode(engine.encode(text[: 2 * context], raw=True))
    while len(engine.encode(prompt + text[:100], raw=True)) < context - GENERATED:
        prompt += text[:100]
    reply = engine.generate(prompt, max_tokens=GENERATED, raw=True)
    components = reply.memory.components
    return {"peak": peak_bytes(), "loaded": loaded, "n_prompt": reply.n_prompt, "components": components}


def measure(dtype: str, context: int) -> dict[str, Any]:
    """Both processes; the second twice, so that its programs come from the compilation cache the second time."""
    settings = ["--dtype", dtype, "--context", str(context)]
    with tempfile.TemporaryDirectory() as folder:
        compiling, own = (_child("baseline", settings, folder)["peak"] for _ in range(2))
        first, second = _child("answer", settings, folder), _child("answer", settings, folder)
    needed = own + second["components"]["base"] + second["components"]["kv"]
    return {
        "dtype": dtype,
        "context": context,
        "prompt_tokens": second["n_prompt"],
        "runtime": own,
        "runtime_compiling": compiling,
        "base": second["components"]["base"],
        "kv": second["components"]["kv"],
        "loaded": second["loaded"],
        "peak": second["peak"],
        "ratio": second["peak"] / needed,
        "first_start_peak": first["peak"],
        "first_start_loaded": first["loaded"],
        "first_start_ratio": first["peak"] / needed,
        "first_start_over_compiling": first["peak"] / (needed - own + compiling),
    }


def page(result: dict[str, Any]) -> str:
    """The document as Markdown."""
    rows = (
        ("JAX started, a small program run", result["runtime"]),
        ("the same where the program must be compiled", result["runtime_compiling"]),
        (f"base in {result['dtype']}", result["base"]),
        (f"KV cache of {result['context']} positions", result["kv"]),
        ("peak once the base is loaded", result["loaded"]),
        (f"peak after a prompt of {result['prompt_tokens']} tokens and {GENERATED} generated", result["peak"]),
        ("peak of a first start, which compiles every program", result["first_start_peak"]),
    )
    lines = [
        "# Peak memory of a process",
        "",
        f"{BASE}; the most resident memory that a process ever held. Target: the peak is at most {TARGET} times the sum of",
        f"the runtime, the base and the KV cache; here {result['ratio']:.2f}, and {result['first_start_ratio']:.2f} in a first start",
        f"({result['first_start_over_compiling']:.2f} times where the runtime counts with its compiler).",
        "Made by `python infer/memory_peak.py --write`.",
        "",
        "| what | MB |",
        "|---|---|",
        *(f"| {what} | {size / 1e6:.1f} |" for what, size in rows),
    ]
    return "\n".join(lines) + "\n"


def _child(role: str, settings: list[str], cache: str) -> dict[str, Any]:
    """Runs one role; `cache` is where JAX keeps compiled programs."""
    command = [sys.executable, __file__, "--role", role, *settings]
    own = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **own})
    if done.returncode:
        sys.exit(done.stderr.strip().splitlines()[-1])
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dtype", default="int8")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--write", action="store_true", help=f"write the table to {PAGE.parent.name}/{PAGE.name}")
    parser.add_argument("--role", choices=("baseline", "answer"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role:
        print(json.dumps(baseline() if arguments.role == "baseline" else answer(arguments.dtype, arguments.context)))
        return
    result = measure(arguments.dtype, arguments.context)
    print(json.dumps(result) if arguments.json else page(result))
    if arguments.write:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page(result))
    if result["ratio"] > TARGET:
        sys.exit(f"missed: {result['ratio']:.2f} times what is needed; at most {TARGET}")


if __name__ == "__main__":
    main()
