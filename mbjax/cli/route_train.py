"""`mbjax train router` and `mbjax pack calibrate`."""

from pathlib import Path
from typing import Annotated

import typer

from mbjax.cli import options
from mbjax.cli.options import DEFAULT_BASE
from mbjax.cli.output import print_json, progress_bar, working
from mbjax.cli.pack import app as pack_app

app = typer.Typer(help="Train what packs are used with.", no_args_is_help=True)
RouterOption = Annotated[
    Path | None, typer.Option("--router", metavar="DIR", help="The router; default: that beside the packs.")
]


@app.callback()
def _group() -> None:
    pass


@app.command()
def router(
    base: options.BaseOption = DEFAULT_BASE,
    background: Annotated[
        Path | None,
        typer.Option("--background", metavar="FILE.jsonl", help='Lines {"prompt": ...}; default: those that ship.'),
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The directory to write.")] = Path("packs/router"),
    as_json: options.JsonOption = False,
) -> None:
    """Make the router of a base: its routing space, from background prompts. Packs keep their own keys."""
    from mbjax.engine.compile_cache import use_compile_cache
    from mbjax.io.load import load_base
    from mbjax.training.route import background_prompts, train_router

    prompts = background_prompts(background)
    use_compile_cache()
    with working(f"loading {base}"):
        loaded = load_base(base)
    with progress_bar("background prompts") as report:
        made = train_router(loaded, prompts, out, lambda _, done, total: report(done, total))
    about = {"n": len(prompts), "width": made.whitening.shape[0], "background_digest": made.background_digest}
    if as_json:
        print_json({"router": str(out), "base": loaded.name, **about})
    else:
        print(f"{out} ({len(prompts)} background prompts, {made.whitening.shape[0]} dimensions)")


@pack_app.command()
def calibrate(
    pack: Annotated[Path, typer.Argument(metavar="PACK", help="A pack directory.")],
    prompts: Annotated[
        list[Path],
        typer.Option(
            "--prompts",
            metavar="FILE.jsonl",
            help="The pack's own prompts, as it was trained on; may be repeated, the files weigh the same.",
        ),
    ],
    against: Annotated[
        list[Path] | None,
        typer.Option(
            "--against",
            metavar="FILE.jsonl",
            help="Prompts that look like the pack's own and are not; may be repeated, the files weigh the same.",
        ),
    ] = None,
    held_out: Annotated[
        list[Path] | None,
        typer.Option("--held-out", metavar="FILE.jsonl", help="More of its own, of groups that --prompts do not hold."),
    ] = None,
    router: RouterOption = None,
    base: options.BaseOption = DEFAULT_BASE,
    force_base: options.ForceOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Fit the route key of a pack from its own prompts and the router's background, and write it into the pack."""
    from mbjax.engine.compile_cache import use_compile_cache
    from mbjax.io.load import load_base
    from mbjax.io.router_dir import ROUTER
    from mbjax.training.route import calibrate_pack, read_prompts

    sets, foreign, unseen = (
        [read_prompts(path) for path in paths] for paths in (prompts, against or [], held_out or [])
    )
    use_compile_cache()
    with working(f"loading {base}"):
        loaded = load_base(base)
    where = router or pack.absolute().parent / ROUTER
    with progress_bar("prompts") as report:
        fitted = calibrate_pack(
            pack,
            sets,
            where,
            loaded,
            lambda _, done, total: report(done, total),
            against=foreign,
            held_out=[prompt for found in unseen for prompt in found],
            force_base=force_base,
        )
    if as_json:
        about = {"threshold": fitted.threshold, "keeps": fitted.keeps, "fires": fitted.fires}
        print_json({"pack": str(pack), "router": str(where), **about})
    else:
        shares = f"keeps {fitted.keeps:.1%} of its own prompts left out of the fit, takes {fitted.fires:.1%} of unseen background kinds"
        print(f"{pack}: selected from a score of {fitted.threshold:.3f}; {shares}")
