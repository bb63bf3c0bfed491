"""Shares, tables and curves of what `card.py` measured, from its result file alone."""

from typing import Any

from card_plot import plot
from report import DOCS, table

from mbjax.io.files import atomic_write

SHEET = {"H100": 989e12, "H200": 989e12}  # dense bfloat16 FLOP/s by the maker's data sheet


def derived(cells: dict[str, Any]) -> dict[str, Any]:
    """By cell, what follows from its figures and the measured rates."""
    rates = best_rates(cells)
    found: dict[str, Any] = {"rates": rates}
    for name, cell in cells.items():
        part = name.split(":")[0]
        if part == "decode":
            found[name] = _decode(name, cell, rates)
        elif part.startswith("train"):
            found[name] = _shares(cell, rates)
        elif part == "swap":
            found[name] = _swap(cell)
    return found


def best_rates(cells: dict[str, Any]) -> dict[str, float | None]:
    """Bytes per second of memory (the better of reading and copying), operations per second, and transfers."""
    found = next((cell for name, cell in cells.items() if name.split(":")[0] == "rates"), {})
    memory = found.get("memory", {})
    flops = [one["flops"] for one in found.get("matrix", {}).values() if "flops" in one]
    return {"memory": max((memory[k] for k in ("read", "copy") if k in memory), default=None),
            "matrix": max(flops, default=None)}  # fmt: skip


