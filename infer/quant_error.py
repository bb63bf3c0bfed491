"""What quantising costs: KL to the float32 logits, top-1 agreement and bits per byte of every scheme, on real text.

    python infer/quant_error.py [--part base|dithered] [--at-most N] [--json] [--write]    needs the extra `reference`

More than 20,000 tokens of three domains; about 20 minutes on two cores, or in pieces: each line is kept in
build/quant_error.json and not measured again, unless --fresh. `base` is the default base as it is stored.
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
KEPT = PAGE.parent.parent / "build" / "quant_error.json"
ROWS, LENGTH = 14, 512  # of each domain: 21,504 tokens in all

Variant = tuple[str, float, Callable[[], Base]]  # key, bits per weight, how to make the parameters


def measure(part: str, base: LoadedBase, lines: list[dict[str, Any]], keep: Callable[[dict[str, Any]], bool]) -> None:
    """The lines of one part of the table that are not among `lines`: `keep` takes each and says whether to go on."""
    known = {line["key"] for line in lines if line["part"] == part}
    tokenizer = base.tokenizer
    rows = domain_rows(lambda text: tokenizer.encode(text, add_bos=False, special=False), ROWS, LENGTH)
    n_bytes = text_bytes(tokenizer.decode, rows)
    with tempfile.TemporaryDirectory() as folder:
        params, variants = base.params, base_variants(base.params)
        if part == "dithered":
            write_dithered(pull(BASE), Path(folder) / "dithered.gguf")
            params = read_float_base(Path(folder) / "dithered.gguf")
            variants = dithered_variants(params, Path(folder))
        missing = [variant for variant in variants if variant[0] not in known]
        if not missing:
            return
        reference = Reference(params, base.config, rows, n_bytes)
        for key, bits, make in missing:
            errors = reference.compare(make(), lambda domain, key=key: _note(f"{part}: {key}: {domain}"))
            found = {name: dataclasses.asdict(error) for name, error in errors.items()}
            _note(f"{part}: {key}: KL {errors['all'].kl:.5f}, same top {errors['all'].same_top:.4f}")
            if not keep({"part": part, "key": key, "bits": bits, "errors": found}):
                return


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


def measured(parts: list[str], at_most: int, fresh: bool) -> dict[str, Any]:
    """The document: lines kept from earlier calls, and up to `at_most` new ones, each written down at once."""
    heading = {"base": BASE, "rows": ROWS, "length": LENGTH}
    kept = {} if fresh or not KEPT.exists() else json.loads(KEPT.read_text())
    lines = kept["lines"] if {key: kept.get(key) for key in heading} == heading else []
    left = [at_most]

    def keep(line: dict[str, Any]) -> bool:
        lines.append(line)
        KEPT.parent.mkdir(exist_ok=True)
        KEPT.write_text(json.dumps(heading | {"lines": lines}))
        left[0] -= 1
        return left[0] > 0

    base = load_base(BASE, "float32")
    for part in parts:
        if left[0] > 0:
            measure(part, base, lines, keep)
    return heading | {"lines": sorted(lines, key=lambda line: ("base", "dithered").index(line["part"]))}


def _note(text: str) -> None:
    print(text, file=sys.stderr)


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
    parser.add_argument("--at-most", type=int, default=99, help="so many new lines in this call")
    parser.add_argument("--fresh", action="store_true", help=f"forget the lines kept in {KEPT.parent.name}/{KEPT.name}")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the tables")
    parser.add_argument("--write", action="store_true", help=f"write table and plot to {PAGE.parent.name}/{PAGE.name}")
    arguments = parser.parse_args()
    use_compile_cache()
    parts = [arguments.part] if arguments.part else ["base", "dithered"]
    document = measured(parts, arguments.at_most, arguments.fresh)
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
