"""`mbjax pack`: the commands that handle pack directories."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from mbjax.cli import options
from mbjax.cli.options import DEFAULT_BASE
from mbjax.cli.output import note, print_json, print_table, working
from mbjax.engine.sizes import format_bytes
from mbjax.errors import InputError

if TYPE_CHECKING:
    from mbjax.io.pack_check import PackSummary

app = typer.Typer(help="Make, check and convert packs.", no_args_is_help=True)


@app.command("list")
def list_(
    packs: Annotated[
        Path | None, typer.Option("--packs", metavar="DIR", help="Directory of packs; default ./packs or the store.")
    ] = None,
    as_json: options.JsonOption = False,
) -> None:
    """List the packs in a directory; what is wrong with one is shown with it."""
    from mbjax.io.pack_check import default_packs, list_packs

    where = packs or default_packs()
    found = list_packs(where) if packs is not None or where.is_dir() else []
    if as_json:
        print_json({"packs": [pack.to_json() for pack in found]})
    elif found:
        print_table(_table(found))
    else:
        note(f"no packs in {where}")


@app.command()
def verify(
    paths: Annotated[list[Path], typer.Argument(metavar="PACK...", help="Pack directories.")],
    as_json: options.JsonOption = False,
) -> None:
    """Read every file of packs, compare all digests and check every tensor; exit status 2 if something is wrong."""
    from mbjax.io.pack_check import summarise_pack
    from mbjax.io.router_dir import is_router

    for path in (path for path in paths if is_router(path)):
        note(f"{path}: a router, no pack; it is checked whenever it is used")
    with working("verifying"):
        found = [summarise_pack(path, verify=True) for path in paths if not is_router(path)]
    if as_json:
        print_json({"packs": [pack.to_json() for pack in found]})
    else:
        print_table(_table(found))
    damaged = [pack for pack in found if pack.problems]
    if damaged:
        more = f" (and {len(damaged) - 1} more packs with problems)" if len(damaged) > 1 else ""
        raise InputError(damaged[0].problems[0] + more)


@app.command()
def export(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A pack directory, or a PEFT LoRA adapter's.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The directory to write.")],
    base: options.BaseOption = DEFAULT_BASE,
    pack_id: Annotated[
        str | None, typer.Option("--id", help="Of the new pack; an adapter's default: OUT's name.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Of the new pack, for people.")] = None,
    version: Annotated[str | None, typer.Option("--version", help="Of the new pack.")] = None,
    licence: Annotated[str | None, typer.Option("--licence", help="Of the new pack.")] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="Write a pack, with matrices in float32, bfloat16, int8 or int4.")
    ] = None,
    as_json: options.JsonOption = False,
) -> None:
    """Write a PEFT adapter as a pack for a base; a pack as a PEFT adapter or, with --dtype, as a pack in that dtype."""
    from mbjax.io.load import load_base
    from mbjax.io.pack_export import Naming, export

    with working("exporting"):
        done = export(source, out, lambda: load_base(base), Naming(pack_id, name, version, licence), dtype)
    for line in done.notes:
        note(line)
    if as_json:
        print_json({"path": str(done.path), "form": done.form, "notes": list(done.notes)})
    else:
        print(done.path)


def _table(packs: "list[PackSummary]") -> Table:
    table = Table("pack", "version", "parts", "base", box=None, pad_edge=False)
    table.add_column("bytes", justify="right")
    table.add_column("state", overflow="fold")
    for pack in packs:
        about = pack.manifest
        known = ["-", "-", "-"] if about is None else [about.version, "+".join(about.parts), about.base.name]
        size = "-" if about is None else format_bytes(about.bytes)
        table.add_row(*map(_plain, [pack.id, *known, size, "; ".join(pack.problems) or "ok"]))
    return table


def _plain(text: str) -> str:
    """Square brackets of a pack's own words are no markup."""
    return text.replace("[", "\\[")
