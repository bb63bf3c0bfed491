"""Builds the CPU kernels with the address and undefined-behaviour sanitizers and runs their tests on that build.

    python infer/sanitize_kernels.py [pytest arguments]     needs g++ or clang++ with libasan, and the extra `test`

Exits with the status of the tests. Any finding ends the run with the sanitizer's report. About five minutes.
"""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import jaxlib

ROOT = Path(__file__).parent.parent
SOURCES = ROOT / "mbjax" / "kernels" / "src"
TESTS = ("tests/test_kernels.py", "tests/test_fused.py")
FLAGS = ("-O1", "-g", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-omit-frame-pointer")
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
X86 = {
    "isa_avx2.cc": ("-mavx2", "-mfma", "-mf16c"),
    "isa_avx512.cc": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mfma", "-mf16c"),
}


def build(target: Path, compiler: str) -> None:
    """The kernels as one shared library, instrumented."""
    include = Path(jaxlib.__file__).parent / "include"
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    objects = []
    for source in sorted(SOURCES.glob("*.cc")):
        objects.append(str(target.parent / f"{source.stem}.o"))
        own = X86.get(source.name, ()) if x86 else ()
        command = [compiler, *FLAGS, *own, *SANITIZE, "-isystem", str(include), "-c", str(source), "-o", objects[-1]]
        subprocess.run(command, check=True)
    subprocess.run([compiler, "-shared", *SANITIZE, *objects, "-o", str(target)], check=True)


def main() -> None:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        sys.exit("no C++ compiler found; install g++ or clang++")
    runtimes = [
        subprocess.run([compiler, f"-print-file-name=lib{name}.so"], capture_output=True, text=True, check=True)
        for name in ("asan", "ubsan", "stdc++")
    ]
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "kernels.so"
        build(library, compiler)
        environment = os.environ | {
            "MBJAX_KERNELS": str(library),
            "LD_PRELOAD": " ".join(found.stdout.strip() for found in runtimes),
            "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter itself leaks
            "UBSAN_OPTIONS": "print_stacktrace=1",
        }
        arguments = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(sys.argv[1:] or TESTS)]
        sys.exit(subprocess.run(arguments, cwd=ROOT, env=environment, check=False).returncode)


if __name__ == "__main__":
    main()
