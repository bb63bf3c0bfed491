"""Bases in a GGUF file: configuration, metadata, and weights dequantised to float32 in Hugging Face's layout."""

import dataclasses
import math
from pathlib import Path
from typing import Any, NoReturn

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from mbjax.core.config import ModelConfig, RopeScaling
from mbjax.core.gguf_blocks import SCHEMES, from_blocks
from mbjax.core.quant import QTensor, Scheme, take_rows
from mbjax.errors import InputError
from mbjax.io.gguf_header import GgufHeader, GgufTensor, read_gguf_header
from mbjax.io.names import gguf_to_hf
from mbjax.io.strict_json import shown

ARCHITECTURES = ("llama", "qwen2", "qwen3")
FACTORS = "rope_freqs.weight"
_PLAIN = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16)}


@dataclasses.dataclass(frozen=True)
class GgufBase:
    """A base in a GGUF file. `names` maps HF names to those in the file; `shapes` are by HF name."""

    path: Path
    config: ModelConfig
    metadata: dict[str, Any]
    header: GgufHeader
    names: dict[str, str]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: self.header.tensors[stored].shape for name, stored in self.names.items()}

    @property
    def dtype(self) -> str:
        """What plain weights are best loaded as: bfloat16 where every matrix is stored in 16 bits, else float32."""
        matrices = {tensor.type for tensor in self.header.tensors.values() if len(tensor.shape) > 1}
        return "bfloat16" if matrices and matrices <= {"F16", "BF16"} else "float32"

    def read(self, name: str) -> np.ndarray:
        """One tensor by HF name, float32, rotary rows of q and k in HF order (halves, not interleaved pairs)."""
        array = _dequantised(self.header, self.header.tensors[self.names[name]])
        heads = self._interleaved_heads(name)
        return _halves_from_pairs(array, heads) if heads else array

    @property
    def blocks(self) -> dict[str, Scheme]:
        """The matrices that `read_blocks` can carry over, by HF name, with the scheme that their blocks are of."""
        stored = {name: self.header.tensors[own] for name, own in self.names.items()}
        return {
            name: SCHEMES[tensor.type]
            for name, tensor in stored.items()
            if tensor.type in SCHEMES and len(tensor.shape) == 2
        }

    def read_blocks(self, name: str) -> QTensor:
        """One of `blocks` as it is stored, plain, its rotary rows in the order of `read`."""
        tensor = self.header.tensors[self.names[name]]
        out, width = tensor.shape
        q = from_blocks(tensor.type, _stored(self.header, tensor), (out, width))
        heads = self._interleaved_heads(name)
        return take_rows(q, jnp.asarray(_halves_from_pairs(np.arange(out)[:, None], heads)[:, 0])) if heads else q

    def _interleaved_heads(self, name: str) -> int:
        """How many heads a matrix has whose rows llama.cpp's converter interleaved; 0 for all others."""
        if self.metadata["general.architecture"] != "llama":
            return 0
        if name.endswith(".self_attn.q_proj.weight"):
            return self.config.n_heads
        return self.config.n_kv_heads if name.endswith(".self_attn.k_proj.weight") else 0


def read_gguf(path: Path) -> GgufBase:
    """Open the base in the GGUF file at `path`; weights are read by `GgufBase.read`, one at a time.

    Raises InputError where the file is missing or malformed, has an unknown quantisation type, or needs something
    that is not implemented here (another architecture, experts, a rope type, a split file); such a thing is named.
    """
    header = read_gguf_header(path)
    architecture = header.metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        _refuse(path, f"architecture {shown(str(architecture))}; known: {', '.join(ARCHITECTURES)}")
    keys = _Keys(header.metadata, architecture, path)
    if keys.metadata.get("split.count", 0) not in (0, 1):
        _refuse(path, "one part of a split file; join the parts with llama-gguf-split --merge")
    names = {gguf_to_hf(name): name for name in header.tensors if name != FACTORS}
    if len(names) + (FACTORS in header.tensors) != len(header.tensors):
        raise InputError(f"{path}: two tensors have the same meaning; fetch it again")
    return GgufBase(path, _config(keys, header), header.metadata, header, names)


class _Keys:
    """Typed access to `<architecture>.<key>`; every method raises InputError naming the key."""

    def __init__(self, metadata: dict[str, Any], architecture: str, path: Path) -> None:
        self.metadata, self.architecture, self.path = metadata, architecture, path

    def get(self, key: str) -> Any:
        return self.metadata.get(f"{self.architecture}.{key}")

    def size(self, key: str, default: int | None = None) -> int:
        value = self.get(key)
        value = default if value is None else value
        if isinstance(value, list) and len(set(map(str, value))) == 1:
            value = value[0]  # one number per layer, all the same
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**31:
            self.refuse_value(key, value, "an integer of at least 1")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key)
        value = default if value is None else value
        if not isinstance(value, int | float) or isinstance(value, bool) or not 1e-30 < value < 1e30:
            self.refuse_value(key, value, "a positive number")
        return float(str(np.float32(value)))  # stored as float32: 1e-05 and not 9.999999747378752e-06

    def refuse_value(self, key: str, value: Any, wanted: str) -> NoReturn:
        name = f"{self.architecture}.{key}"
        raise InputError(f"{self.path}: {name} is {shown(str(value))}; it must be {wanted}")


