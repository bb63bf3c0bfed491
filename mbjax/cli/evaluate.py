"""`mbjax eval`."""

from pathlib import Path
from typing import Annotated

import typer

from mbjax.cli import options
from mbjax.cli.base import load_engine
from mbjax.cli.options import DEFAULT_BASE
from mbjax.cli.output import print_json, progress_bar, show_notes


def evaluate(
    file: Annotated[Path, typer.Argument(metavar="FILE.jsonl", help="One JSON object per line.")],
    base: options.BaseOption = DEFAULT_BASE,
    pack: options.PackOption = "auto",
    packs: options.PacksOption = None,
    force_base: options.ForceOption = False,
    dtype: options.DtypeOption = "auto",
    kv_dtype: options.KvOption = "auto",
    context: options.ContextOption = None,
    raw: options.RawOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Measure answers ({"prompt", "answer"}), accuracy (... "choices", "label") or bits per byte ("completion", "text")."""
    from mbjax.engine.eval_file import read_items

    items = read_items(file)  # before the base is loaded: a wrong line is told at once
    engine = load_engine(base, dtype, context, packs, force_base, kv_dtype)
    from mbjax.engine.evaluate import evaluate as run

    with progress_bar("evaluating") as report:
        result = run(engine, items, pack=pack, raw=raw, progress=report)
    show_notes(engine)
    if as_json:
        print_json(result.to_json())
    else:
        for name, value in result.summary.items():
            print(f"{name}: {value:.4f}" if isinstance(value, float) else f"{name}: {value}")
