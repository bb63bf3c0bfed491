"""Quantised packs: which of a pack's matrices are stored as values and scales, and how they lie in the file.

In the place of a matrix NAME stand NAME.values, NAME.scales and, with 4 bits, NAME.mins, in the plain layout of
`core.quant` with groups of 32 along the last axis. The b of a low-rank delta, [out, R], is stored transposed: most
ranks are smaller than a group, and padding would double it.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mbjax.core.quant import INT4, INT8, QTensor, Scheme, abstract
from mbjax.core.quantize import quantize_weight
from mbjax.io.base_forms import Specs, named_parts

SCHEMES: dict[str, Scheme] = {"int8": INT8, "int4": INT4}  # of every quantisation but `none`


def stored_specs(leaves: Mapping[str, Any], quantisation: str) -> Specs:
    """dtype and shape of every tensor in the file, for a pack's leaves (arrays or shapes) by name."""
    specs: Specs = {}
    for name, leaf in leaves.items():
        parts = {name: leaf}
        if _is_quantised(leaf, quantisation):
            parts = named_parts(name, abstract(_stored_shape(name, leaf.shape), SCHEMES[quantisation], tiled=False))
        specs |= {own: (np.dtype(part.dtype), tuple(part.shape)) for own, part in parts.items()}
    return specs


def quantised(leaves: Mapping[str, np.ndarray], quantisation: str) -> dict[str, np.ndarray]:
    """The tensors of the file. Values that are not finite, or too large for float16, come out as such scales."""
    tensors: dict[str, np.ndarray] = {}
    for name, leaf in leaves.items():
        if _is_quantised(leaf, quantisation):
            matrix = leaf.T if is_transposed(name) else leaf
            parts = named_parts(name, quantize_weight(matrix, SCHEMES[quantisation]))  # pyright: ignore[reportArgumentType]
            tensors |= {own: np.asarray(part) for own, part in parts.items()}
        else:
            tensors[name] = leaf
    return tensors


def restored(leaves: Mapping[str, Any], tensors: Mapping[str, np.ndarray], quantisation: str) -> dict[str, np.ndarray]:
    """A pack's leaves by name in float32, from the tensors of its file; `leaves` gives names and shapes."""
    out: dict[str, np.ndarray] = {}
    for name, leaf in leaves.items():
        if _is_quantised(leaf, quantisation):
            matrix = _dequantised(stored_matrix(name, leaf.shape, tensors))
            out[name] = np.ascontiguousarray(matrix.T) if is_transposed(name) else matrix
        else:
            out[name] = tensors[name]
    return out


def stored_matrix(name: str, shape: tuple[int, ...], tensors: Mapping[str, Any]) -> QTensor:
    """One quantised matrix as it lies in the file, plain: of a low-rank b the transpose."""
    values, scales, mins = tensors[f"{name}.values"], tensors[f"{name}.scales"], tensors.get(f"{name}.mins")
    return QTensor(values, scales, mins, _stored_shape(name, shape))


def _is_quantised(leaf: Any, quantisation: str) -> bool:
    return quantisation in SCHEMES and len(leaf.shape) == 2


def is_transposed(name: str) -> bool:
    """Whether a quantised matrix lies transposed in the file."""
    return name.startswith("lora.") and name.endswith(".b")


def _stored_shape(name: str, shape: tuple[int, ...]) -> tuple[int, int]:
    return (shape[1], shape[0]) if is_transposed(name) else (shape[0], shape[1])


def _dequantised(q: QTensor) -> np.ndarray:
    """`core.quant.dequantize` in numpy: loading a pack must not compile anything (promise P3)."""
    values, scales = np.asarray(q.values), np.asarray(q.scales, np.float32)
    if q.bits == 4:
        blocks = values.reshape(*scales.shape, -1)
        values = np.concatenate([blocks & 15, blocks >> 4], axis=-1)
    matrix = values.reshape(*scales.shape, -1).astype(np.float32) * scales[..., None]
    if q.mins is not None:
        matrix += np.asarray(q.mins, np.float32)[..., None]
    return np.ascontiguousarray(matrix.reshape(len(scales), -1)[:, : q.shape[1]])
