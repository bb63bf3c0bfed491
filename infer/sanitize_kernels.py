"""Runs the CPU kernels under the address, undefined-behaviour and thread sanitizers; any finding ends the run.

    python infer/sanitize_kernels.py [pytest arguments]     needs g++ or clang++ with its sanitizers, and the extra `test`

First kernel_threads.cc: whole layers by several threads, under the thread sanitizer. Then the kernels' tests on a build
with the other two. XLA compiles some twenty times slower inside such a process, so the tests run on the ordinary build
before, into a compilation cache that the sanitized run reads. Exits with 0 where nothing was found. Ten minutes.
"""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jaxlib

ROOT = Path(__file__).parent.parent
SOURCES = ROOT / "mbjax" / "kernels" / "src"
TESTS = ("tests/test_kernels.py", "tests/test_fused.py")
FLAGS = ("-O1", "-g", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-omit-frame-pointer")
MEMORY = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
THREADS = ("-fsanitize=thread",)
X86 = {
    "isa_avx2.cc": ("-mavx2", "-mfma", "-mf16c"),
    "isa_avx512.cc": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mfma", "-mf16c"),
}
CACHE = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}


def build(target: Path, compiler: str, sources: list[Path], own: tuple[str, ...], link: tuple[str, ...]) -> None:
    """The sources as one program or library, instrumented by the flags `own`."""
    include = Path(jaxlib.__file__).parent / "include"
    x86 = platform.machine().lower() in ("x86_64", "amd64")

    def compiled(source: Path) -> str:
        out = str(target.parent / f"{target.name}.{source.stem}.o")
        flags = [*FLAGS, *(X86.get(source.name, ()) if x86 else ()), *own]
        subprocess.run(
            [compiler, *flags, f"-I{SOURCES}", "-isystem", str(include), "-c", source, "-o", out], check=True
        )
        return out

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, sources))
    subprocess.run([compiler, *own, *link, *objects, "-o", target], check=True)


def run_threads(folder: Path, compiler: str) -> None:
    """The kernels' own sources under the thread sanitizer."""
    sources = [path for path in sorted(SOURCES.glob("*.cc")) if not path.name.startswith("ffi")]
    build(folder / "threads", compiler, [*sources, Path(__file__).parent / "kernel_threads.cc"], THREADS, ("-pthread",))
    subprocess.run([folder / "threads"], check=True, env=os.environ | {"TSAN_OPTIONS": "halt_on_error=1"})


def run_tests(folder: Path, compiler: str, arguments: list[str]) -> None:
    """The tests on the ordinary build, which fills the compilation cache, and on the sanitized one."""
    library = folder / "kernels.so"
    build(library, compiler, sorted(SOURCES.glob("*.cc")), MEMORY, ("-shared",))
    runtimes = [
        subprocess.run([compiler, f"-print-file-name=lib{name}.so"], capture_output=True, text=True, check=True)
        for name in ("asan", "ubsan", "stdc++")
    ]
    ordinary = os.environ | CACHE | {"JAX_COMPILATION_CACHE_DIR": str(folder / "programs")}
    sanitized = ordinary | {
        "MBJAX_KERNELS": str(library),
        "LD_PRELOAD": " ".join(found.stdout.strip() for found in runtimes),
        # the interpreter itself leaks, and its allocations need no call stack kept for each
        "ASAN_OPTIONS": "detect_leaks=0:malloc_context_size=1:quarantine_size_mb=64",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *(arguments or TESTS)]
    for environment in (ordinary, sanitized):
        print("sanitized" if environment is sanitized else "ordinary build", file=sys.stderr)
        subprocess.run(command, cwd=ROOT, env=environment, check=True)


def main() -> None:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        sys.exit("no C++ compiler found; install g++ or clang++")
    with tempfile.TemporaryDirectory() as folder:
        try:
            run_threads(Path(folder), compiler)
            run_tests(Path(folder), compiler, sys.argv[1:])
        except subprocess.CalledProcessError as error:
            sys.exit(error.returncode if error.returncode > 0 else 1)


if __name__ == "__main__":
    main()
