"""A base of one's own is a base like any other: it exports, loads, and keeps the promises P1 and P2 with packs."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_base_run import CONFIG, toml, with_loop, write_data

from mbjax.cli.main import run as command
from mbjax.core.base_train import new_base, unstacked
from mbjax.core.forward import forward
from mbjax.core.lora import declare_lora
from mbjax.core.pack import Pack
from mbjax.core.param import init_params
from mbjax.core.sampling import Sampling
from mbjax.engine.chunks import chunks_of
from mbjax.engine.device import Device
from mbjax.engine.engine import Engine
from mbjax.engine.programs import prefill_sizes
from mbjax.errors import InputError
from mbjax.io.hf_export import llama_config, write_hf
from mbjax.io.load import load_base
from mbjax.io.pack_dir import About, write_pack
from mbjax.io.pack_load import binding
from mbjax.training.route import background_prompts, calibrate_pack, train_router

OWN = [f"a question of the number {i} about apples and pears" for i in range(60)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a base that `mbjax train base` made, and what the command said."""
    folder = write_data(tmp_path_factory.mktemp("data"))
    (folder / "config.toml").write_text(toml(with_loop(steps=30, report_every=10)))
    out = folder / "base"
    assert (
        command(["train", "base", str(folder / "config.toml"), "--out", str(out), "--work", str(folder / "run")]) == 0
    )
    return out


def test_the_files_are_those_of_a_llama(trained):
    names = {path.name for path in trained.iterdir()}
    assert names >= {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.model", "tokenizer_config.json"
    }  # fmt: skip
    raw = json.loads((trained / "config.json").read_text())
    assert raw["architectures"] == ["LlamaForCausalLM"] and raw["eos_token_id"]


def test_it_loads_as_it_was_trained(home, tmp_path):
    folder = write_data(tmp_path)
    model = CONFIG.model
    params = unstacked(jax.device_get(jax.jit(lambda seed: new_base(model, seed))(np.uint32(3))), model)
    write_hf(tmp_path / "base", params, model, folder / "tokenizer")
    loaded = load_base(tmp_path / "base")
    assert dataclasses.replace(loaded.config, max_context=model.max_context) == model
    assert loaded.tokenizer.template is not None
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(loaded.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_llama_has_no_words_for_is_refused(tmp_path):
    with pytest.raises(InputError, match="plain Llama"):
        llama_config(dataclasses.replace(CONFIG.model, qkv_bias=True))
    small = dataclasses.replace(CONFIG.model, vocab_size=100)
    params = jax.eval_shape(lambda: new_base(small, np.uint32(0)))
    with pytest.raises(InputError, match="holds 384 tokens but the base's table 100"):
        write_hf(tmp_path / "base", params, small, write_data(tmp_path) / "tokenizer")
    assert not (tmp_path / "base").exists()


def make_pack(base, packs, name: str, seed: int, rank: int = 4) -> None:
    """A pack of random deltas with a route key of its own."""
    lora = init_params(declare_lora(base.config, rank, 2.0 * rank), jax.random.key(seed))
    noise = lambda x: x + 0.05 * jax.random.normal(jax.random.key(seed), x.shape) if x.ndim == 2 else x
    about = About(name, name, "0.1.0", binding(base), licence="unknown", created_by="test")
    write_pack(packs / name, Pack(lora=jax.tree.map(noise, lora)), about, card=name)
    prompts = [prompt.replace("apples", name) for prompt in OWN]
    calibrate_pack(packs / name, [prompts], packs / "router", base, lambda *_: None)


def states_after(engine, prompt: str, use: tuple[str, ...] = ()) -> list[np.ndarray]:
    """The hidden states that the engine's programs choose tokens from: after the prompt, and the tokens of four steps."""
    device, ids = Device(engine.base.params, engine.programs), engine.encode(prompt)
    group = device.group([(0, use, (1.0,) * len(use), engine.packs.use(use))], len(engine.packs.ids()))
    device.take_seat(0, Sampling(), ids)
    last = device.prefill(group, chunks_of([ids], prefill_sizes(1)))
    tokens = [device.choose(group, last), *(device.step(group) for _ in range(4))]
    return [np.asarray(x) for x in (last, *tokens)]


def test_packs_on_it_keep_the_promises(home, trained, tmp_path):
    base = load_base(trained)
    packs = tmp_path / "packs"
    train_router(base, background_prompts(None)[:400], packs / "router", lambda *_: None)
    make_pack(base, packs, "first", 1)
    alone = Engine.load(trained, packs=packs)
    before = alone.generate(OWN[0], pack="first", max_tokens=8)
    before_states = states_after(alone, OWN[0], ("first",))
    make_pack(base, packs, "second", 2, rank=8)  # which makes every slot larger
    both = Engine.load(trained, packs=packs)
    after = both.generate(OWN[0], pack="first", max_tokens=8)
    assert before.tokens == after.tokens  # P2: what does not select a pack does not notice it
    bare = Engine.load(trained, packs=None)
    assert both.generate(OWN[0], pack="none", max_tokens=8).tokens == bare.generate(OWN[0], max_tokens=8).tokens  # P1
    for one, other in zip(before_states, states_after(both, OWN[0], ("first",)), strict=True):
        np.testing.assert_array_equal(one, other)  # P2, bit by bit
    for one, other in zip(states_after(both, OWN[0]), states_after(bare, OWN[0]), strict=True):
        np.testing.assert_array_equal(one, other)  # P1, bit by bit
    tokens = jnp.asarray([base.tokenizer.encode(OWN[0])], jnp.int32)
    plain, _ = forward(base.params, (), jnp.zeros((*tokens.shape, 0), jnp.float32), tokens, config=base.config)
    pack = both_packs(packs, base)
    gated, _ = forward(base.params, pack, jnp.zeros((*tokens.shape, 2), jnp.float32), tokens, config=base.config)
    one = jnp.concatenate([jnp.ones((*tokens.shape, 1)), jnp.zeros((*tokens.shape, 1))], axis=-1)
    with_second, _ = forward(base.params, pack, one, tokens, config=base.config)
    without, _ = forward(base.params, pack[:1], one[..., :1], tokens, config=base.config)
    largest = float(jnp.abs(plain).max())
    np.testing.assert_allclose(gated, plain, atol=1e-6 * largest)
    np.testing.assert_allclose(with_second, without, atol=1e-6 * largest)
    assert float(jnp.abs(without - plain).max()) > 1e-3 * largest  # the pack does something


def both_packs(packs, base):
    from mbjax.io.pack_load import load_pack

    return tuple(load_pack(packs / name, base).params for name in ("first", "second"))
