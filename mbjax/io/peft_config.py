"""`adapter_config.json` of a PEFT LoRA adapter: what is applied as PEFT applies it, everything else refused by name."""

import dataclasses
import re
from typing import Any

from mbjax.io.pack_manifest import MAX_RANK
from mbjax.io.strict_json import Fields, parse_object, refuse, shown

_USED = (
    "peft_type", "r", "lora_alpha", "use_rslora", "target_modules", "exclude_modules", "layers_to_transform",
    "layers_pattern", "rank_pattern", "alpha_pattern", "base_model_name_or_path", "bias", "init_lora_weights",
)  # fmt: skip
_WITHOUT_EFFECT = (  # on the finished adapter's logits
    "auto_mapping", "ensure_weight_tying", "eva_config", "inference_mode", "lora_dropout", "megatron_core",
    "peft_version", "qalora_group_size", "revision", "task_type",
)  # fmt: skip
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")  # the others change the base's own weights
_WHY = {
    "use_dora": "DoRA scales the base's own weights by magnitude",
    "modules_to_save": "whole modules of the base are replaced",
    "lora_bias": "biases are trained too",
    "trainable_token_indices": "rows of the embedding are trained too",
    "layer_replication": "layers of the base are repeated",
}
_MAX_PATTERNS = 10_000


@dataclasses.dataclass(frozen=True)
class PeftConfig:
    """The settings that decide which deltas there are and how each is scaled. Patterns are module names or their
    ends, as PEFT matches them, the first that fits counting."""

    rank: int
    alpha: float
    rslora: bool
    targets: tuple[str, ...] | None  # None: chosen by an expression; the file's tensors then say which
    excluded: tuple[str, ...]
    layers: tuple[int, ...] | None
    ranks: dict[str, int]
    alphas: dict[str, float]
    base_model: str | None

    def touches(self, module: str, layer: int) -> bool:
        """Whether `target_modules` names this module of this layer."""
        assert self.targets is not None
        if any(_ends_with(module, name) for name in self.excluded):
            return False
        if module in self.targets:
            return True  # a full name is not cut down by layers_to_transform
        here = self.layers is None or layer in self.layers
        return here and any(_ends_with(module, name) for name in self.targets)

    def rank_of(self, module: str) -> int:
        return _by_pattern(self.ranks, module, self.rank)

    def scale_of(self, module: str) -> float:
        """alpha / rank, or alpha / sqrt(rank) in rank-stabilised form (Kalajdzievski 2023)."""
        alpha, rank = _by_pattern(self.alphas, module, self.alpha), self.rank_of(module)
        return alpha / rank**0.5 if self.rslora else alpha / rank


def read_peft_config(data: bytes, where: str) -> PeftConfig:
    """Raises InputError naming the first setting that is missing, malformed, or not applied by mbjax."""
    document = parse_object(data, where)
    _refuse_what_is_not_applied(document, where)
    fields = Fields({key: value for key, value in document.items() if key in _USED}, where)
    targets = document.get("target_modules")
    return PeftConfig(
        rank=fields.integer("r", 1, MAX_RANK),
        alpha=fields.number("lora_alpha", -1e6, 1e6),
        rslora=fields.flag("use_rslora") if fields.has("use_rslora") else False,
        targets=fields.texts("target_modules", _MAX_PATTERNS) if isinstance(targets, list) else None,
        excluded=fields.texts("exclude_modules", _MAX_PATTERNS) if fields.has("exclude_modules") else (),
        layers=_layers(fields, document.get("layers_to_transform")),
        ranks=_patterns(fields, "rank_pattern", lambda table, key: table.integer(key, 1, MAX_RANK)),
        alphas=_patterns(fields, "alpha_pattern", lambda table, key: table.number(key, -1e6, 1e6)),
        base_model=fields.text("base_model_name_or_path", 500) if document.get("base_model_name_or_path") else None,
    )


def _refuse_what_is_not_applied(document: dict[str, Any], where: str) -> None:
    if document.get("peft_type") != "LORA":
        refuse(where, f"peft_type is {shown(str(document.get('peft_type')))}; only LORA adapters can be imported")
    for key, value in document.items():
        if value and key not in _USED and key not in _WITHOUT_EFFECT:
            why = f" ({_WHY[key]})" if key in _WHY else ""
            refuse(where, f"the adapter uses {shown(key)}{why}, which a pack cannot hold")
    if document.get("bias", "none") != "none":
        refuse(where, f"bias is {shown(str(document['bias']))}: the adapter trains biases, which a pack cannot hold")
    start = document.get("init_lora_weights", True)
    if not isinstance(start, (bool, str, type(None))) or start not in _PLAIN_STARTS:
        refuse(
            where, f"init_lora_weights is {shown(str(start))}, which changes the base; save it converted to plain LoRA"
        )
    if isinstance(document.get("exclude_modules"), str) and document["exclude_modules"]:
        refuse(where, "exclude_modules is an expression; list the modules' names")
    if document.get("layers_pattern") not in (None, [], "", "layers", ["layers"]):
        refuse(where, "layers_pattern names other layers than `layers`")


def _layers(fields: Fields, value: Any) -> tuple[int, ...] | None:
    if value is None or value == []:
        return None
    if isinstance(value, list):
        return fields.integers("layers_to_transform", 10_000, 0, 10_000)
    return (fields.integer("layers_to_transform", 0, 10_000),)


def _patterns(fields: Fields, name: str, take: Any) -> dict[str, Any]:
    if not fields.has(name):
        return {}
    table = fields.object(name)
    for key in table.keys(_MAX_PATTERNS):
        if not re.fullmatch(r"\^?[A-Za-z0-9_.]{1,200}", key.replace("\\.", ".")):
            table.refuse(shown(key), "is an expression; write modules' names or their ends")
    return {key.replace("\\.", "."): take(table, key) for key in table.keys(_MAX_PATTERNS)}


def _by_pattern(table: dict[str, Any], module: str, usual: Any) -> Any:
    for pattern, value in table.items():
        whole = pattern.startswith("^")
        if module == pattern.removeprefix("^") or (not whole and _ends_with(module, pattern)):
            return value
    return usual


def _ends_with(module: str, name: str) -> bool:
    return module == name or module.endswith(f".{name}")
