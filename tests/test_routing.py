"""Routing in the engine: promises P1, P2 and P3 with a router, damaged packs, conversations, many prompts at once."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_router import BACKGROUND, SHOUTS, SUMS, TINY, add_pack, same, tiny_base, write_packs
from tiny_take import hidden_of, pooled_of

from mbjax.core.router import forward_routed
from mbjax.engine.conversation import Conversation
from mbjax.engine.engine import Engine
from mbjax.engine.eval_file import Passage, Question
from mbjax.engine.evaluate import evaluate
from mbjax.engine.route_all import route_all

CONTEXT = 256


@pytest.fixture(scope="module")
def base():
    return tiny_base()


@pytest.fixture(scope="module")
def packs(base, tmp_path_factory):
    return write_packs(tmp_path_factory.mktemp("packs"), base)


@pytest.fixture(scope="module")
def engine(base, packs):
    return Engine(base, packs=packs, context=CONTEXT)


def first_logits(engine: Engine, prompt: str) -> np.ndarray:
    """The hidden state that the first token is chosen from, with the packs that the router chooses."""
    return hidden_of(engine, prompt)[1]


def test_own_prompts_call_for_their_pack_and_others_for_none(engine):
    assert [item.pack for item in engine.generate(SUMS[5], max_tokens=2).route] == ["sums"]
    assert [item.pack for item in engine.generate(SHOUTS[5], max_tokens=2).route] == ["shouts"]
    route = engine.generate(BACKGROUND[3], max_tokens=2).route
    assert route == []
    item = engine.generate(SUMS[7], max_tokens=2).route[0]
    assert item.gate == 1 and 0.5 < item.score <= 1


def test_p1_where_nothing_is_selected_the_base_answers_bit_for_bit(engine, base):
    bare = Engine(base, context=CONTEXT)
    for prompt in (*BACKGROUND[:3], " ".join(BACKGROUND[:9])):
        assert engine.generate(prompt, max_tokens=1).route == []
        assert same(first_logits(engine, prompt), state_of(bare, prompt))
        assert engine.generate(prompt, max_tokens=8).tokens == bare.generate(prompt, max_tokens=8).tokens


def state_of(engine: Engine, prompt: str, pack: str = "none") -> np.ndarray:
    return hidden_of(engine, prompt, pack)[1]


def test_a_routed_pack_answers_as_the_forced_one(engine):
    for prompt in (SUMS[1], SUMS[2] + " " + "and so on " * 9):
        ids, hidden = hidden_of(engine, prompt)
        if ids == ["sums"]:
            assert same(hidden, state_of(engine, prompt, "sums"))
    assert not same(state_of(engine, SUMS[1], "sums"), state_of(engine, SUMS[1]))  # the pack does something


def test_p2_installing_a_further_pack_changes_no_bit_of_the_others(engine, base, packs, tmp_path):
    more = shutil.copytree(packs, tmp_path / "more")
    add_pack(more, base, "another", [prompt.replace("+", " plus ") for prompt in SUMS], seed=9)
    fuller = Engine(base, packs=more, context=CONTEXT)
    for prompt in (*BACKGROUND[:4], *SUMS[:4], *SHOUTS[:4]):
        one, other = (e.routing.scores(pooled_of(e, prompt)) for e in (engine, fuller))
        assert set(other) == {*one, "another"}
        assert all(one[pack] == other[pack] for pack in one)
        if "another" not in [item.pack for item in fuller.generate(prompt, max_tokens=1).route]:
            assert same(first_logits(engine, prompt), first_logits(fuller, prompt))


def test_p3_routing_and_swapping_compile_nothing_after_warm_up(engine):
    engine.warm_up()
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, seconds, **_: compiled.append(name))
    for prompt in (SUMS[9], SHOUTS[9], BACKGROUND[9], SUMS[11]):
        engine.generate(prompt, max_tokens=12)
        for pack in ("sums", "shouts"):
            engine.packs.unload(pack)
    engine.generate(SUMS[9], pack="sums,shouts", max_tokens=3)
    jax.monitoring.clear_event_listeners()
    assert compiled == []


def test_the_routed_pass_in_one_program_agrees_with_the_engine(engine):
    routing = engine.routing
    ids = sorted(routing.keys)
    candidates = engine.packs.use(tuple(ids))
    for prompt in (SUMS[3], SHOUTS[3], BACKGROUND[5]):
        read = engine.read(prompt)
        _, gates, scores = forward_routed(
            engine.base.params,
            routing.space,
            tuple(routing.keys[pack].key for pack in ids),
            jnp.asarray(np.float32([routing.keys[pack].threshold for pack in ids])),
            candidates,
            jnp.asarray(np.int32([read.ids])),
            jnp.asarray(read.weights[None]),
            config=TINY,
        )
        chosen = {item.pack: item.gate for item in engine.generate(prompt, max_tokens=1).route}
        np.testing.assert_allclose(np.asarray(gates)[0], [chosen.get(pack, 0) for pack in ids], rtol=1e-6)
        exact = routing.scores(pooled_of(engine, prompt))
        np.testing.assert_allclose(np.asarray(scores)[0], [exact[pack] for pack in ids], atol=1e-4)


def test_a_damaged_pack_leaves_the_answer_to_the_base(base, packs, tmp_path):
    copy = shutil.copytree(packs, tmp_path / "packs")
    engine = Engine(base, packs=copy, context=CONTEXT)
    assert engine.routing is not None  # its keys were read while all was well
    (copy / "sums" / "pack.safetensors").write_bytes(b"gone")
    reply = engine.generate(SUMS[5], max_tokens=4)
    assert [(item.pack, item.gate) for item in reply.route] == [("sums", 0.0)]
    assert reply.tokens == Engine(base, context=CONTEXT).generate(SUMS[5], max_tokens=4).tokens
    assert len(engine.notes) == 1 and "sums" in engine.take_notes()[0]
    reread = Engine(base, packs=copy, context=CONTEXT)  # damaged before: never chosen, and said so
    assert reread.generate(SUMS[5], max_tokens=2).route == []
    assert any("sums is never chosen" in note for note in reread.take_notes())


def test_without_a_router_the_base_answers_alone_and_says_so_once(base, packs, tmp_path):
    copy = shutil.copytree(packs, tmp_path / "packs")
    shutil.rmtree(copy / "router")
    engine = Engine(base, packs=copy, context=CONTEXT)
    for _ in range(2):
        assert engine.generate(SUMS[5], max_tokens=2).route == []
    notes = engine.take_notes()
    assert len(notes) == 1 and "no router" in notes[0]
    (copy / "router").mkdir()
    (copy / "router" / "router.json").write_text("{}")
    damaged = Engine(base, packs=copy, context=CONTEXT)
    assert damaged.generate(SUMS[5], max_tokens=2).route == []
    assert "router.json" in damaged.take_notes()[0]


def test_a_key_of_another_router_is_not_used(base, packs, tmp_path):
    from tiny_router import quiet

    from mbjax.training.route import train_router

    copy = shutil.copytree(packs, tmp_path / "packs")
    train_router(base, BACKGROUND[:-1], copy / "router", quiet)
    engine = Engine(base, packs=copy, context=CONTEXT)
    assert engine.generate(SUMS[5], max_tokens=2).route == []
    assert all("another router" in note for note in engine.take_notes())


def test_a_short_follow_up_keeps_the_route_and_a_new_subject_changes_it(engine):
    conversation = Conversation(engine)
    routes = []
    for text in (SUMS[5], "why?", SHOUTS[5]):
        stream = conversation.ask(text, max_tokens=3)
        conversation.answered("".join(stream))
        routes.append([item.pack for item in stream.route])
    assert routes[:2] == [["sums"], ["sums"]] and routes[2] != ["sums"]


def test_many_prompts_at_once_are_routed_as_one_by_one(engine):
    prompts = [*SUMS[:9], *BACKGROUND[:5], SHOUTS[0], SHOUTS[1] * 6]
    together = route_all(engine, [engine.read(prompt) for prompt in prompts])
    for prompt, route in zip(prompts, together, strict=True):
        alone = engine.generate(prompt, max_tokens=1).route
        assert [item.pack for item in route] == [item.pack for item in alone]
        assert all(abs(a.score - b.score) < 1e-4 for a, b in zip(route, alone, strict=True))


def test_evaluation_routes_each_line_and_takes_known_results(engine):
    items = [Question(prompt, "x", "f:1") for prompt in (SUMS[3], BACKGROUND[2], SHOUTS[3], SUMS[4])]
    routed = evaluate(engine, items, pack="auto")
    assert [[e["pack"] for e in item["route"]] for item in routed.items] == [["sums"], [], ["shouts"], ["sums"]]
    forced = {pack: evaluate(engine, items, pack=pack).items for pack in ("none", "sums", "shouts")}
    for i, pack in enumerate(("sums", "none", "shouts", "sums")):
        assert routed.items[i]["text"] == forced[pack][i]["text"]
    known = {(): forced["none"], ("sums",): [{**item, "text": "known"} for item in forced["sums"]]}
    again = evaluate(engine, items, pack="auto", known=known)
    assert [item["text"] for item in again.items] == [
        "known",
        routed.items[1]["text"],
        routed.items[2]["text"],
        "known",
    ]
    passages = [Passage(SUMS[3], "f:1"), Passage(BACKGROUND[2], "f:2")]
    bits = evaluate(engine, passages, pack="auto").items
    plain = evaluate(engine, passages, pack="none").items
    assert [item["bits"] == other["bits"] for item, other in zip(bits, plain, strict=True)][1]


def test_calibration_is_deterministic_and_changes_nothing_else(base, packs, tmp_path):
    copy = shutil.copytree(packs, tmp_path / "packs")
    before = json.loads((copy / "sums" / "pack.json").read_text())
    add_pack(copy, base, "sums2", SUMS, seed=1)
    from tiny_router import quiet

    from mbjax.io.pack_dir import read_pack
    from mbjax.training.route import calibrate_pack

    tensors = (copy / "sums" / "pack.safetensors").read_bytes()
    calibrate_pack(copy / "sums", [SUMS], copy / "router", base, quiet)
    assert (copy / "sums" / "pack.safetensors").read_bytes() == tensors
    assert json.loads((copy / "sums" / "pack.json").read_text()) == before
    one, other = (read_pack(copy / name).route for name in ("sums", "sums2"))
    assert dataclasses.asdict(one)["threshold"] == other.threshold
    assert all(same(one.tensors[name], other.tensors[name]) for name in one.tensors)


def test_a_key_learns_what_is_not_its_own(base, packs, tmp_path):
    """A pack calibrated on all sums takes the marked ones, too; told that they are not its own it leaves them."""
    from tiny_router import quiet

    from mbjax.training.route import calibrate_pack

    copy = shutil.copytree(packs, tmp_path / "packs")
    marked = [f"{prompt} #count the digits#" for prompt in SUMS]
    taken = []
    for against in ([], [marked[::2]]):
        calibrate_pack(copy / "sums", [SUMS], copy / "router", base, quiet, against=against)
        engine = Engine(base, packs=copy, context=CONTEXT)
        routes = route_all(engine, [engine.read(prompt) for prompt in (*SUMS, *marked[1::2])])
        chosen = ["sums" in [item.pack for item in route] for route in routes]
        taken.append((sum(chosen[: len(SUMS)]) / len(SUMS), sum(chosen[len(SUMS) :]) / len(marked[1::2])))
    assert taken[1][1] < 0.2 < taken[0][1] and taken[1][0] > 0.8


def test_files_of_foreign_prompts_weigh_the_same(base, packs):
    """A short file beside a long one weighs as if its lines stood there as often as it takes."""
    from tiny_router import quiet

    from mbjax.io.router_dir import load_router
    from mbjax.training.route import fit_route

    router = load_router(packs / "router", base)
    few, many = [f"{prompt} #count#" for prompt in SUMS[:4]], list(SHOUTS)
    times = round(len(many) / len(few))
    keys = (fit_route(router, base, [SUMS], quiet, against) for against in ([few, many], [few * times, many], [many]))
    once, often, none = (key.direction / np.linalg.norm(key.direction) for key in keys)  # its length is calibration
    assert times > 1 and once @ often > 0.9999 > once @ none
