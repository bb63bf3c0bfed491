"""Builds the optional CPU kernels; without a compiler or JAX's headers the package installs without them."""

import platform
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = Path("mbjax/kernels/src")
COMMON = ["-O3", "-g0", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall"]
X86_FLAGS = {
    "isa_avx512.cc": [
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mfma", "-mf16c"),
        *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),  # GCC's own AVX-512 headers (GCC bug 105593)
    ],
    "isa_avx2.cc": ["-mavx2", "-mfma", "-mf16c"],
}
ARM_FLAGS = {"isa_neon.cc": ["-march=armv8.2-a+dotprod"]} if sys.platform == "darwin" else {}


class BuildKernels(build_ext):
    """One plain shared library, loaded with ctypes; each instruction set is compiled with switches of its own."""

    def build_extension(self, ext: Extension) -> None:
        import jaxlib

        include = str(Path(jaxlib.__file__).parent / "include")
        machine = platform.machine().lower()
        flags_of = X86_FLAGS if machine in ("x86_64", "amd64") else ARM_FLAGS
        objects: list[str] = []
        for source in ext.sources:
            flags = COMMON + flags_of.get(Path(source).name, []) + ext.extra_compile_args
            objects += self.compiler.compile(
                [source], output_dir=self.build_temp, extra_postargs=[*flags, "-isystem", include]
            )
        target = self.get_ext_fullpath(ext.name)
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        self.compiler.link_shared_object(objects, target, extra_postargs=ext.extra_link_args, target_lang="c++")

    def run(self) -> None:
        try:
            super().run()
        except Exception as error:  # noqa: BLE001 - whatever went wrong, the package must install
            print(f"mbjax: CPU kernels not built ({error}); the pure-JAX twins will run", file=sys.stderr)


sources = sorted(str(p) for p in SOURCES.glob("*.cc"))
setup(
    ext_modules=[
        Extension("mbjax.kernels._native", sources, depends=sorted(map(str, SOURCES.glob("*"))), optional=True)
    ],
    cmdclass={"build_ext": BuildKernels},
)
