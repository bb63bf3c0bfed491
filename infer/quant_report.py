"""The page and the plot of quant_error.py, and its targets."""

from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent.parent / "docs" / "quantisation.md"
OURS, THEIRS = "int4 of 32", "llama.cpp Q4_1"
_MOST_KL = {  # (part, key) -> nats
    ("base", "int8 of 32"): 0.003,
    ("base", "int8 of 32, int8 activations of 32"): 0.006,
    ("base", "stored blocks, int8 activations of 32"): 0.006,
}
_TITLES = {
    "base": "The default base as it is stored (4-bit matrices, 8-bit embedding)",
    "dithered": "The same base shaken off its grid by half a step",
}


def checks(document: dict[str, Any]) -> list[tuple[str, float, str, bool]]:
    """(what, value, bound in words, met) of every target that was measured."""
    errors = {(line["part"], line["key"]): line["errors"]["all"] for line in document["lines"]}
    kl = {key: error["kl"] for key, error in errors.items()}
    rows = [
        (f"KL of {key[1]}", kl[key], f"at most {most:g}", kl[key] <= most)
        for key, most in _MOST_KL.items()
        if key in kl
    ]
    ours, theirs = errors.get(("dithered", OURS)), errors.get(("dithered", THEIRS))
    if ours is not None and theirs is not None:
        for what, key in (("KL", "kl"), ("bits per byte", "bits_per_byte")):
            share = ours[key] / theirs[key]
            rows.append((f"{what} of {OURS} over {THEIRS}", share, "at most 1", share <= 1))
    return rows


def page(document: dict[str, Any]) -> str:
    """The document as Markdown."""
    lines = document["lines"]
    domains = [name for name in lines[0]["errors"] if name != "all"]
    n_tokens = lines[0]["errors"]["all"]["tokens"]
    text = [
        "# What quantising costs",
        "",
        f"{document['base']}: mean KL of the float32 logits to the quantised ones in nats, share of positions with the",
        f"same most probable token, and bits per byte, on {n_tokens:,} tokens of {', '.join(domains)}",
        f"(rows of {document['length']}). Where no activations are named they stay in float32. Bits are those of all",
        "weights with their scales, of llama.cpp's the whole file's.",
        "Made by `python infer/quant_error.py --write`.",
        "",
        "| target | value | bound | met |",
        "|---|---|---|---|",
        *(
            f"| {what} | {value:.4f} | {bound} | {'yes' if met else 'no'} |"
            for what, value, bound, met in checks(document)
        ),
    ]
    for part in dict.fromkeys(line["part"] for line in lines):
        text += ["", f"## {_TITLES[part]}", "", *_table([line for line in lines if line["part"] == part], domains)]
    return "\n".join([*text, "", "![KL over bits per weight](quantisation.png)"]) + "\n"


def _table(lines: list[dict[str, Any]], domains: list[str]) -> list[str]:
    heads = ["scheme", "bits", "KL", *(f"KL, {name}" for name in domains), "same top", "bits per byte"]
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for line in lines:
        errors = line["errors"]
        cells = [line["key"], f"{line['bits']:.2f}", f"{errors['all']['kl']:.4f}"]
        cells += [f"{errors[name]['kl']:.4f}" for name in domains]
        cells += [f"{errors['all']['same_top']:.4f}", f"{errors['all']['bits_per_byte']:.4f}"]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def plot(document: dict[str, Any], path: Path) -> None:
    """KL over bits per weight, one mark per scheme."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    parts = [part for part in _TITLES if any(line["part"] == part for line in document["lines"])]
    figure, axes = pyplot.subplots(1, len(parts), figsize=(7 * len(parts), 5), squeeze=False)
    for axis, part in zip(axes[0], parts, strict=True):
        for line in document["lines"]:
            if line["part"] == part and line["key"] != "float32":
                point = line["bits"], max(line["errors"]["all"]["kl"], 1e-6)
                axis.plot(*point, "o")
                axis.annotate(line["key"], point, fontsize=7, xytext=(4, 2), textcoords="offset points")
        axis.set(xlabel="bits per weight", ylabel="mean KL to float32, nats", yscale="log", title=_TITLES[part])
        axis.margins(x=0.35)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
