"""The import rule of design section 5, checked on the source: arrows point down only, and core stays pure."""

import ast
import subprocess
import sys
from pathlib import Path

import mbjax

ROOT = Path(mbjax.__file__).parent
ROOMS = {"kernels": 0, "core": 1, "io": 2, "engine": 3, "training": 3, "serve": 4, "cli": 4}
IMPURE = {"os", "pathlib", "threading", "orbax", "grain", "requests", "httpx", "http", "urllib", "socket"}


def imports(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports, at any depth of nesting."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_rooms_import_downwards_only():
    for path in ROOT.rglob("*.py"):
        room = path.relative_to(ROOT).parts[0]
        if room not in ROOMS:
            continue
        for name in imports(path):
            target = name.split(".")[1] if name.startswith("mbjax.") else None
            if target in ROOMS and target != room:
                assert ROOMS[target] < ROOMS[room], f"{path.relative_to(ROOT)} imports {name}"


def test_core_is_pure():
    files = list((ROOT / "core").rglob("*.py"))
    assert files
    for path in files:
        roots = {name.split(".")[0] for name in imports(path)}
        assert not roots & IMPURE, f"{path.name} imports {sorted(roots & IMPURE)}"


def test_inference_does_not_load_training_libraries():
    code = (
        "import sys, mbjax; mbjax.Engine, mbjax.load_base, mbjax.forward\n"
        "import mbjax.cli.generate\n"
        "heavy = {'orbax', 'grain', 'optax', 'torch', 'transformers', 'gguf', 'sentencepiece'}\n"
        "print(sorted(heavy & {name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_are_lazy():
    code = "import sys, mbjax; print('jax' in sys.modules, sorted(mbjax.__all__) == sorted(dir(mbjax)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
