"""`mbjax route`."""

from typing import Any

from rich.table import Table

from mbjax.cli import options
from mbjax.cli.base import load_engine
from mbjax.cli.options import DEFAULT_BASE
from mbjax.cli.output import print_json, print_table, progress_bar, show_notes


def route(
    file: options.FileArgument,
    base: options.BaseOption = DEFAULT_BASE,
    packs: options.PacksOption = None,
    force_base: options.ForceOption = False,
    dtype: options.DtypeOption = "auto",
    context: options.ContextOption = None,
    raw: options.RawOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Show which packs each {"prompt"} calls for; with a "domain" on each line also how often that is right."""
    from mbjax.engine.route_file import read_asked, route_prompts

    asked = read_asked(file)  # before the base is loaded: a wrong line is told at once
    engine = load_engine(base, dtype, context, packs, force_base)
    with progress_bar("routing") as report:
        result = route_prompts(engine, asked, raw=raw, progress=report)
    show_notes(engine)
    if as_json:
        print_json(result.to_json())
        return
    for one, item in zip(asked, result.items, strict=True):
        words = one.prompt if isinstance(one.prompt, str) else one.prompt[-1]["content"]
        print(f"{_shown(item)}\t{' '.join(words.split())[:100]}")
    if "domains" in result.summary:
        print_table(_table(result.summary))


def _shown(item: dict[str, Any]) -> str:
    found = " ".join(f"{entry['pack']}:{entry['score']:.3f}" for entry in item["route"]) or "base"
    return found if item.get("correct", True) else f"{found} (wrong)"


def _table(summary: dict[str, Any]) -> Table:
    table = Table("domain", box=None, pad_edge=False)
    table.add_column("n", justify="right")
    table.add_column("right", justify="right")
    for name, part in summary["domains"].items():
        table.add_row(name, str(part["n"]), f"{part['accuracy']:.1%}")
    n = sum(part["n"] for part in summary["domains"].values())
    table.add_row("all", str(n), f"{summary['accuracy']:.1%}", style="bold")
    return table
