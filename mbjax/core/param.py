"""A parameter is declared once; initial values, shardings and restore targets are derived from that declaration."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

Initializer = Callable[[jax.Array, tuple[int, ...], Any], jax.Array]


@dataclasses.dataclass(frozen=True)
class Param:
    """One parameter: its shape, the logical name of each axis, how it starts, and a dtype if it has one of its own."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: Initializer
    dtype: str | None = None

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.axes):
            raise ValueError(f"shape {self.shape} and axes {self.axes} differ in rank")


def param(shape: tuple[int, ...], axes: tuple[str | None, ...], init: Initializer, dtype: str | None = None) -> Any:
    """A `Param`, typed as what will stand in its place."""
    return Param(shape, axes, init, dtype)


def fan_in(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Normal values with variance 1 / (last axis), the input axis of every linear map here."""
    return jax.random.normal(key, shape, dtype) * jnp.asarray(1 / math.sqrt(shape[-1]), dtype)


def ones(_: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return jnp.ones(shape, dtype)


def zeros(_: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return jnp.zeros(shape, dtype)


def is_param(leaf: Any) -> bool:
    return isinstance(leaf, Param)


def map_params(fn: Callable[[Param], Any], declared: Any) -> Any:
    return jax.tree.map(fn, declared, is_leaf=is_param)


def init_params(declared: Any, key: jax.Array, dtype: str = "float32") -> Any:
    """Random values for every declared parameter; each has a key of its own, so adding one changes no other's."""
    leaves, treedef = jax.tree.flatten_with_path(declared, is_leaf=is_param)
    values = []
    for path, leaf in leaves:
        leaf_key = jax.random.fold_in(key, _path_number(jax.tree_util.keystr(path)))
        values.append(leaf.init(leaf_key, leaf.shape, jnp.dtype(leaf.dtype or dtype)))
    return jax.tree.unflatten(treedef, values)


def abstract_params(declared: Any, dtype: str = "float32") -> Any:
    """The same tree as shapes and dtypes only: the target of a restore, the input of a plan."""
    return map_params(lambda p: jax.ShapeDtypeStruct(p.shape, jnp.dtype(p.dtype or dtype)), declared)


def param_shardings(declared: Any, mesh: jax.sharding.Mesh, rules: Mapping[str, str | None]) -> Any:
    """A NamedSharding per parameter, from rules that map logical axes to mesh axes.

    Raises ValueError where two axes of one parameter would land on the same mesh axis.
    """

    def sharding(p: Param) -> jax.sharding.NamedSharding:
        spec = [rules.get(axis) if axis is not None else None for axis in p.axes]
        used = [axis for axis in spec if axis is not None]
        if len(set(used)) != len(used):
            raise ValueError(f"axes {p.axes} collide on the mesh as {spec}; change the sharding rules")
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))

    return map_params(sharding, declared)


def mismatches(declared: Any, actual: Any) -> list[str]:
    """One line per parameter that is missing, unexpected or of another shape, each with its key path."""
    want = {jax.tree_util.keystr(path): p.shape for path, p in jax.tree.leaves_with_path(declared, is_leaf=is_param)}
    have = {jax.tree_util.keystr(path): tuple(leaf.shape) for path, leaf in jax.tree.leaves_with_path(actual)}
    lines = [f"{path}: missing, expected shape {shape}" for path, shape in want.items() if path not in have]
    lines += [f"{path}: unexpected, shape {shape}" for path, shape in have.items() if path not in want]
    lines += [
        f"{path}: shape {have[path]}, expected {shape}"
        for path, shape in want.items()
        if path in have and have[path] != shape
    ]
    return lines


def _path_number(path: str) -> int:
    number = 2166136261  # FNV-1a: Python's own hash() changes from process to process
    for byte in path.encode():
        number = ((number ^ byte) * 16777619) & 0x7FFFFFFF
    return number
