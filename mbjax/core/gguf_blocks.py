"""GGUF's own 8- and 4-bit blocks as quantised weights, bit for bit: nothing is quantised a second time.

Format: ggml's block_q8_0 (float16 d, 32 int8), block_q4_0 (float16 d, 16 bytes; the zero at 8) and block_q4_1
(float16 d and m, 16 bytes). Byte j of a 4-bit block holds inputs j (low half) and j + 16, the order of `QTensor` too.
"""

import jax.numpy as jnp
import numpy as np

from mbjax.core.quant import QTensor, Scheme

_BLOCK = 32
_BYTES = {"Q8_0": 34, "Q4_0": 18, "Q4_1": 20}
SCHEMES = {"Q8_0": Scheme(8), "Q4_0": Scheme(4), "Q4_1": Scheme(4, asymmetric=True)}


def from_blocks(kind: str, data: np.ndarray, shape: tuple[int, int]) -> QTensor:
    """data uint8, the tensor's bytes as they stand in the file; shape (out, in), in a multiple of 32.

    Raises ValueError for another kind of block, or where bytes and shape do not agree.
    """
    if kind not in _BYTES:
        raise ValueError(f"blocks of kind {kind} cannot be carried over; known are {', '.join(_BYTES)}")
    out, width = shape
    blocks, rest = divmod(width, _BLOCK)
    if rest or data.size != out * blocks * _BYTES[kind]:
        raise ValueError(f"{data.size} bytes are not a {kind} tensor of shape {shape}")
    raw = data.reshape(out, blocks, _BYTES[kind])
    scales = _float16(raw[..., 0:2])
    if kind == "Q8_0":
        return QTensor(jnp.asarray(raw[..., 2:].reshape(out, -1).view(np.int8)), scales, None, shape)
    mins = _float16(raw[..., 2:4]) if kind == "Q4_1" else None
    values = raw[..., (4 if kind == "Q4_1" else 2) :].reshape(out, -1)
    return QTensor(jnp.asarray(values), scales, mins, shape)


def _float16(raw: np.ndarray) -> jnp.ndarray:
    return jnp.asarray(np.ascontiguousarray(raw).view("<f2")[..., 0])
