"""`mbjax train packs`."""

from pathlib import Path
from typing import Annotated

import typer

from mbjax.cli import options
from mbjax.cli.options import DEFAULT_BASE
from mbjax.cli.output import note, print_json
from mbjax.cli.pack_train import Display
from mbjax.cli.train_base import app


@app.command()
def packs(
    base: options.BaseOption = DEFAULT_BASE,
    configs: Annotated[
        Path, typer.Option("--configs", metavar="DIR", help="Configurations of packs; their base is not looked at.")
    ] = Path("configs"),
    only: Annotated[str, typer.Option("--only", metavar="ID,ID", help="Not all of them.")] = "",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Directory of packs; default packs-BASE.")
    ] = None,
    work: Annotated[Path | None, typer.Option("--work", metavar="DIR", help="Default runs/BASE; continued.")] = None,
    as_json: options.JsonOption = False,
) -> None:
    """Make router and packs for a base from the recipes of a folder. What is there is kept; call it again to go on."""
    from mbjax.engine.compile_cache import use_compile_cache
    from mbjax.training.recipes import read_recipes, train_recipes
    from mbjax.training.run import Watch

    recipes = read_recipes(configs, [name.strip() for name in only.split(",") if name.strip()])
    name = Path(base).name
    out, work = out or Path(f"packs-{name}"), work or Path("runs") / name
    use_compile_cache()
    with Display(0) as display:

        def watch(name: str, steps: int) -> Watch:
            display.begin(name, steps)
            return Watch(display.stage, display.event)

        made = train_recipes(recipes, configs, base, out, work, watch)
    if as_json:
        print_json({"made": [{"path": str(one.path), "new": one.new} for one in made]})
        return
    for one in made:
        note(f"{one.path}: {'made' if one.new else 'was there'}")
    print(out)
