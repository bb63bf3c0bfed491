"""Prompts of two parts: where they are cut, and who answers when."""

import dataclasses
import queue
import shutil

import jax
import numpy as np
import pytest
from tiny_router import SHOUTS, SUMS, tiny_base, write_packs

from mbjax.core.parts import FEWEST_OF_A_PART, order_of_parts, token_logits
from mbjax.core.router import Key, Space, score, unit_states
from mbjax.core.sampling import Sampling
from mbjax.engine.engine import Engine
from mbjax.engine.eval_file import Choice, Question
from mbjax.engine.evaluate import evaluate
from mbjax.engine.reply import BETWEEN_PARTS, RouteItem, in_turns
from mbjax.engine.route_all import route_all
from mbjax.engine.routing import turn_states
from mbjax.errors import InputError

HALVES = (0.5, 0.5)
OF_TWO_PARTS = " ".join([SHOUTS[40], *SUMS[40:43]])
CONTEXT = 256


def logits(*stretches: tuple[int, float, float]) -> np.ndarray:
    """So many tokens each, with a logit for the one pack and the other."""
    return np.concatenate([np.tile(np.float32([[one, other]]), (n, 1)) for n, one, other in stretches])


def test_a_prompt_is_cut_where_the_lead_changes():
    assert order_of_parts(logits((7, 5.0, -5.0), (9, -5.0, 5.0)), HALVES) == (0, 1)
    assert order_of_parts(logits((7, -5.0, 5.0), (9, 5.0, -5.0)), HALVES) == (1, 0)
    noisy = logits((7, 5.0, -5.0), (9, -5.0, 5.0)) + np.random.default_rng(0).normal(0, 2, (16, 2))
    assert order_of_parts(noisy.astype(np.float32), HALVES) == (0, 1)


def test_a_prompt_of_one_piece_is_not_cut():
    assert order_of_parts(logits((20, 5.0, 2.0)), HALVES) is None  # the one leads everywhere
    assert order_of_parts(logits((20, 5.0, -5.0), (FEWEST_OF_A_PART - 1, -5.0, 5.0)), HALVES) is None
    assert order_of_parts(logits((20, 5.0, -5.0), (FEWEST_OF_A_PART, -5.0, 5.0)), HALVES) == (0, 1)
    assert order_of_parts(logits((9, 5.0, -5.0), (9, -9.0, -1.0)), HALVES) is None  # its part does not call for it
    assert order_of_parts(logits((9, 5.0, -5.0), (9, -9.0, -1.0)), (0.5, 0.2)) == (0, 1)  # its own threshold is lower
    assert order_of_parts(np.zeros((0, 2), np.float32), HALVES) is None


def test_the_tokens_logits_have_the_prompts_logit_as_their_mean():
    rng = np.random.default_rng(3)
    space = Space(jax.numpy.asarray(rng.normal(size=12)), jax.numpy.asarray(rng.normal(size=(5, 12))))
    keys = [Key(jax.numpy.asarray(rng.normal(size=5)) / 9, jax.numpy.asarray(rng.normal(size=1))) for _ in range(2)]
    states = np.asarray(unit_states(jax.numpy.asarray(rng.normal(size=(30, 12)), jax.numpy.float32)))
    own = token_logits(space, keys, states)
    assert own.shape == (30, 2)
    z = (states.mean(axis=0) - np.asarray(space.mean)) @ np.asarray(space.whitening).T
    for pack, key in enumerate(keys):
        whole = 1 / (1 + np.exp(-own[:, pack].mean()))
        assert whole == pytest.approx(float(score(key, jax.numpy.asarray(z)[None])[0]), abs=1e-5)


def test_the_states_of_the_last_turn_are_its_tokens_and_no_earlier_ones():
    h = np.random.default_rng(1).normal(size=(2, 8, 6)).astype(np.float32)
    weights = np.float32([0, 0.5, 1, 1, 0, 1, 1])
    chunks = [jax.numpy.asarray(h[:, :4]), jax.numpy.asarray(h[:, 4:])]
    found = np.concatenate(list(turn_states(chunks, [weights, weights], 1)))
    np.testing.assert_allclose(found, np.asarray(unit_states(jax.numpy.asarray(h[1, [5, 6]]))), rtol=1e-5)
    for weights, rows in (([0, 1, 1, 1, 1, 1, 0], slice(1, 6)), ([1] * 7, slice(0, 7)), ([0] * 7, slice(0, 0))):
        found = np.concatenate(list(turn_states(chunks, [np.float32(weights)] * 2, 1)))
        np.testing.assert_allclose(found, np.asarray(unit_states(jax.numpy.asarray(h[1, rows]))), rtol=1e-5)


