"""The pure step: its loss is that of `forward`, however it is computed; padding and other documents are not seen."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import PLAIN, random_tokens
from tiny_base_run import CONFIG

from mbjax.core.base_train import (
    BaseRows,
    BaseState,
    StepForm,
    base_loss,
    base_score,
    base_step,
    declare_stacked,
    new_base,
    rules,
    shardings,
    state_shardings,
    unstacked,
)
from mbjax.core.forward import forward
from mbjax.core.nll import summed_nll
from mbjax.training.base_config import BaseOptimiserConfig, MeshConfig
from mbjax.training.mesh import make_mesh
from mbjax.training.optimiser import make_base_optimiser

ROWS, LENGTH = 4, 24
FORM = StepForm(z_weight=1e-2, logit_bytes=4 * ROWS * PLAIN.vocab_size * 8)  # three chunks


def batch(seed: int = 0) -> BaseRows:
    """Each row: a document of 10 tokens, one of 8, and padding."""
    tokens = random_tokens(PLAIN, ROWS, LENGTH, seed=seed)
    segments = np.repeat(np.asarray([[1] * 10 + [2] * 8 + [0] * 6], np.int32), ROWS, axis=0)
    positions = np.repeat(np.asarray([[*range(10), *range(8), *range(6)]], np.int32), ROWS, axis=0)
    targets = np.roll(tokens, -1, axis=1)
    targets[:, [9, *range(17, LENGTH)]] = -1
    return BaseRows(*(jnp.asarray(x) for x in (tokens, targets, segments, positions)))


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda seed: new_base(PLAIN, seed))(np.uint32(0))


def reference(params, rows: BaseRows, z_weight: float):
    """Document by document through `forward`, all logits at once."""
    total = jnp.zeros((), jnp.float32)
    base = unstacked(params, PLAIN)
    for begin, end in ((0, 10), (10, 18)):
        tokens, targets = rows.tokens[:, begin:end], rows.targets[:, begin:end]
        logits, _ = forward(base, (), jnp.zeros((*tokens.shape, 0), jnp.float32), tokens, config=PLAIN)
        top = jax.nn.logsumexp(logits, axis=-1)
        right = jnp.take_along_axis(logits, jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
        total += jnp.where(targets >= 0, top - right + z_weight * top**2, 0.0).sum()
    return total


def test_loss_and_gradient_are_those_of_forward(params):
    rows = batch()
    loss = jax.jit(jax.value_and_grad(lambda p: base_loss(p, rows, config=PLAIN, form=FORM)[0]))
    value, grads = loss(params)
    wanted, wanted_grads = jax.jit(jax.value_and_grad(lambda p: reference(p, rows, 1e-2)))(params)
    assert float(value) == pytest.approx(float(wanted), rel=1e-5)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted_grads), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * float(jnp.abs(b).max()))


def test_padding_is_not_seen_and_sees_nothing(params):
    rows = batch()
    other = rows.replace(tokens=rows.tokens.at[:, 18:].set(5))
    loss = jax.jit(lambda r: base_loss(params, r, config=PLAIN, form=FORM)[0])
    assert float(loss(rows)) == float(loss(other))
    first = rows.replace(segments=jnp.roll(rows.segments, 6, axis=1), positions=jnp.roll(rows.positions, 6, axis=1))
    first = first.replace(tokens=jnp.roll(rows.tokens, 6, axis=1), targets=jnp.roll(rows.targets, 6, axis=1))
    assert float(loss(first)) == pytest.approx(float(loss(rows)), rel=1e-6)  # in front of the documents, too


@pytest.mark.parametrize(
    "form",
    [
        dataclasses.replace(FORM, remat="maps"),
        dataclasses.replace(FORM, remat="full"),
        dataclasses.replace(FORM, accumulate=4),
        dataclasses.replace(FORM, groups=2),
        dataclasses.replace(FORM, logit_bytes=1),
    ],
    ids=["maps", "full", "accumulate", "groups", "a token at a time"],
)
def test_the_form_of_a_step_does_not_change_it(params, form):
    optimiser = make_base_optimiser(BaseOptimiserConfig(), 10, declare_stacked(PLAIN))
    state = BaseState(params, optimiser.init(params), jnp.zeros((), jnp.int32))
    both = []
    for one in (FORM, form):
        step = jax.jit(lambda s, b, one=one: base_step(s, b, config=PLAIN, optimiser=optimiser, form=one))
        both.append(step(state, batch())[1])
    for key in both[0]:
        assert float(both[0][key]) == pytest.approx(float(both[1][key]), rel=1e-5)


def test_bfloat16_products_keep_float32_parameters(params):
    form = dataclasses.replace(FORM, compute="bfloat16")
    optimiser = make_base_optimiser(BaseOptimiserConfig(), 10, declare_stacked(PLAIN))
    state = BaseState(params, optimiser.init(params), jnp.zeros((), jnp.int32))
    new, metrics = jax.jit(lambda s, b: base_step(s, b, config=PLAIN, optimiser=optimiser, form=form))(state, batch())
    assert {leaf.dtype for leaf in jax.tree.leaves(new.params)} == {jnp.dtype("float32")}
    exact = base_loss(params, batch(), config=PLAIN, form=FORM)[1] / int(metrics["targets"])
    assert float(metrics["loss"]) == pytest.approx(float(exact), rel=2e-2)
    assert float(metrics["loss"]) != float(exact)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_both_optimisers_learn_a_batch_by_heart(params, name):
    optimiser = make_base_optimiser(BaseOptimiserConfig(name, learning_rate=1e-2), 40, declare_stacked(PLAIN))
    step = jax.jit(lambda s, b: base_step(s, b, config=PLAIN, optimiser=optimiser, form=FORM))
    state = BaseState(params, optimiser.init(params), jnp.zeros((), jnp.int32))
    losses = []
    for _ in range(40):
        state, metrics = step(state, batch())
        losses.append(float(metrics["loss"]))
    assert losses[0] > 4 and losses[-1] < 2
    assert int(state.step) == 40


def test_the_rate_warms_up_stays_and_decays_and_norms_do_not_decay():
    config = BaseOptimiserConfig(learning_rate=1.0, warmup=0.1, decay=0.2, weight_decay=0.5, clip_norm=1e9)
    optimiser = make_base_optimiser(config, 100, declare_stacked(PLAIN))
    params = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), jax.eval_shape(lambda: new_base(PLAIN, np.uint32(0))))
    state, moved = optimiser.init(params), []
    update = jax.jit(optimiser.update)
    zero = jax.tree.map(jnp.zeros_like, params)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for _ in range(100):
            updates, state = update(zero, state, params)
            assert not np.asarray(updates.norm).any()  # without a gradient only the decay is left, of matrices alone
            assert not np.asarray(updates.layers.attn.norm).any()
            moved.append(-float(updates.layers.attn.q[0, 0, 0]) / 0.5)
    assert moved[0] == 0 and moved[5] == pytest.approx(0.5)
    assert moved[10] == moved[79] == pytest.approx(1.0)
    assert moved[90] == pytest.approx(0.5)


def test_score_counts_the_bytes_of_the_targets(params):
    rows = batch()
    sizes = jnp.arange(PLAIN.vocab_size, dtype=jnp.int32)
    found = base_score(params, rows, sizes, config=PLAIN, form=FORM)
    targets = np.asarray(rows.targets)
    assert int(found["bytes"]) == targets[targets >= 0].sum()
    assert int(found["targets"]) == (targets >= 0).sum() == ROWS * 16
    assert float(found["nll"]) == pytest.approx(float(reference(params, rows, 0.0)), rel=1e-5)


def test_no_chunk_holds_more_logits_than_it_may():
    h, weight = jnp.zeros((1, 2, 64, 16)), jnp.zeros((500, 16))
    target = jnp.zeros((1, 2, 64), jnp.int32)
    text = str(jax.make_jaxpr(lambda h: summed_nll(h, weight, target, 0.0, 4 * 2 * 500 * 8))(h))
    assert "f32[1,16,500]" in text and "f32[1,128,500]" not in text


def test_every_parameter_and_moment_has_its_place():
    mesh, model = make_mesh(MeshConfig(1, 2, 2)), CONFIG.model
    placed = shardings(model, mesh)
    assert tuple(placed.layers.attn.q.spec) == (None, "tensor", "fsdp")
    assert tuple(placed.layers.mlp.down.spec) == (None, "fsdp", "tensor")
    assert tuple(placed.embed.spec) == ("tensor", "fsdp")
    for name in ("adamw", "muon"):
        optimiser = make_base_optimiser(BaseOptimiserConfig(name), 10, declare_stacked(model))
        params = jax.eval_shape(lambda: new_base(model, np.uint32(0)))
        state = BaseState(params, jax.eval_shape(optimiser.init, params), jax.ShapeDtypeStruct((), jnp.int32))
        whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        sharded = state_shardings(state, placed, whole)
        pairs = zip(jax.tree.leaves(state.optimiser), jax.tree.leaves(sharded.optimiser), strict=True)
        spread = [x.size for x, s in pairs if s.spec and any(s.spec)]
        matrices = sum(x.size for x in jax.tree.leaves(params) if min(x.shape) > 2 or x.ndim == 3)
        assert sum(spread) >= matrices  # at least one moment of each matrix is spread


def test_what_cannot_be_divided_is_refused_or_kept_whole():
    assert rules(CONFIG.model, 4)["kv_heads"] is None
    assert rules(CONFIG.model, 2)["kv_heads"] == "tensor"
    odd = dataclasses.replace(CONFIG.model, d_model=31, head_dim=8)
    with pytest.raises(ValueError, match="d_model 31"):
        shardings(odd, make_mesh(MeshConfig(2, 2, 1)))
    with pytest.raises(ValueError, match="heads"):
        shardings(dataclasses.replace(CONFIG.model, n_heads=3, n_kv_heads=1), make_mesh(MeshConfig(2, 1, 2)))
