"""`mbjax plan`."""

from typing import Annotated

import typer

from mbjax.cli import options
from mbjax.cli.options import DEFAULT_BASE
from mbjax.cli.output import bytes_table, print_json, print_table, working


def plan(
    base: options.BaseOption = DEFAULT_BASE,
    dtype: options.DtypeOption = "auto",
    kv_dtype: options.KvOption = "auto",
    context: options.ContextOption = None,
    budget: Annotated[str | None, typer.Option("--budget", metavar="SIZE", help="For example 4GiB or 800MB.")] = None,
    as_json: options.JsonOption = False,
) -> None:
    """Show the bytes that a base will need, before anything is allocated, and whether they fit a budget."""
    from mbjax.engine.sizes import parse_bytes

    size = None if budget is None else parse_bytes(budget)
    with working("planning"):
        from mbjax.engine.plan import plan_base

        result = plan_base(base, dtype=dtype, kv_dtype=kv_dtype, context=context, budget=size)
    if as_json:
        print_json(result.to_json())
        return
    print_table(bytes_table(result.components, result.total, result.budget))
    print(result.verdict())