def test_packs_take_turns_by_part_and_those_that_cannot_be_used_take_none():
    code, law = RouteItem("code", 1.0, 0.9, part=2), RouteItem("law", 1.0, 0.8, part=1)
    assert in_turns([code, law]) == [[law], [code]]
    assert in_turns([code, dataclasses.replace(law, gate=0.0)]) == [[code]]
    together = [RouteItem("code", 0.7, 0.9), RouteItem("law", 0.7, 0.8)]
    assert in_turns(together) == [together] and in_turns([]) == [[]]


@pytest.fixture(scope="module")
def packs(tmp_path_factory):
    return write_packs(tmp_path_factory.mktemp("packs"), tiny_base())


@pytest.fixture(scope="module")
def engine(packs):
    with Engine(tiny_base(), packs=packs, context=CONTEXT) as engine:
        yield engine


def alone(engine: Engine, pack: str, max_tokens: int) -> list[int]:
    return asked(engine, OF_TWO_PARTS, pack=pack, max_tokens=max_tokens)[0]


def ends_after(engine: Engine, pack: str, n: int) -> frozenset[int]:
    """What ends the pack's answer after some tokens: the first one from the n-th on that was not there before."""
    tokens = alone(engine, pack, 40)
    return frozenset([next(t for i, t in enumerate(tokens) if i >= n and t not in tokens[:i])])


def asked(engine: Engine, prompt: str, *, ends: frozenset[int] = frozenset(), **settings) -> tuple[list[int], list]:
    """Tokens and route of a request whose answers are closed by `ends`."""
    events: queue.SimpleQueue = queue.SimpleQueue()
    request = engine.request(engine.read(prompt), events.put, ends=ends, **settings)
    tokens = []
    while isinstance(event := events.get(timeout=120), int):
        tokens.append(event)
    assert event.error is None
    return tokens, request.route


@pytest.mark.parametrize("use", ["auto", "sums,shouts", "shouts,sums"])
def test_each_pack_answers_in_its_turn_as_it_would_alone(engine, use):
    between = engine.base.tokenizer.encode(BETWEEN_PARTS, add_bos=False)
    ends = ends_after(engine, "shouts", 4)
    first, second = (until(ends, alone(engine, pack, 80)) for pack in ("shouts", "sums"))
    assert 4 <= len(first) < 40
    tokens, route = asked(engine, OF_TWO_PARTS, pack=use, max_tokens=80, ends=ends)
    assert [(item.pack, item.gate, item.part) for item in route] == [("shouts", 1.0, 1), ("sums", 1.0, 2)]
    assert tokens == [*first, *between, *second][:80]


def until(ends: frozenset[int], tokens: list[int]) -> list[int]:
    return tokens[: next((i for i, token in enumerate(tokens) if token in ends), len(tokens))]


def test_the_first_turn_leaves_the_second_its_share(engine):
    between = engine.base.tokenizer.encode(BETWEEN_PARTS, add_bos=False)
    tokens, _ = asked(engine, OF_TWO_PARTS, pack="auto", max_tokens=30)
    rest = 30 - 15 - len(between)
    assert tokens == [*alone(engine, "shouts", 15), *between, *alone(engine, "sums", rest)]
    few, _ = asked(engine, OF_TWO_PARTS, pack="auto", max_tokens=len(between))
    assert few == alone(engine, "shouts", len(few)) and len(few) == -(-len(between) // 2)


def test_turns_are_taken_in_a_batch_and_with_chance_as_alone(packs):
    with Engine(tiny_base(), packs=packs, context=CONTEXT, lanes=3) as batch:
        sampling = Sampling(temperature=1.0, seed=7)
        wanted = [batch.generate(OF_TWO_PARTS, max_tokens=24, sampling=s).tokens for s in (None, sampling)]
        others = [batch.stream(prompt, max_tokens=40) for prompt in (SUMS[5], SHOUTS[5])]
        streams = [batch.stream(OF_TWO_PARTS, max_tokens=24, sampling=s) for s in (None, sampling)]
        for stream, tokens in zip(streams, wanted, strict=True):
            assert stream.reply("".join(stream)).tokens == tokens
        for stream in others:
            assert len(stream.reply("".join(stream)).tokens) <= 40
        for pack in ("sums", "shouts"):
            batch.packs.unload(pack)  # refused where a request still holds it


def test_taking_turns_compiles_nothing_after_warm_up(engine):
    engine.warm_up()
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, seconds, **_: compiled.append(name))
    engine.generate(OF_TWO_PARTS, max_tokens=30)
    engine.generate(OF_TWO_PARTS, pack="sums,shouts", max_tokens=30)
    jax.monitoring.clear_event_listeners()
    assert compiled == []


