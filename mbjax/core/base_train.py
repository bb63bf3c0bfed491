"""The pure part of training a base from scratch: parameters, loss over packed rows, one optimiser step, shardings.

In training the L layers are one `Layer` whose arrays have a leading axis: a scan over it is compiled once, whatever
the depth. `unstacked` gives the `Base` that everything else takes.

Axis letters: N rows of a batch, T tokens of a row, L layers, D model width, V vocabulary.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from mbjax.core.base import Base, Layer, block, declare, declare_layer, embed
from mbjax.core.config import ModelConfig
from mbjax.core.lora import MAP_OUTPUT
from mbjax.core.nll import summed_nll
from mbjax.core.ops import rms_norm
from mbjax.core.param import Initializer, Param, fan_in, init_params, map_params, param_shardings
from mbjax.core.train import apply_gradients

AXES = ("data", "fsdp", "tensor")  # of the mesh
ROWS_AXES = ("data", "fsdp")  # those that the rows of a batch are spread over
REMAT = ("none", "maps", "full")


@flax.struct.dataclass
class BaseRows:
    """Packed rows on the device, all int32 [N, T]."""

    tokens: jax.Array
    targets: jax.Array  # -1 where there is none
    segments: jax.Array  # 0 padding, 1.. documents
    positions: jax.Array  # within the token's document


@flax.struct.dataclass
class BaseState:
    params: Base  # stacked, float32
    optimiser: Any
    step: jax.Array  # int32 []


@dataclasses.dataclass(frozen=True)
class StepForm:
    """How a step is computed; nothing here changes what it computes beyond rounding, but for z_weight.

    compute: dtype of the products; the parameters stay float32. remat: what a layer keeps for the backward pass:
    `none` all of it, `maps` what the linear maps give, `full` nothing. accumulate: parts of a batch that are computed
    one after the other. groups: devices that the rows are spread over. rows: sharding of [N, T, D] states, None on one
    device. whole: shardings of the parameters where they are used, gathered along fsdp. logit_bytes: see `summed_nll`.
    unroll: layers of one turn of the loop over them; all of them at once spare the copies into and out of its stacks.
    """

    compute: str = "float32"
    remat: str = "none"
    accumulate: int = 1
    z_weight: float = 0.0
    groups: int = 1
    rows: jax.sharding.NamedSharding | None = None
    whole: Base | None = None
    logit_bytes: int = 2**25
    unroll: int = 1


def declare_stacked(config: ModelConfig) -> Base:
    """The parameters as training holds them, as a tree of `Param`.

    Maps that write into the residual stream start smaller by sqrt(2 L), as in GPT-2 (Radford et al. 2019, 2.3).
    """
    one = declare_layer(config)
    small = _scaled_fan_in(1 / math.sqrt(2 * config.n_layers))
    attn = one.attn.replace(o=dataclasses.replace(_as_param(one.attn.o), init=small))  # pyright: ignore[reportAttributeAccessIssue]
    mlp = one.mlp.replace(down=dataclasses.replace(_as_param(one.mlp.down), init=small))  # pyright: ignore[reportAttributeAccessIssue]
    depth = config.n_layers
    layers = map_params(lambda p: Param((depth, *p.shape), (None, *p.axes), p.init, p.dtype), Layer(attn, mlp))
    return dataclasses.replace(declare(config), layers=layers)


def new_base(config: ModelConfig, seed: Any) -> Base:
    """Random stacked parameters, float32, the same whatever devices they are spread over. seed: a uint32."""
    return init_params(declare_stacked(config), jax.random.key(seed))


def unstacked(params: Base, config: ModelConfig) -> Base:
    """Stacked parameters as the `Base` of inference: L separate layers. Works on arrays of jax and numpy."""
    layers = tuple(jax.tree.map(lambda x: x[i], params.layers) for i in range(config.n_layers))  # noqa: B023
    return dataclasses.replace(params, layers=layers)


def is_matrix(p: Param) -> bool:
    """Whether a declared parameter is a matrix (of every layer), not a norm or a bias."""
    return sum(axis is not None for axis in p.axes) == 2


def rules(config: ModelConfig, tensor: int) -> dict[str, str | None]:
    """Logical axis -> mesh axis. Key/value heads that `tensor` devices cannot share evenly stay whole on each."""
    shared = config.n_kv_heads % tensor == 0
    return {
        "embed": "fsdp",
        "vocab": "tensor",
        "heads": "tensor",
        "kv_heads": "tensor" if shared else None,
        "mlp": "tensor",
    }


def shardings(config: ModelConfig, mesh: jax.sharding.Mesh) -> Base:
    """A NamedSharding for every stacked parameter. Raises ValueError where an axis cannot be divided evenly."""
    found = param_shardings(declare_stacked(config), mesh, rules(config, mesh.shape["tensor"]))
    if config.n_heads % mesh.shape["tensor"]:
        raise ValueError(f"{config.n_heads} heads cannot be shared by {mesh.shape['tensor']} tensor devices")
    for name, size, axis in (
        ("d_model", config.d_model, "fsdp"),
        ("d_ff", config.d_ff, "tensor"),
        ("vocab_size", config.vocab_size, "tensor"),
    ):
        if size % mesh.shape[axis]:
            raise ValueError(f"{name} {size} cannot be divided by the {mesh.shape[axis]} devices of mesh axis {axis}")
    return found


def gathered(config: ModelConfig, mesh: jax.sharding.Mesh) -> Base:
    """As `shardings`, where the parameters are used: whole along fsdp, and of the layers one alone."""
    along = rules(config, mesh.shape["tensor"]) | {"embed": None}
    one: Any = declare_layer(config)
    return param_shardings(dataclasses.replace(declare(config), layers=one), mesh, along)


def state_shardings(abstract: BaseState, params: Base, whole: jax.sharding.NamedSharding) -> BaseState:
    """The shardings of a state from those of the parameters: the optimiser's moments lie with their parameters.

    abstract: the state's shapes. A leaf whose key path ends in a parameter's and that has its shape is a moment of it;
    everything else (counts) is `whole` on every device.
    """
    flat = jax.tree.leaves_with_path(abstract.params)
    known = {jax.tree_util.keystr(path): leaf.shape for path, leaf in flat}
    places = {jax.tree_util.keystr(path): s for path, s in jax.tree.leaves_with_path(params)}

    def place(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.sharding.NamedSharding:
        for start in range(len(path)):
            name = jax.tree_util.keystr(path[start:])
            if known.get(name) == leaf.shape:
                return places[name]
        return whole

    return jax.tree.map_with_path(place, abstract)


def base_loss(params: Base, batch: BaseRows, *, config: ModelConfig, form: StepForm) -> tuple[jax.Array, jax.Array]:
    """Summed loss over the targets and, of that, the summed negative log-likelihood; float32, in nats."""
    params = _cast(params, config, form.compute)
    if form.whole is not None:  # rows and parameters share the axis fsdp: the parameters are what must move
        ends = ("embed", "head", "norm")
        params = dataclasses.replace(
            params, **{end: _kept(getattr(params, end), getattr(form.whole, end)) for end in ends}
        )
    h = _hidden(params, batch, config, form)
    weight = params.embed if params.head is None else params.head
    grouped = lambda x: x.reshape(form.groups, -1, *x.shape[1:])
    with jax.named_scope("head"):
        return summed_nll(grouped(h), weight, grouped(batch.targets), form.z_weight, form.logit_bytes)


def base_step(
    state: BaseState,
    batch: BaseRows,
    *,
    config: ModelConfig,
    optimiser: optax.GradientTransformation,
    form: StepForm,
) -> tuple[BaseState, dict[str, jax.Array]]:
    """One step; metrics are `loss` (nats per target, without the z term), `grad_norm` and `targets`, their number."""
    n = (batch.targets >= 0).sum()
    _, nll, grads = _summed_gradients(state.params, batch, config=config, form=form)
    scale = 1 / jnp.maximum(n, 1).astype(jnp.float32)
    grads = jax.tree.map(lambda g: g * scale, grads)
    params, optimiser_state = apply_gradients(optimiser, grads, state.optimiser, state.params)
    metrics = {"loss": nll * scale, "grad_norm": optax.tree.norm(grads), "targets": n}
    return BaseState(params, optimiser_state, state.step + 1), metrics


def base_score(
    params: Base, batch: BaseRows, token_bytes: jax.Array, *, config: ModelConfig, form: StepForm
) -> dict[str, jax.Array]:
    """Of held-out rows: summed `nll` in nats, `targets`, and `bytes`, what the targets stand for (int32 [V] each)."""
    nll = base_loss(params, batch, config=config, form=form)[1]
    counts = batch.targets >= 0
    sizes = jnp.where(counts, jnp.take(token_bytes, jnp.maximum(batch.targets, 0), axis=0), 0)
    return {"nll": nll, "targets": counts.sum(), "bytes": sizes.sum()}


def _summed_gradients(
    params: Base, batch: BaseRows, *, config: ModelConfig, form: StepForm
) -> tuple[jax.Array, jax.Array, Base]:
    """Summed loss, negative log-likelihood, and the loss's gradient, part by part of the batch."""

    def gradient(part: BaseRows) -> tuple[jax.Array, jax.Array, Base]:
        loss = lambda p: base_loss(p, part, config=config, form=form)
        (total, nll), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return total, nll, grads

    if form.accumulate == 1:
        return gradient(batch)

    def add(sums: Any, part: BaseRows) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, gradient(part)), None

    def split(x: jax.Array) -> jax.Array:  # every part takes rows of every device: none of them moves
        return x.reshape(-1, form.accumulate, *x.shape[1:]).swapaxes(0, 1)

    zero = jnp.zeros((), jnp.float32)
    start = (zero, zero, jax.tree.map(jnp.zeros_like, params))
    return jax.lax.scan(add, start, jax.tree.map(split, batch))[0]


