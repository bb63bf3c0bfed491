"""`mbjax pull`."""

from typing import Annotated

import typer

from mbjax.cli.base import fetch
from mbjax.cli.options import JsonOption
from mbjax.cli.output import print_json


def pull(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name from the catalog, for example smollm2-135m.")],
    as_json: JsonOption = False,
) -> None:
    """Fetch a base into the cache directory (MBJAX_HOME), digest-checked; nothing to do if it is there."""
    path = fetch(name)
    if as_json:
        print_json({"name": name, "path": str(path)})
    else:
        print(path)
