"""The digest of a base: of its source weights and settings, whatever file format they came in."""

import hashlib
import json
from collections.abc import Iterable

import numpy as np

from mbjax.core.config import ModelConfig


def base_digest(config: ModelConfig, tensors: Iterable[tuple[str, np.ndarray]]) -> str:
    """The hex sha256 by which a pack is bound to its base; equal weights from any format give the same.

    tensors: HF names and float32 arrays in HF shape, sorted by name, a tied head left out. Each adds its name, NUL,
    its shape as "d0,d1", NUL and its little-endian bytes; one line of JSON with the head, rope and eps settings
    ends it. Raises ValueError where the order or a dtype is not as said.
    """
    digest = BaseDigest()
    for name, array in tensors:
        digest.add(name, array)
    return digest.finish(config)


class BaseDigest:
    """`base_digest` step by step, for a converter that sees each tensor once."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._last = ""

    def add(self, name: str, array: np.ndarray) -> None:
        """Add the next tensor by name, float32."""
        if name <= self._last:
            raise ValueError(f"{name} comes after {self._last}: tensors must be sorted by name")
        if array.dtype != np.float32:
            raise ValueError(f"{name} is {array.dtype}, not float32")
        self._last = name
        shape = ",".join(map(str, array.shape))
        self._hash.update(f"{name}\0{shape}\0".encode())
        self._hash.update(np.ascontiguousarray(array, "<f4").reshape(-1).view(np.uint8).data)

    def finish(self, config: ModelConfig) -> str:
        """Add the settings and return the hex digest."""
        settings = {
            "n_heads": config.n_heads,
            "n_kv_heads": config.n_kv_heads,
            "head_dim": config.head_dim,
            "rms_eps": f"{config.rms_eps:.6e}",
            "tied": config.tied_head,
            # frequencies, not parameters: GGUF stores their ratios, HF how to compute them
            "inv_freq": [f"{freq:.4e}" for freq in config.inv_freq()],
        }
        self._hash.update(json.dumps(settings, sort_keys=True, separators=(",", ":")).encode())
        return self._hash.hexdigest()
