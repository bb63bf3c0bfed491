"""P4: the account of device bytes against what a process really holds, on the real base."""

import json
import os
import subprocess
import sys

import pytest

from mbjax.engine.engine import Engine
from mbjax.errors import InputError

MEASURE = """
import json, sys, threading
import jax, jax.numpy as jnp
from mbjax.engine.compile_cache import use_compile_cache
from mbjax.engine.engine import Engine
from mbjax.io.pull import pull

def held(name):
    for line in open("/proc/self/status"):
        if line.startswith(name):
            return int(line.split()[1]) * 1024

use_compile_cache()
jax.block_until_ready(jax.jit(lambda x: x @ x)(jnp.ones((64, 64))))
before = held("VmRSS:")
engine = Engine.load("smollm2-135m", packs="packs", dtype="int8", context=512, lanes=2, budget="450MB", force_base=True)
loaded = held("VmHWM:")
text = " ".join(f"Item {i} costs {i * 7 % 100} francs." for i in range(30))
for use in ("none", "medical"):
    streams = [engine.stream(text, pack=use, max_tokens=24) for _ in range(5)]
    for stream in streams:
        "".join(stream)
memory = engine.memory()
engine.close()
left = [t.name for t in threading.enumerate() if t.name.startswith("mbjax")]
print(json.dumps({"before": before, "loaded": loaded, "peak": held("VmHWM:"), "now": held("VmRSS:"),
                  "account": engine.account().total, "held": memory.peak, "budget": memory.budget, "left": left}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_p4_resident_memory_grows_by_at_most_the_account_and_a_tenth(tmp_path):
    own = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    own["XLA_FLAGS"] = ""
    # -P: the mbjax that is installed, with its kernels, not a source tree without them that lies in this folder
    command = [sys.executable, "-P", "-c", MEASURE]
    for _ in range(2):  # the first compiles, and the compiler's own memory is not the engine's
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **own})
        assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["account"] <= found["budget"] and found["held"] <= found["account"]
    assert found["peak"] - found["before"] <= 1.1 * found["account"], found
    assert found["left"] == []


@pytest.mark.slow
def test_p4_what_does_not_fit_is_refused_with_the_table_and_what_would(smollm2):
    with pytest.raises(InputError) as refused:
        Engine.load("smollm2-135m", dtype="float32", context=2048, budget="400MB")
    for part in ("more than the budget of 400.0 MB", "base 538", "--dtype int8"):
        assert part in str(refused.value)
