"""In which form each parameter of a base is kept: as a plain array of some dtype, or quantised by some scheme.

In a file a quantised weight NAME is NAME.values, NAME.scales and, where its scheme has minima, NAME.mins.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import jax
import ml_dtypes
import numpy as np

from mbjax.core.base import Base, declare
from mbjax.core.config import DTYPES, ModelConfig
from mbjax.core.param import Param, is_param
from mbjax.core.quant import GROUPS, QTensor, Scheme, abstract, for_accelerator
from mbjax.core.quantize import RULES, scheme_of
from mbjax.errors import InputError
from mbjax.io.names import base_tree, hf_name, hf_params

Form = np.dtype | Scheme
Specs = dict[str, tuple[np.dtype, tuple[int, ...]]]
BLOCKS = "blocks"  # a source's own 8- and 4-bit blocks, carried over as they are
CHOICES = ("auto", *DTYPES, *RULES)  # of --dtype
_NUMPY = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


class _Typed(Protocol):
    @property
    def dtype(self) -> np.dtype: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


def check_dtype(dtype: str) -> None:
    """Raises InputError where `--dtype` knows no such word."""
    if dtype not in CHOICES:
        raise InputError(f"dtype '{dtype}' is not known; choose one of {', '.join(CHOICES)}")


def base_forms(config: ModelConfig, dtype: str, blocks: Mapping[str, Scheme]) -> dict[str, Form]:
    """HF name -> form, sorted by name. Norms and biases are float32 always.

    dtype: `float32`, `bfloat16`, `int8`, `int4`, or `blocks`: the matrices in `blocks` as they are stored, any other
    in float32. Under int8 and int4, too, a matrix that is stored in blocks of as many bits keeps them.
    """

    def form(path: str, name: str, param: Param) -> Form:
        if param.dtype is not None or dtype in _NUMPY:
            return _NUMPY[param.dtype or dtype]
        stored = blocks.get(name)
        if dtype == BLOCKS:
            return stored or _NUMPY["float32"]
        wanted = scheme_of(path, RULES[dtype])
        if wanted is None:
            return _NUMPY["float32"]
        return stored if stored is not None and stored.bits == wanted.bits else wanted

    leaves = jax.tree.leaves_with_path(declare(config), is_leaf=is_param)
    paths = [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves]
    return dict(sorted((hf_name(path), form(path, hf_name(path), leaf)) for path, leaf in paths))


def file_specs(config: ModelConfig, forms: Mapping[str, Form]) -> Specs:
    """dtype and shape of every tensor of a file that holds a base in these forms, quantised weights tiled."""
    specs: Specs = {}
    for name, leaf in _abstract_leaves(config, forms, tiled=True).items():
        specs |= {own: (np.dtype(part.dtype), tuple(part.shape)) for own, part in named_parts(name, leaf).items()}
    return specs


def abstract_base(config: ModelConfig, forms: Mapping[str, Form]) -> Base:
    """The base in these forms as shapes and dtypes: quantised weights tiled on the CPU, else plain."""
    return base_tree(config, _abstract_leaves(config, forms, tiled=jax.default_backend() == "cpu"))


def named_parts(name: str, leaf: Any) -> dict[str, Any]:
    """The arrays that one parameter is kept as, by their names in a file."""
    if not isinstance(leaf, QTensor):
        return {name: leaf}
    parts = {f"{name}.values": leaf.values, f"{name}.scales": leaf.scales}
    return parts if leaf.mins is None else parts | {f"{name}.mins": leaf.mins}


def found_forms(config: ModelConfig, dtype: str, tensors: Mapping[str, _Typed]) -> dict[str, Form]:
    """The forms that a base of this dtype is in, going by the arrays (anything with dtype and shape) of a file.

    Raises KeyError where one is missing, ValueError where arrays make no scheme; whether the rest is right is not
    looked at: compare with `file_specs`.
    """
    if dtype in _NUMPY:
        return base_forms(config, dtype, {})
    return {name: _NUMPY["float32"] if name in tensors else _found(name, tensors) for name in hf_params(config)}


def base_leaves(config: ModelConfig, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters by HF name from a file's tensors: plain arrays and tiled QTensors."""
    return {
        name: tensors[name] if name in tensors else _quantised(name, param.shape, tensors)
        for name, param in hf_params(config).items()
    }


def _quantised(name: str, shape: tuple[int, ...], tensors: Mapping[str, Any]) -> QTensor:
    values, scales, mins = tensors[f"{name}.values"], tensors[f"{name}.scales"], tensors.get(f"{name}.mins")
    return QTensor(values, scales, mins, (shape[0], shape[1]), tiled=True)


def _found(name: str, tensors: Mapping[str, _Typed]) -> Scheme:
    values, scales = tensors[f"{name}.values"], tensors[f"{name}.scales"]
    bits = 4 if values.dtype == np.uint8 else 8
    if len(values.shape) != 4 or len(scales.shape) != 3 or not scales.shape[1]:
        raise ValueError(f"{name} is not tiled")
    group = values.shape[1] * 4 * 8 // bits // scales.shape[1]
    return Scheme(bits, group if group in GROUPS else 0, f"{name}.mins" in tensors)


def _abstract_leaves(config: ModelConfig, forms: Mapping[str, Form], *, tiled: bool) -> dict[str, Any]:
    def leaf(form: Form, shape: tuple[int, ...]) -> Any:
        if isinstance(form, Scheme):
            weight = abstract((shape[0], shape[1]), form, tiled=tiled)
            return weight if tiled else for_accelerator(weight)
        return jax.ShapeDtypeStruct(shape, form)

    return {name: leaf(forms[name], param.shape) for name, param in hf_params(config).items()}