def _hidden(params: Base, batch: BaseRows, config: ModelConfig, form: StepForm) -> jax.Array:
    """The states after the final norm, [N, T, D]."""
    # segment 0 of `ops.Rows` is seen by all others; padding must not be, so it becomes a document of its own
    segments = jnp.where(batch.segments == 0, -1, batch.segments)
    gates = jnp.zeros((*batch.tokens.shape, 0), jnp.float32)

    def layer(h: jax.Array, one: Layer) -> tuple[jax.Array, None]:
        if form.whole is not None:
            one = _kept(one, form.whole.layers)
        h, _ = block(one, h, batch.positions, None, (), gates, segments, None, config)
        return _placed(h, form), None

    h = _placed(embed(params, batch.tokens), form)
    stacked: Any = params.layers
    h, _ = jax.lax.scan(_remat(form.remat)(layer), h, stacked, unroll=form.unroll)
    return rms_norm(h, params.norm, config.rms_eps)


def _remat(kind: str) -> Callable[[Any], Any]:
    if kind == "none":
        return lambda layer: layer
    policies = jax.checkpoint_policies
    policy = policies.save_only_these_names(MAP_OUTPUT) if kind == "maps" else policies.nothing_saveable
    return lambda layer: jax.checkpoint(layer, policy=policy, prevent_cse=False)  # inside a scan nothing can merge


def _placed(h: jax.Array, form: StepForm) -> jax.Array:
    return h if form.rows is None else _kept(h, form.rows)


def _kept(tree: Any, placed: Any) -> Any:
    return jax.tree.map(jax.lax.with_sharding_constraint, tree, placed)


def _cast(params: Base, config: ModelConfig, dtype: str) -> Base:
    """The parameters as the products take them; what is declared float32 (norms, biases) stays so."""
    declared = declare_stacked(config)
    return jax.tree.map(
        lambda p, x: x if p.dtype is not None else x.astype(dtype), declared, params, is_leaf=_is_declared
    )


def _is_declared(leaf: Any) -> bool:
    return isinstance(leaf, Param)


def _as_param(leaf: Any) -> Param:
    assert isinstance(leaf, Param)
    return leaf


def _scaled_fan_in(scale: float) -> Initializer:
    return lambda key, shape, dtype: fan_in(key, shape, dtype) * jnp.asarray(scale, dtype)