def test_the_turn_of_a_pack_that_is_gone_is_the_bases(packs, tmp_path):
    copy = shutil.copytree(packs, tmp_path / "packs")
    with Engine(tiny_base(), packs=copy, context=CONTEXT) as engine:
        assert engine.routing is not None
        (copy / "sums" / "pack.safetensors").write_bytes(b"gone")
        reply = engine.generate(OF_TWO_PARTS, max_tokens=20)
        assert [(item.pack, item.gate) for item in reply.route] == [("shouts", 1.0), ("sums", 0.0)]
        between = engine.base.tokenizer.encode(BETWEEN_PARTS, add_bos=False)
        base = engine.generate(OF_TWO_PARTS, pack="none", max_tokens=20).tokens
        assert reply.tokens == [*reply.tokens[:10], *between, *base[: 10 - len(between)]]
        assert any("sums" in note for note in engine.take_notes())


def test_evaluation_answers_parts_as_the_engine_does(engine):
    items = [Question(prompt, "x", "f:1") for prompt in (OF_TWO_PARTS, SUMS[3])]
    found = evaluate(engine, items, pack="auto").items
    single = {pack: evaluate(engine, items, pack=pack).items for pack in ("sums", "shouts")}
    assert found[0]["text"] == single["shouts"][0]["text"] + BETWEEN_PARTS + single["sums"][0]["text"]
    assert found[1]["text"] == single["sums"][1]["text"]
    assert [entry["part"] for entry in found[0]["route"]] == [1, 2]
    named = evaluate(engine, items, pack="sums,shouts").items
    assert named[0]["text"] == found[0]["text"] and [entry["part"] for entry in named[1]["route"]] == [0, 0]
    together = evaluate(engine, items, pack="auto", parts=False).items[0]
    assert together["text"] != found[0]["text"]
    assert [entry["gate"] for entry in together["route"]] == pytest.approx([2**-0.5] * 2)
    choice = evaluate(engine, [Choice(OF_TWO_PARTS, ("a", "b"), 0, "f:1")], pack="auto").items[0]
    assert [entry["part"] for entry in choice["route"]] == [0, 0]  # a text that is given is read by both together


def test_what_a_raw_text_goes_on_with_is_of_one_piece(engine):
    for use in ("auto", "sums,shouts"):
        reply = engine.generate(OF_TWO_PARTS, pack=use, max_tokens=4, raw=True)
        assert [item.part for item in reply.route] == [0] * len(reply.route)
    assert [item.part for item in route_all(engine, [engine.read(OF_TWO_PARTS, raw=True)])[0]].count(0) > 0


def test_packs_that_were_named_are_all_there_before_the_first_word(packs, tmp_path):
    copy = shutil.copytree(packs, tmp_path / "packs")
    with Engine(tiny_base(), packs=copy, context=CONTEXT) as engine:
        assert engine.routing is not None
        (copy / "sums" / "pack.safetensors").write_bytes(b"gone")
        stream = engine.stream(OF_TWO_PARTS, pack="shouts,sums", max_tokens=20)
        with pytest.raises(InputError, match="sums"):
            "".join(stream)
        assert stream.tokens == []
        engine.packs.unload("shouts")  # nobody holds it


def test_who_names_packs_hears_nothing_of_a_router_that_is_not_there(packs, tmp_path):
    copy = shutil.copytree(packs, tmp_path / "packs")
    shutil.rmtree(copy / "router")
    with Engine(tiny_base(), packs=copy, context=CONTEXT) as engine:
        reply = engine.generate(OF_TWO_PARTS, pack="shouts,sums", max_tokens=4)
        assert [item.part for item in reply.route] == [0, 0] and engine.take_notes() == []


def test_a_turn_that_was_cut_off_is_told(engine):
    ends = ends_after(engine, "sums", 0) - frozenset(alone(engine, "shouts", 40))
    assert ends
    for pack, reason in (("auto", "length"), ("sums", "stop")):
        events: queue.SimpleQueue = queue.SimpleQueue()
        engine.request(engine.read(OF_TWO_PARTS), events.put, pack=pack, max_tokens=30, ends=ends)
        while isinstance(event := events.get(timeout=120), int):
            pass
        assert event.reason == reason


def test_only_the_last_turn_is_cut(engine):
    question = [{"role": "user", "content": OF_TWO_PARTS}]
    follow_up = [*question, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "why?"}]
    first, second = route_all(engine, [engine.read(question), engine.read(follow_up)])
    assert [item.part for item in first] == [1, 2] and all(item.part == 0 for item in second)
