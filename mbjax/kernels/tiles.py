"""How quantised weights lie in memory: plain for files and accelerators, in tiles of 16 outputs for the CPU kernels.

Plain: int8 values [out, K], or two 4-bit values to a byte, uint8 [out, K / 2]; scales [out, groups]. Within a block
of 32 inputs byte j holds input j in its low half and input j + 16 in its high half, the order of GGUF's Q4_0 and Q4_1.
Tiled: four bytes of each of 16 outputs side by side, [out / 16, bytes / 4, 16, 4]; scales [out / 16, groups, 16].
Outputs are padded to whole tiles with zeros.
"""

import jax
import jax.numpy as jnp

LANES = 16
BLOCK = 32


def tile_values(values: jax.Array) -> jax.Array:
    """[out, bytes] to [ceil(out / 16), bytes / 4, 16, 4]."""
    padded = _pad_rows(values)
    return padded.reshape(-1, LANES, values.shape[1] // 4, 4).transpose(0, 2, 1, 3)


def untile_values(tiled: jax.Array, out: int) -> jax.Array:
    tiles, words = tiled.shape[:2]
    return tiled.transpose(0, 2, 1, 3).reshape(tiles * LANES, words * 4)[:out]


def tile_scales(scales: jax.Array) -> jax.Array:
    """[out, groups] to [ceil(out / 16), groups, 16]."""
    padded = _pad_rows(scales)
    return padded.reshape(-1, LANES, scales.shape[1]).transpose(0, 2, 1)


def untile_scales(tiled: jax.Array, out: int) -> jax.Array:
    return tiled.transpose(0, 2, 1).reshape(-1, tiled.shape[1])[:out]


def pack4(q: jax.Array) -> jax.Array:
    """Integers 0..15, [out, K], two to a byte: uint8 [out, K / 2]."""
    halves = q.astype(jnp.uint8).reshape(q.shape[0], -1, 2, BLOCK // 2)
    return (halves[:, :, 0] | (halves[:, :, 1] << 4)).reshape(q.shape[0], -1)


def unpack4(packed: jax.Array) -> jax.Array:
    """The inverse of `pack4`: uint8 0..15, [out, K]."""
    blocks = packed.reshape(packed.shape[0], -1, BLOCK // 2)
    return jnp.stack([blocks & 15, blocks >> 4], axis=2).reshape(packed.shape[0], -1)


def _pad_rows(x: jax.Array) -> jax.Array:
    return jnp.pad(x, ((0, -x.shape[0] % LANES), (0, 0)))
