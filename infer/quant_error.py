"""What quantising costs: KL to the float32 logits, top-1 agreement and bits per byte of every scheme, on real text.

    python infer/quant_error.py [--part base|dithered] [--json] [--write]     needs the extra `reference`

More than 20,000 tokens of three domains; about 15 minutes on two cores. `base` is the default base as it is stored.
Its matrices lie on a grid of 4 bits, on which quantising to 4 bits again costs next to nothing: `dithered` is the same
base shaken off that grid by half a step, quantised by us and by llama.cpp from one float32 GGUF. Exits with 1 where a
target is missed.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from dithered_base import quantise_by_llamacpp, read_float_base, write_dithered
from domain_texts import domain_rows
from quant_measure import Reference, text_bytes
from quant_report import PAGE, checks, page, plot

from mbjax.core.base import Base
from mbjax.core.quant import INT4, INT8, QTensor, Scheme, abstract, dequantize, tile
from mbjax.core.quantize import RULES, Rule, quantize, scheme_of
from mbjax.engine.compile_cache import use_compile_cache
from mbjax.engine.programs import tree_bytes
from mbjax.io.load import LoadedBase, load_base
from mbjax.io.pull import pull

BASE = "smollm2-135m"
ROWS, LENGTH = 14, 512  # of each domain: 21,504 tokens in all

Variant = tuple[str, float, Callable[[], Base]]  # key, bits per weight, how to make the parameters


def measure(part: str, base: LoadedBase, note: Callable[[str], None]) -> list[dict[str, Any]]:
    """One part of the table: a line per variant."""
    tokenizer = base.tokenizer
    rows = domain_rows(lambda text: tokenizer.encode(text, add_bos=False, special=False), ROWS, LENGTH)
    n_bytes = text_bytes(tokenizer.decode, rows)
    with tempfile.TemporaryDirectory() as folder:
        params, variants = base.params, base_variants(base.params)
        if part == "dithered":
            write_dithered(pull(BASE), Path(folder) / "dithered.gguf")
            params = read_float_base(Path(folder) / "dithered.gguf")
            variants = dithered_variants(params, Path(folder))
        reference = Reference(params, base.config, rows, n_bytes)
        lines = []
        for key, bits, make in variants:
            errors = reference.compare(make(), lambda domain, key=key: note(f"{part}: {key}: {domain}"))
            found = {name: dataclasses.asdict(error) for name, error in errors.items()}
            lines.append({"part": part, "key": key, "bits": bits, "errors": found})
            note(f"{part}: {key}: KL {errors['all'].kl:.5f}, same top {errors['all'].same_top:.4f}")
        return lines


def base_variants(params: Base) -> Iterator[Variant]:
    """The default base: its own blocks, and every form of int8."""
    yield "float32", 32.0, lambda: params
    blocks = load_base(BASE, "auto").params
    yield "stored blocks, int8 activations of 32", tree_bytes(blocks) * 8 / _n_weights(params), lambda: blocks
    for group in (32, 64, 128, 0):
        yield _variant(params, f"int8 {_name(group)}", (Rule(".", Scheme(8, group)),), dequantize)
    yield _variant(params, "int8 of 32, int8 activations of 32", RULES["int8"], tile)
    for group in (64, 128, 0):
        yield _variant(params, f"int8 of 32, int8 activations {_name(group)}", RULES["int8"], _activations(group))
    yield _variant(params, "int8 per row, int8 activations per row", (Rule(".", Scheme(8, 0)),), _activations(0))


def dithered_variants(params: Base, folder: Path) -> Iterator[Variant]:
    """The dithered base: every form of int4, and llama.cpp's files from the same GGUF, dequantised."""
    yield "float32", 32.0, lambda: params
    yield _variant(params, "int8 of 32", RULES["int8"], dequantize)
    for scheme in (INT4, Scheme(4, 64, True), Scheme(4, 128, True), Scheme(4, 32), Scheme(4, 128)):
        kind = "int4" if scheme.asymmetric else "int4 symmetric"
        rules = (Rule(r"\.(embed|head)$", INT8), Rule(".", scheme))
        yield _variant(params, f"{kind} of {scheme.group}", rules, dequantize)
    yield _variant(params, "int4 of 32, int8 activations of 32", RULES["int4"], tile)
    for kind in ("Q4_1", "Q4_0"):
        file = folder / f"{kind}.gguf"
        quantise_by_llamacpp(folder / "dithered.gguf", file, kind)
        yield f"llama.cpp {kind}", file.stat().st_size * 8 / _n_weights(params), lambda file=file: read_float_base(file)


def _variant(params: Base, key: str, rules: tuple[Rule, ...], place: Callable[[QTensor], Any]) -> Variant:
    stored = [
        abstract(leaf.shape, scheme) if leaf.ndim == 2 and scheme else leaf
        for path, leaf in jax.tree.leaves_with_path(params)
        for scheme in [scheme_of(jax.tree_util.keystr(path), rules)]
    ]
    return key, tree_bytes(stored) * 8 / _n_weights(params), lambda: quantize(params, rules, place)[0]


def _activations(group: int) -> Callable[[QTensor], QTensor]:
    return lambda q: dataclasses.replace(q, activations=group)


def _name(group: int) -> str:
    return f"of {group}" if group else "per row"


def _n_weights(params: Base) -> int:
    return sum(x.size for x in jax.tree.leaves(params))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--part", choices=("base", "dithered"), help="only this one")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the tables")
    parser.add_argument("--write", action="store_true", help=f"write table and plot to {PAGE.parent.name}/{PAGE.name}")
    arguments = parser.parse_args()
    use_compile_cache()
    base = load_base(BASE, "float32")
    parts = [arguments.part] if arguments.part else ["base", "dithered"]
    lines = [line for part in parts for line in measure(part, base, lambda text: print(text, file=sys.stderr))]
    document = {"base": BASE, "rows": ROWS, "length": LENGTH, "lines": lines}
    print(json.dumps(document) if arguments.json else page(document))
    if arguments.write:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page(document))
        plot(document, PAGE.with_suffix(".png"))
    missed = [what for what, _, _, met in checks(document) if not met]
    if missed:
        sys.exit(f"missed: {'; '.join(missed)}")


if __name__ == "__main__":
    main()
