"""What a training run leaves behind to look at: loss curve, report, and the pack's card."""

import dataclasses
from pathlib import Path

from mbjax.io.files import atomic_write
from mbjax.training.config import PackConfig
from mbjax.training.pack_loop import Event

CURVE, REPORT = "loss.png", "report.md"


@dataclasses.dataclass(frozen=True)
class Summary:
    """A finished run. `events` are those of all its calls."""

    config: PackConfig
    base: str
    n_examples: int
    n_tokens: int
    n_rows: int
    events: list[Event]

    @property
    def best_valid_loss(self) -> float | None:
        return min((e.valid_loss for e in self.events if e.valid_loss is not None), default=None)

    @property
    def steps(self) -> int:
        return max((e.step for e in self.events), default=0)

    @property
    def tokens_per_s(self) -> float | None:
        """The median over the steps."""
        rates = sorted(e.tokens_per_s for e in self.events if e.tokens_per_s is not None)
        return rates[len(rates) // 2] if rates else None


def write_report(summary: Summary, directory: Path) -> str:
    """Writes report and loss curve into `directory`; returns the pack card (Markdown)."""
    drawn = draw_losses(summary.events, directory / CURVE)
    lines = [f"# Training of {summary.config.id}", "", _table(summary), ""]
    lines += [f"![loss]({CURVE})" if drawn else "The loss curve needs matplotlib: `pip install 'mbjax[plot]'`.", ""]
    with atomic_write(directory / REPORT) as file:
        file.write("\n".join(lines).encode())
    return card(summary)


def card(summary: Summary) -> str:
    """The pack card: what it is, what it was made from, and how."""
    config = summary.config
    sources = [f"- {source.name}: {source.licence}" for source in config.sources] or ["- not stated"]
    parts = [
        f"# {config.name or config.id}",
        config.description or "A pack for mbjax.",
        "## How it was made",
        _table(summary),
        "## Data",
        "\n".join(sources),
        f"Licence: {config.licence}.",
    ]
    return "\n\n".join(parts) + "\n"


def draw_losses(events: list[Event], path: Path) -> bool:
    """The loss curve as PNG; False where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    steps = [(e.step, e.loss) for e in events if e.loss is not None]
    valid = [(e.step, e.valid_loss) for e in events if e.valid_loss is not None]
    axes.plot(*zip(*steps, strict=True), linewidth=0.8, alpha=0.6, label="training") if steps else None
    axes.plot(*zip(*valid, strict=True), marker="o", label="validation") if valid else None
    axes.set(xlabel="step", ylabel="nats per scored token", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=120)
    return True


def _table(summary: Summary) -> str:
    config, best, rate = summary.config, summary.best_valid_loss, summary.tokens_per_s
    forms = []
    if config.lora is not None:
        forms.append(f"low-rank {config.lora.rank} on {', '.join(config.lora.targets)}")
    if config.expert is not None:
        forms.append(f"expert of {config.expert.layers} layers")
    rows = {
        "base": summary.base,
        "form": "; ".join(forms),
        "examples": f"{summary.n_examples:,}",
        "tokens in rows": f"{summary.n_tokens:,}",
        "steps": f"{summary.steps:,} of {config.loop.rows} rows",
        "optimiser": f"{config.optimiser.name}, learning rate {config.optimiser.learning_rate:g}",
        "best validation loss": "-" if best is None else f"{best:.4f} nats per scored token",
        "speed": "-" if rate is None else f"{rate:,.0f} tokens/s",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])
