"""Runs a Python program that a model wrote, in a subprocess with little time, memory and reach.

The child is an isolated interpreter with an empty environment in an empty directory. Before the program runs, it limits its
own processor time, memory, file sizes and processes, and gives up the modules that reach outside (sockets, subprocesses,
ctypes, signals). This stops accidents, not an attacker: run it where nothing is to be lost.
"""

import secrets
import subprocess
import sys
import tempfile

SECONDS = 6.0  # of processor time; and twice that on the clock
MEMORY = 512 * 2**20  # bytes of address space

_PRELUDE = """
import resource, sys
for what, most in ((resource.RLIMIT_CPU, {seconds}), (resource.RLIMIT_AS, {memory}), (resource.RLIMIT_FSIZE, 0),
                   (resource.RLIMIT_NPROC, 0), (resource.RLIMIT_CORE, 0)):
    resource.setrlimit(what, (most, most))
import os
for name in ("kill", "killpg", "system", "fork", "forkpty", "execv", "execve", "posix_spawn", "posix_spawnp", "remove",
             "unlink", "rmdir", "rename", "replace", "chmod", "chown", "truncate", "putenv", "setuid", "_exit"):
    if hasattr(os, name):
        setattr(os, name, None)
for name in ("socket", "_socket", "subprocess", "_posixsubprocess", "multiprocessing", "ctypes", "_ctypes", "shutil",
             "resource", "signal", "importlib.util"):
    sys.modules[name] = None
code = sys.stdin.read()
done, write = {token!r}, sys.__stdout__.write
sys.stdout = sys.stderr = open(os.devnull, "w")
exec(compile(code, "program", "exec"), {{"__name__": "__main__"}})
write(done)
"""


def passes(program: str, *, seconds: float = SECONDS, memory: int = MEMORY) -> bool:
    """Whether the program runs to its end within the limits without an exception that nobody catches."""
    token = secrets.token_hex(16)  # an early exit is no success: only the last line knows this word
    prelude = _PRELUDE.format(seconds=max(1, int(seconds)), memory=memory, token=token)
    with tempfile.TemporaryDirectory() as empty:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-S", "-c", prelude],
                input=program.encode("utf-8", "replace"), capture_output=True, check=False, cwd=empty, env={}, timeout=2 * seconds,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return False
    return done.returncode == 0 and done.stdout.decode("utf-8", "replace").endswith(token)
