"""`mbjax plan`."""

from mbjax.cli import options
from mbjax.cli.base import packs_of
from mbjax.cli.options import DEFAULT_BASE
from mbjax.cli.output import bytes_table, print_json, print_table, working


def plan(
    base: options.BaseOption = DEFAULT_BASE,
    dtype: options.DtypeOption = "auto",
    kv_dtype: options.KvOption = "auto",
    context: options.ContextOption = None,
    lanes: options.LanesOption = 1,
    packs: options.PacksOption = None,
    budget: options.BudgetOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Show the bytes that a base and its packs will need, before anything is allocated, and whether they fit a budget."""
    from mbjax.engine.sizes import parse_bytes

    size = None if budget is None else parse_bytes(budget)
    with working("planning"):
        from mbjax.engine.plan import Installed, Wishes, plan_base

        wishes = Wishes(dtype, kv_dtype, context, lanes, Installed.at(packs_of(packs)), size)
        result = plan_base(base, wishes)
    if as_json:
        print_json(result.to_json())
        return
    print_table(bytes_table(result.components, result.total, result.budget))
    print(result.verdict())
