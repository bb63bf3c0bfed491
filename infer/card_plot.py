"""The curves of docs/card.png."""

from pathlib import Path
from typing import Any


def plot(cells: dict[str, Any], derived: dict[str, Any], path: Path) -> None:
    """Shares of the memory's rate by number of packs, and bytes by the account beside the allocator's peak."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 5))
    names = [name for name in cells if name.startswith("decode:")]
    for name in names:
        points = [(n, (derived[name].get(f"decode_{n}") or {}).get("share")) for n in range(3)]
        known = [(n, 100 * share) for n, share in points if share is not None]
        if known:
            left.plot(*zip(*known, strict=True), marker="o", label=name[7:])
    left.axhline(60, color="grey", linestyle=":")
    left.set(xlabel="packs", ylabel="% of the memory's rate", title="Decoding", xticks=[0, 1, 2], ylim=(0, 100))
    if left.lines[1:]:
        left.legend(fontsize=7)
    memory = [(name[7:], cells[name].get("memory") or {}) for name in names]
    for offset, key, label in ((-0.2, "account", "account"), (0.2, "peak_bytes_in_use", "allocator's peak")):
        right.barh([i + offset for i in range(len(memory))], [(m.get(key) or 0) / 1e9 for _, m in memory], 0.4,
                   label=label)  # fmt: skip
    right.axvline(4 * 2**30 / 1e9, color="grey", linestyle=":")
    right.set(xlabel="GB", title="Memory with 2 packs and all contexts full", yticks=range(len(memory)))
    right.set_yticklabels([name for name, _ in memory], fontsize=7)
    right.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
