"""What is derived from a declaration: initial values, shapes, shardings, and the list of mismatches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import ODD, PLAIN

from mbjax.core.base import declare
from mbjax.core.param import (
    Param,
    abstract_params,
    fan_in,
    init_params,
    is_param,
    mismatches,
    ones,
    param,
    param_shardings,
    zeros,
)


def test_initial_values_have_the_declared_shapes_and_dtypes() -> None:
    declared = declare(ODD)
    made = jax.eval_shape(lambda key: init_params(declared, key, "bfloat16"), jax.random.key(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), made) == jax.tree.map(
        lambda x: (x.shape, x.dtype), abstract_params(declared, "bfloat16")
    )
    assert made.embed.dtype == jnp.bfloat16
    assert made.norm.dtype == made.layers[0].attn.q_bias.dtype == jnp.float32, "norms and biases stay float32"


def test_optional_parts_are_declared_only_where_the_model_has_them() -> None:
    plain, odd = declare(PLAIN), declare(ODD)
    assert plain.head is None and plain.layers[0].attn.q_bias is None and plain.layers[0].attn.q_norm is None
    assert odd.head is not None and odd.layers[0].attn.k_bias is not None and odd.layers[0].attn.k_norm is not None


def test_linear_maps_start_with_the_variance_of_their_input_width() -> None:
    made = init_params({"w": param((400, 100), (None, None), fan_in)}, jax.random.key(0))
    assert float(jnp.std(made["w"])) == pytest.approx(0.1, rel=0.02)


def test_a_parameters_start_depends_on_its_name_and_the_key_alone() -> None:
    one = {"b": param((3, 4), (None, None), fan_in)}
    more = {"a": param((5, 6), (None, None), fan_in), **one, "c": param((3, 4), (None, None), fan_in)}
    first, second = init_params(one, jax.random.key(7)), init_params(more, jax.random.key(7))
    assert np.array_equal(first["b"], second["b"])
    assert not np.array_equal(second["b"], second["c"])
    assert not np.array_equal(first["b"], init_params(one, jax.random.key(8))["b"])


def test_an_axis_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="differ in rank"):
        Param((3, 4), ("embed",), ones)


def test_shardings_follow_the_rules() -> None:
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    shardings = param_shardings(declare(ODD), mesh, {"heads": "model", "mlp": "model", "vocab": "data"})
    spec = jax.sharding.PartitionSpec
    assert shardings.layers[1].attn.q.spec == spec("model", None)
    assert shardings.layers[1].attn.o.spec == spec(None, "model")
    assert shardings.embed.spec == spec("data", None)
    assert shardings.norm.spec == spec(None)


def test_two_axes_on_one_mesh_axis_are_refused() -> None:
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    with pytest.raises(ValueError, match="collide"):
        param_shardings(declare(PLAIN), mesh, {"mlp": "model", "embed": "model"})


def test_mismatches_name_every_key_path() -> None:
    declared = declare(PLAIN)
    good = abstract_params(declared)
    assert mismatches(declared, good) == []
    first = good.layers[0]
    attn = dataclasses.replace(first.attn, q=None, k=jax.ShapeDtypeStruct((1, 2), jnp.float32), q_norm=first.attn.norm)
    bad = dataclasses.replace(good, layers=(dataclasses.replace(first, attn=attn), *good.layers[1:]))
    lines = mismatches(declared, bad)
    assert sorted(line.split(":")[0] for line in lines) == [
        ".layers[0].attn.k",
        ".layers[0].attn.q",
        ".layers[0].attn.q_norm",
    ]
    assert ".layers[0].attn.q: missing, expected shape (64, 64)" in lines
    assert ".layers[0].attn.q_norm: unexpected, shape (64,)" in lines
    assert ".layers[0].attn.k: shape (1, 2), expected (32, 64)" in lines


def test_a_declaration_is_recognised() -> None:
    assert is_param(param((1,), (None,), zeros)) and not is_param(jnp.zeros(1))