def _decode(name: str, cell: dict[str, Any], rates: dict[str, float | None]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    lanes = int(name.rsplit("x", 1)[1])
    for n in range(3):
        one = cell.get(f"decode_{n}") or {}
        if "step_s" in one:
            needed = cell["read_bytes"] + n * cell["pack_bytes"] + lanes * one["valid"] * cell["position_bytes"]
            found[f"decode_{n}"] = {"bytes": needed, "share": _over(needed / one["step_s"], rates["memory"])}
    for key, one in cell.items():
        if key.startswith("prefill_") and "flops" in one:
            found[key] = {"share": _over(one["flops"] / one["seconds"], rates["matrix"])}
    memory, resident = cell.get("memory") or {}, cell.get("resident") or {}
    found["account"] = account(cell)
    if memory.get("peak_bytes_in_use") and found["account"]:
        found["peak_over_account"] = memory["peak_bytes_in_use"] / found["account"]
    if resident.get("allocator"):
        found["resident_over_account"] = resident["allocator"] / resident["account"]
    return found


def account(cell: dict[str, Any]) -> int | None:
    """Bytes that the account foresees: as compiled, for a program that comes from a cache may say nothing of itself."""
    found = [(cell.get(key) or {}).get("account") for key in ("memory", "compiled")]
    return max((value for value in found if value is not None), default=None)


def _shares(cell: dict[str, Any], rates: dict[str, float | None]) -> dict[str, Any]:
    """Model FLOP utilisation: of the data sheet's rate, as is usual, and of the measured one."""
    if "step_s" not in cell or "flops" not in cell:
        return {}
    done = cell["flops"] / cell["step_s"]
    sheet = next((rate for name, rate in SHEET.items() if name in str(cell.get("device"))), None)
    return {"flops_per_s": done, "mfu": _over(done, sheet), "of_measured": _over(done, rates["matrix"])}


def _swap(cell: dict[str, Any]) -> dict[str, Any]:
    """Shares of the rates of page-locked memory, measured in the same process: of one copy, and of many queued."""
    rates = cell.get("rate") or {}
    ways = {
        way: cell["pack_bytes"] / one["median_s"] for way, one in (cell.get("swaps") or {}).items() if "median_s" in one
    }
    return {
        way: {kind: _over(rate, rates.get(kind)) for kind in ("pinned", "pinned_queued")} for way, rate in ways.items()
    }


def _over(value: float, whole: float | None) -> float | None:
    return value / whole if whole else None


def summary(cells: dict[str, Any]) -> str:
    """All tables."""
    own = derived(cells)
    sections = [_about(cells, own), _memory_table(cells), _decode_table(cells, own), _prefill_table(cells, own),
                _beside(cells), _swap_table(cells, own), _train_table(cells, own), _logits_table(cells), _trace_table(cells),
                _kernels_table(cells), _failed(cells)]  # fmt: skip
    return "\n".join(section for section in sections if section)


def page(cells: dict[str, Any], earlier: list[dict[str, Any]], command: str) -> None:
    """Writes docs/card.md and docs/card.png. What each of `earlier` has beyond those before it gets a part of its own,
    with the rates that were measured along with it."""
    plot(cells, derived(cells), DOCS / "card.png")
    text = f"# A 4 GB card, measured\n\n`{command}`\n\n{summary(cells)}\n![Decoding and memory](card.png)\n"
    shown = set(cells) - {"rates"}
    for part in earlier:
        rest = {name: cell for name, cell in part.items() if name not in shown}
        asked = {f"torch:{name.split(':')[1]}" for name, _ in _of(rest, "decode")}
        rest |= {name: part[name] for name in asked if name in part}  # the same run's, beside what it was measured with
        text += f"\n# Measured on another machine\n\n{summary(rest)}"
        shown |= set(rest) - {"rates"}
    with atomic_write(DOCS / "card.md") as file:
        file.write(text.encode())


def _about(cells: dict[str, Any], own: dict[str, Any]) -> str:
    some = next((cell for cell in cells.values() if "device" in cell), {})
    rates = next((cell for name, cell in cells.items() if name.split(":")[0] == "rates"), {})
    rows = [("device", some.get("device")), ("JAX", some.get("jax"))]
    limits = {cell["bytes_limit"] for name, cell in cells.items() if name.startswith("decode") if "bytes_limit" in cell}
    rows += [("memory limit, bytes", ", ".join(map(str, sorted(limits, key=str))))]
    rows += [(f"memory, {kind}", _giga(value)) for kind, value in rates.get("memory", {}).items() if kind != "bytes"]
    rows += [(f"matrices of {n}", _tera(one.get("flops"))) for n, one in rates.get("matrix", {}).items()]
    for size, one in rates.get("to_device", {}).items():
        rows += [(f"to the device, {int(size) / 1e6:g} MB, {way}", _giga(value)) for way, value in one.items()]
    return table(("what", "measured"), rows)


def _memory_table(cells: dict[str, Any]) -> str:
    rows = []
    for name, cell in _of(cells, "decode"):
        memory, resident = cell.get("memory") or {}, cell.get("resident") or {}
        foreseen, peak = account(cell), memory.get("peak_bytes_in_use")
        rows.append((name[7:], _mega(resident.get("account")), _mega(resident.get("allocator")), _mega(foreseen),
                     _mega(peak), _percent(peak and foreseen and peak / foreseen)))  # fmt: skip
    head = ("base, weights, lanes", "resident, account", "allocator", "in use, account", "allocator's peak", "share")
    return _section("Memory, MB of 10^6 bytes", head, rows)


def _decode_table(cells: dict[str, Any], own: dict[str, Any]) -> str:
    rows = []
    for name, cell in _of(cells, "decode"):
        for n in range(3):
            one, share = cell.get(f"decode_{n}") or {}, own[name].get(f"decode_{n}") or {}
            theirs = _torch(cells, name, f"decode_x{name.rsplit('x', 1)[1]}") if n == 0 else None
            if "step_s" in one:
                alone = f"{1e3 * one['single_step_s']:.3f}" if "single_step_s" in one else "-"
                rows.append((name[7:], n, f"{1e3 * one['step_s']:.3f}", alone, f"{1e3 * one['dispatch_s']:.3f}",
                             f"{one['tok_s']:.0f}", _percent(share.get("share")), _whole(theirs)))  # fmt: skip
    head = (
        "base, weights, lanes",
        "packs",
        "step ms",
        "alone",
        "ms to call one",
        "tokens/s",
        "of memory rate",
        "PyTorch",
    )
    return _section(
        "Decoding (steps as the engine takes them, eight in one program; alone: each a program)", head, rows
    )


def _prefill_table(cells: dict[str, Any], own: dict[str, Any]) -> str:
    rows = []
    for name, cell in _of(cells, "decode"):
        for key in (key for key in cell if key.startswith("prefill_")):
            one = cell[key]
            if "seconds" in one:
                rows.append((name[7:], one["tokens"], f"{1e3 * one['seconds']:.2f}", f"{one['tok_s']:.0f}",
                             _percent(own[name][key]["share"]), _whole(_torch(cells, name, key))))  # fmt: skip
    head = ("base, weights, lanes", "tokens", "ms", "tokens/s", "of matrix rate", "PyTorch")
    return _section("Prefill", head, rows)


def _torch(cells: dict[str, Any], name: str, key: str) -> float | None:
    """PyTorch's tokens/s for the same shape; it is measured in bfloat16."""
    _, shape, dtype, _ = name.split(":")
    cell = cells.get(f"torch:{shape}", {})
    found = cell.get(key) or cell.get("compiled", {}).get(key) or {}
    return found.get("tok_s") if dtype == "bfloat16" else None


def _beside(cells: dict[str, Any]) -> str:
    """What must be said of PyTorch's figures where its own turn came to no end."""
    early = [
        n for n, cell in _of(cells, "torch") if "decode_x1" not in cell and cell.get("compiled", {}).get("decode_x1")
    ]
    said = "PyTorch's figures are those of its first run, while programs of ours were compiled beside it"
    return f"{said}: its turn alone on the card did not end in time.\n" if early else ""


def _swap_table(cells: dict[str, Any], own: dict[str, Any]) -> str:
    rows = []
    for name, cell in _of(cells, "swap"):
        for way, one in (cell.get("swaps") or {}).items():
            if "median_s" in one:
                shares = (_percent(share) for share in own[name][way].values())
                rows.append((name[5:], way, f"{1e3 * one['median_s']:.3f}", *shares,
                             one["compilations"], f"{1e3 * one['gap_still_s']:.2f}", f"{1e3 * one['gap_s']:.2f}",
                             _mega(cell.get("peak_bytes_in_use"))))  # fmt: skip
    head = ("base", "from", "swap ms", "of pinned rate", "of it queued", "compilations", "worst gap ms, still", "swapping",
            "peak MB")  # fmt: skip
    return _section("Swapping a pack in (pinned: one copy that is waited for; queued: many)", head, rows)


def _train_table(cells: dict[str, Any], own: dict[str, Any]) -> str:
    rows = [(name, cell["rows"], cell["row"], f"{1e3 * cell['step_s']:.1f}", f"{cell['tok_s']:.0f}",
             _percent(own[name].get("mfu")), _percent(own[name].get("of_measured")))
            for part in ("train_pack", "train_base") for name, cell in _of(cells, part) if "step_s" in cell]  # fmt: skip
    head = ("what", "rows", "tokens a row", "step ms", "tokens/s", "MFU, data sheet", "of matrix rate")
    return _section("Training (attention counted over all pairs of a row, as is usual)", head, rows)


def _logits_table(cells: dict[str, Any]) -> str:
    rows = []
    for name, cell in _of(cells, "logits"):
        for form, one in (cell.get("errors") or {}).items():
            if "max" in one:
                rows.append((name[7:], form, f"{one['max']:.2e}", f"{one['mean']:.2e}", _percent(one["top1"])))
    head = ("base", "accelerator against CPU", "largest error", "mean error", "same first token")
    return _section("Logits, errors relative to the largest", head, rows)


def _trace_table(cells: dict[str, Any]) -> str:
    rows = []
    for name, cell in _of(cells, "decode"):
        for n, one in (cell.get("trace") or {}).items():
            if isinstance(one, dict) and "busy_us" in one:
                rows.append((name[7:], n, f"{one['events']:.0f}", f"{one['busy_us']:.0f}", f"{one['span_us']:.0f}"))
    head = ("base, weights, lanes", "packs", "kernels a step", "busy us", "from first to last us")
    return _section("What the device does in a step (profile)", head, rows)


def _kernels_table(cells: dict[str, Any]) -> str:
    """Where a step without packs goes, for one lane: the kernels of the longest time. XLA numbers those of one name."""
    rows = []
    for name, cell in _of(cells, "decode"):
        trace = (cell.get("trace") or {}).get("0") or {}
        if name.endswith(":x1"):
            for one in trace.get("kernels", [])[:6]:
                rows.append((name[7:], one["name"], f"{one['calls']:g}", f"{one['us']:.0f}"))
    return _section(
        "The longest kernels of a step without packs (linears: q, k and v; 1: o; 2: gate and up; 3: down; 4: head)",
        ("base, weights, lanes", "kernel", "calls", "us"),
        rows,
    )


def _failed(cells: dict[str, Any]) -> str:
    rows = [(name, cell["error"]) for name, cell in cells.items() if "error" in cell]
    rows += [(f"{name}, {at}", why) for name, cell in cells.items() for at, why in _inner(cell)]
    return _section("Not measured", ("what", "why"), rows)


def _inner(found: dict[str, Any], at: str = "") -> list[tuple[str, str]]:
    """The errors of a cell's parts."""
    parts = [(f"{at} {key}".strip(), one) for key, one in found.items() if isinstance(one, dict)]
    own = [(where, one["error"]) for where, one in parts if "error" in one]
    return own + [error for where, one in parts for error in _inner(one, where)]


def _section(title: str, head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    return f"## {title}\n\n{table(head, rows)}" if rows else ""


def _of(cells: dict[str, Any], part: str) -> list[tuple[str, Any]]:
    return [(name, cell) for name, cell in cells.items() if name.split(":")[0] == part]


def _mega(value: float | None) -> str:
    return "-" if value is None else f"{value / 1e6:.0f}"


def _giga(value: float | str | None) -> str:
    return f"{value / 1e9:.1f} GB/s" if isinstance(value, float) else str(value)


def _tera(value: float | None) -> str:
    return "-" if value is None else f"{value / 1e12:.1f} TFLOP/s"


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}%"
