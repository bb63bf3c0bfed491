"""What a training run is told: one TOML file, read strictly into frozen dataclasses."""

import dataclasses
import difflib
import tomllib
import types
import typing
from pathlib import Path
from typing import Any

from mbjax.core.lora import TARGETS
from mbjax.errors import InputError
from mbjax.io.pack_quant import SCHEMES

Rule = tuple[bool, str, str]  # whether it holds, the key it is about, what is allowed


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The examples: JSONL files, or HF-style data set directories, relative to the configuration's folder."""

    train: str
    valid: str
    test: str | None = None
    route: str | None = None  # further prompts for the route key, in words of their own; weigh as much as `train`
    route_against: tuple[str, ...] = ()  # files of prompts that look like the pack's own and are not
    row_length: int = 256  # tokens of a packed row; raised to the longest example where that is longer


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """The low-rank part. `layers` None means the fusion layers."""

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = TARGETS
    layers: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class ExpertConfig:
    """The expert part. `copy_from` starts its layers as copies of the base's from that layer on."""

    layers: int = 2
    d_model: int | None = None
    d_ff: int | None = None
    copy_from: int | None = None


@dataclasses.dataclass(frozen=True)
class OptimiserConfig:
    """AdamW (Loshchilov and Hutter 2019), or Muon for matrices with AdamW for the rest; warm-up, then cosine to 10%."""

    name: str = "adamw"
    learning_rate: float = 1e-3
    warmup: float = 0.05  # share of all steps
    weight_decay: float = 0.01
    clip_norm: float = 1.0


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How long, how wide, and how often to look and to save."""

    steps: int = 500
    rows: int = 8  # packed rows of one step
    seed: int = 0
    gates: tuple[float, float] = (0.4, 1.0)  # drawn per row, so that the pack bears being mixed
    validate_every: int = 100
    patience: int = 5  # validations without a better loss before stopping
    checkpoint_every: int = 100
    keep: int = 2
    choice_weight: float = 10.0  # of how many scored tokens the cross-entropy of a line's choices weighs
    average: float = 0.0  # above 0: what is validated and kept is the running mean of the steps' packs, of this decay


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Where data came from, for the manifest and the card."""

    name: str
    licence: str
    origin: str  # package and version, address, or how it was made


@dataclasses.dataclass(frozen=True)
class PackConfig:
    """One run of `mbjax pack train`."""

    id: str
    data: DataConfig
    name: str = ""
    version: str = "0.1.0"
    description: str = ""
    licence: str = "unknown"
    sources: tuple[SourceConfig, ...] = ()
    base: str = "smollm2-135m"
    dtype: str = "float32"
    quantise_aware: str | None = None  # int8 or int4: the loss is that of the pack exported so
    lora: LoraConfig | None = dataclasses.field(default_factory=LoraConfig)
    expert: ExpertConfig | None = None
    optimiser: OptimiserConfig = dataclasses.field(default_factory=OptimiserConfig)
    loop: LoopConfig = dataclasses.field(default_factory=LoopConfig)


def read_config(path: Path) -> PackConfig:
    """Reads and checks a TOML file. Raises InputError that names the file and the key."""
    document = read_toml(path, "`mbjax pack init` writes one to start from")
    lora = document.get("lora")
    if lora is False:
        document["lora"] = None
    config = build(PackConfig, document, str(path))
    check_rules(_rules(config), str(path))
    return config


def read_toml(path: Path, hint: str) -> dict[str, Any]:
    """The tables of a TOML file. Raises InputError that names the file; `hint` says where one comes from."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {hint}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: not a readable TOML file: {error}") from None


def to_json(config: Any) -> dict[str, Any]:
    """A configuration (a dataclass) as plain values."""
    return dataclasses.asdict(config)


def build(kind: type, document: Any, where: str) -> Any:
    """A configuration dataclass from tables. Raises InputError for an unknown, missing or wrongly typed key."""
    if not isinstance(document, dict):
        raise InputError(f"{where}: expected a table, found {document!r}")
    hints = typing.get_type_hints(kind)
    for key in document:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, 1)
            raise InputError(f"{where}: unknown key '{key}'" + (f"; did you mean '{near[0]}'?" if near else ""))
    values = {key: _value(hints[key], value, f"{where}: {key}") for key, value in document.items()}
    missing = [
        field.name
        for field in dataclasses.fields(kind)
        if field.name not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise InputError(f"{where}: missing key '{missing[0]}'")
    return kind(**values)


def _value(hint: Any, value: Any, where: str) -> Any:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    hint = next(option for option in options if option is not type(None))
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, where)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise InputError(f"{where}: expected a list, found {value!r}")
        kind = typing.get_args(hint)[0]
        return tuple(_value(kind, item, where) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise InputError(f"{where}: expected {hint.__name__}, found {value!r}")
    return value


def _rules(config: PackConfig) -> list[Rule]:
    loop, optimiser, lora, expert = config.loop, config.optimiser, config.lora, config.expert
    return [
        (config.id.isidentifier() or config.id.replace("-", "_").isidentifier(), "id", "letters, digits, - and _"),
        (lora is not None or expert is not None, "lora", "set, or an expert table given: the pack would be empty"),
        (config.quantise_aware in (None, *SCHEMES), "quantise_aware", f"one of {', '.join(SCHEMES)}"),
        (lora is None or (lora.rank >= 1 and set(lora.targets) <= set(TARGETS)), "lora", f"rank >= 1, of {TARGETS}"),
        (expert is None or expert.layers >= 1, "expert.layers", "at least 1"),
        (optimiser.name in ("adamw", "muon"), "optimiser.name", "adamw or muon"),
        (optimiser.learning_rate > 0, "optimiser.learning_rate", "above 0"),
        (0 <= optimiser.warmup < 1, "optimiser.warmup", "a share of the steps, below 1"),
        (min(loop.steps, loop.rows, loop.validate_every, loop.checkpoint_every, loop.keep) >= 1, "loop", "all >= 1"),
        (loop.choice_weight >= 0, "loop.choice_weight", "0 or more"),
        (0 <= loop.average < 1, "loop.average", "0 or more, below 1"),
        (len(loop.gates) == 2 and 0 < loop.gates[0] <= loop.gates[1], "loop.gates", "two numbers, low then high"),
        (config.data.row_length >= 16, "data.row_length", "at least 16"),
    ]


def check_rules(rules: list[Rule], where: str) -> None:
    """Raises InputError that names the first key whose rule does not hold."""
    for holds, key, allowed in rules:
        if not holds:
            raise InputError(f"{where}: {key} must be {allowed}")
