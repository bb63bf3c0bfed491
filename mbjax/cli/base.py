"""From the options of a command to an engine."""

from pathlib import Path
from typing import TYPE_CHECKING

from mbjax.cli.output import progress_bar, working

if TYPE_CHECKING:
    from mbjax.engine.engine import Engine


def fetch(name: str) -> Path:
    """Pulls a catalog base, with a bar where there is something to fetch."""
    from mbjax.io.pull import pull

    with progress_bar(f"pulling {name}", in_bytes=True) as report:
        return pull(name, report)


def load_engine(
    base: str,
    dtype: str,
    context: int | None,
    packs: Path | None = None,
    force_base: bool = False,
    kv_dtype: str = "auto",
    budget: str | None = None,
) -> "Engine":
    """An engine on the base that the options name; a catalog base that is missing is fetched."""
    from mbjax.io.catalog import entries

    if base.lower() in entries() and not Path(base).exists():
        fetch(base)
    with working(f"loading {base}"):
        from mbjax.engine.engine import Engine

        return Engine.load(
            base,
            packs=packs_of(packs),
            dtype=dtype,
            context=context,
            kv_dtype=kv_dtype,
            budget=budget,
            force_base=force_base,
        )


def packs_of(packs: Path | None) -> Path | None:
    """The directory of packs that is meant: the one given, else the usual one if it exists."""
    from mbjax.io.pack_check import default_packs

    return default_packs() if packs is None and default_packs().is_dir() else packs
