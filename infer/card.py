"""What a 4 GB card gives: memory, decoding, prefill, swaps, training, and PyTorch beside it, all of one accelerator.

    python infer/card.py --parts rates,decode,torch --out card.json [--limit-gib 4] [--seconds 500] [--ahead 8]
    python infer/card.py --out card.json --write       tables and curves into docs/, from what is there
        [--earlier before.json ...]                    what it lacks from there, in parts of their own

Each measurement is a process of its own that gets --limit-gib of the device's memory and no more (training and
PyTorch: all of it). First the programs of the next few are compiled, side by side and kept; then these are measured,
one at a time, alone on the device. Results are in the file as soon as they exist; what is there is not measured again.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from card_cells import CARD_SHAPES, DTYPES, PARTS, all_cells
from card_report import derived, page, summary
from card_run import Results, run_cells
from report import parser

from mbjax.errors import InputError, MbjaxError


def main() -> None:
    command = parser(__doc__)
    command.add_argument("--parts", default="", help=f"of {', '.join(PARTS)}; decode measures prefill and memory, too")
    command.add_argument("--shapes", default=",".join(CARD_SHAPES), help="tiny: on any machine")
    command.add_argument("--dtypes", default=",".join(DTYPES), help="int4: of the first shape only")
    command.add_argument("--lanes", default="1,8")
    command.add_argument("--out", type=Path, required=True, help="the file that holds all results")
    command.add_argument("--earlier", type=Path, nargs="*", default=[], help="earlier results, for --write")
    command.add_argument("--limit-gib", type=float, default=4.0)
    command.add_argument("--base", help="real weights for logits: a name or a path")
    command.add_argument("--seconds", type=float, default=float("inf"), help="start nothing after so many")
    command.add_argument("--ahead", type=int, default=8, help="how many compile side by side")
    command.add_argument("--retry", action="store_true", help="measure again what failed")
    options = command.parse_args()
    try:
        found = measured(options)
    except MbjaxError as error:
        command.exit(error.exit_status, f"{error}\n")
    print(json.dumps({"cells": found, "derived": derived(found)}) if options.json else summary(found))


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """All cells that the file then holds. Raises InputError for options that cannot be."""
    results = Results(options.out)
    split = {name: [x for x in getattr(options, name).split(",") if x] for name in ("parts", "shapes", "dtypes")}
    if not all(n.isdigit() and int(n) > 0 for n in options.lanes.split(",")):
        raise InputError(f"--lanes is '{options.lanes}'; give numbers such as 1,8")
    if missing := [path for path in options.earlier if not path.is_file()]:
        raise InputError(f"{missing[0]}: no such file; --earlier takes results of this program")
    lanes, real = [int(n) for n in options.lanes.split(",")], options.base is not None
    cells = all_cells(split["parts"], split["shapes"], split["dtypes"], lanes, real=real)
    run_cells(cells, results, options)
    if options.write:
        earlier = [Results(path).cells for path in options.earlier]
        page(results.cells, earlier, " ".join(["python", "infer/card.py", *sys.argv[1:]]))
    return results.cells


if __name__ == "__main__":
    main()