def _config(keys: _Keys, header: GgufHeader) -> ModelConfig:
    n_heads, d_model = keys.size("attention.head_count"), keys.size("embedding_length")
    head_dim = keys.size("attention.key_length", max(d_model // n_heads, 1))
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise InputError(f"{keys.path}: holds no embedding token_embd.weight; is it a whole model?")
    max_context = keys.size("context_length")
    _check_settings(keys, head_dim, max_context)
    try:
        return ModelConfig(
            n_layers=keys.size("block_count"),
            d_model=d_model,
            n_heads=n_heads,
            n_kv_heads=keys.size("attention.head_count_kv", n_heads),
            head_dim=head_dim,
            d_ff=keys.size("feed_forward_length"),
            vocab_size=embedding.shape[0],
            max_context=max_context,
            rope_theta=keys.number("rope.freq_base", 10_000.0),
            rms_eps=keys.number("attention.layer_norm_rms_epsilon"),
            tied_head="output.weight" not in header.tensors,
            qkv_bias=keys.architecture == "qwen2",
            qk_norm=keys.architecture == "qwen3",
            rope_scaling=_rope_scaling(keys, header, head_dim),
        )
    except ValueError as error:
        raise InputError(f"{keys.path}: {error}") from None


def _check_settings(keys: _Keys, head_dim: int, max_context: int) -> None:
    for key in ("attention.value_length", "rope.dimension_count"):
        if keys.size(key, head_dim) != head_dim:
            _refuse(keys.path, f"{key} {keys.get(key)} with heads of {head_dim}")
    if keys.get("expert_count"):
        _refuse(keys.path, f"a mixture of {shown(str(keys.get('expert_count')))} experts")
    window = keys.get("attention.sliding_window")
    if window and (type(window) is not int or window < max_context):
        _refuse(keys.path, f"a sliding window of {shown(str(window))} within {max_context} positions")


def _rope_scaling(keys: _Keys, header: GgufHeader, head_dim: int) -> RopeScaling | None:
    kind = keys.get("rope.scaling.type") or "none"
    if kind == "linear":
        return RopeScaling("linear", factor=keys.number("rope.scaling.factor"))
    if kind != "none":
        _refuse(keys.path, f"rope type {shown(str(kind))}; known: none, linear and {FACTORS}")
    if keys.get("rope.scale_linear") not in (None, 1.0):  # older files
        return RopeScaling("linear", factor=keys.number("rope.scale_linear"))
    tensor = header.tensors.get(FACTORS)
    if tensor is None:
        return None
    factors = _dequantised(header, tensor).reshape(-1)
    if len(factors) != head_dim // 2 or not all(math.isfinite(f) and f > 0 for f in factors.tolist()):
        raise InputError(f"{keys.path}: {FACTORS} must be {head_dim // 2} positive numbers")
    return RopeScaling("factors", factors=tuple(float(str(factor)) for factor in factors))


def _dequantised(header: GgufHeader, tensor: GgufTensor) -> np.ndarray:
    if tensor.type in _PLAIN:
        dtype = _PLAIN[tensor.type]
        plain = np.frombuffer(header.data, dtype, math.prod(tensor.shape), tensor.begin).reshape(tensor.shape)
        return plain.astype(np.float32, copy=False)
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    rows = _stored(header, tensor).reshape(*tensor.shape[:-1], -1)
    with np.errstate(all="ignore"):  # a hostile scale may be infinite; whoever loads the base looks for that
        return dequantize(rows, GGMLQuantizationType[tensor.type])


def _stored(header: GgufHeader, tensor: GgufTensor) -> np.ndarray:
    """The bytes of a tensor as they stand in the file."""
    return np.frombuffer(header.data, np.uint8, tensor.n_bytes, tensor.begin)


def _halves_from_pairs(rows: np.ndarray, n_heads: int) -> np.ndarray:
    """Undo the permutation of llama.cpp's converter: per head, rows (pair, half) back to (half, pair)."""
    out, inner = rows.shape
    return rows.reshape(n_heads, out // n_heads // 2, 2, inner).swapaxes(1, 2).reshape(out, inner)


def _refuse(path: Path, what: str) -> NoReturn:
    raise InputError(f"{path}: not supported: {what}")
