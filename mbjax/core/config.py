"""The shape of a base model: everything that the forward pass must know besides the weights."""

import dataclasses
import math

DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the length a model was trained at.

    kind: `linear` divides every frequency by `factor`; `llama3` divides only the long wavelengths and blends in
    between (Llama 3.1, section "rope_type": "llama3" of its config.json); `factors` divides frequency i by
    `factors[i]`, the form in which GGUF files carry the same (`rope_freqs.weight`).
    """

    kind: str
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192
    factors: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer with grouped-query attention, rotary positions, RMS norms and a gated MLP.

    Letters as everywhere: L n_layers, D d_model, H n_heads, K n_kv_heads, E head_dim, F d_ff, V vocab_size.
    `tap` cuts the layers: `[0, tap)` understand, `[tap, L)` fuse.
    """

    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    vocab_size: int
    max_context: int
    rope_theta: float = 10_000.0
    rms_eps: float = 1e-5
    tied_head: bool = True
    qkv_bias: bool = False
    qk_norm: bool = False
    rope_scaling: RopeScaling | None = None
    tap: int = -1

    def __post_init__(self) -> None:
        if self.tap < 0:
            object.__setattr__(self, "tap", self.n_layers // 2)
        sizes = ("n_layers", "d_model", "n_heads", "n_kv_heads", "head_dim", "d_ff", "vocab_size", "max_context")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; rotary positions need pairs")
        if self.tap > self.n_layers:
            raise ValueError(f"tap {self.tap} lies beyond the {self.n_layers} layers")

    @property
    def q_per_kv(self) -> int:
        """G, the query heads that share one key/value head."""
        return self.n_heads // self.n_kv_heads

    def inv_freq(self) -> tuple[float, ...]:
        """Rotary frequencies in radians per position, `head_dim / 2` of them, scaling applied."""
        half = self.head_dim // 2
        plain = [self.rope_theta ** (-i / half) for i in range(half)]
        scaling = self.rope_scaling
        if scaling is None:
            return tuple(plain)
        if scaling.kind == "linear":
            return tuple(f / scaling.factor for f in plain)
        if scaling.kind == "factors":
            return tuple(f / by for f, by in zip(plain, scaling.factors, strict=True))
        if scaling.kind == "llama3":
            return tuple(_llama3_frequency(f, scaling) for f in plain)
        raise ValueError(f"unknown rope scaling '{scaling.kind}'")


def _llama3_frequency(freq: float, scaling: RopeScaling) -> float:
    turns = scaling.original_max_position * freq / (2 * math.pi)  # full turns within the trained length
    if turns < scaling.low_freq_factor:
        return freq / scaling.factor
    if turns > scaling.high_freq_factor:
        return freq
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    return (1 - blend) * freq / scaling.factor + blend * freq
