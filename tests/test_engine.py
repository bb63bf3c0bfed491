"""Requests that share one batch: lane independence (P2), nothing compiled (P3), cancelling, deadlines, the queue."""

import asyncio
import dataclasses
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import pytest
from test_kernels import needs_native
from tiny import random_base
from tiny_engine import tiny_engine
from tiny_router import BACKGROUND, SHOUTS, SUMS, TINY, tiny_base, write_packs

from mbjax.core.quantize import RULES, quantize
from mbjax.core.sampling import Sampling
from mbjax.engine.device import Device
from mbjax.engine.engine import Engine
from mbjax.errors import FailureError, InputError

CONTEXT = 128
PROMPTS = [SUMS[1], SHOUTS[1], BACKGROUND[1], BACKGROUND[2] + " and more" * 5, SUMS[2]]


def base_of(form: str):
    base = tiny_base()
    if form == "float32":
        return base
    return dataclasses.replace(base, params=quantize(random_base(TINY), RULES[form])[0])


@pytest.fixture(scope="module")
def packs(tmp_path_factory):
    return write_packs(tmp_path_factory.mktemp("packs"), tiny_base())


@pytest.fixture(scope="module", params=["float32", pytest.param("int8", marks=needs_native)])
def engine(request, packs):
    with Engine(base_of(request.param), packs=packs, context=CONTEXT, lanes=4, most_waiting=8) as engine:
        yield engine


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("mbjax")]


def test_p2_a_lanes_greedy_tokens_do_not_depend_on_its_neighbours(engine):
    uses = ("auto", "none", "sums", "shouts", "sums,shouts")
    jobs = [(prompt, use, n) for use in uses for prompt, n in zip(PROMPTS, (5, 17, 30, 11, 24), strict=True)]
    alone = [engine.generate(prompt, pack=use, max_tokens=n) for prompt, use, n in jobs]
    for at in range(0, len(jobs), 5):
        streams = [engine.stream(prompt, pack=use, max_tokens=n) for prompt, use, n in jobs[at::5]]
        for stream, reply in zip(streams, alone[at::5], strict=True):
            text = "".join(stream)
            assert (stream.tokens, text) == (reply.tokens, reply.text)
            assert [item.pack for item in stream.route] == [item.pack for item in reply.route]


def test_a_seed_decides_a_lanes_samples_whoever_is_beside_it(engine):
    settings = [Sampling(temperature=1.5, top_k=9, seed=seed, repetition_penalty=1.1) for seed in (3, 4, 3)]
    alone = [engine.generate(PROMPTS[0], sampling=one, max_tokens=12).tokens for one in settings]
    streams = [engine.stream(PROMPTS[0], sampling=one, max_tokens=12) for one in settings]
    assert ["".join(stream) and stream.tokens for stream in streams] == alone
    assert alone[0] == alone[2] != alone[1]


def test_p3_joining_leaving_and_swapping_compile_nothing(engine):
    engine.warm_up()
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, seconds, **_: compiled.append(name))
    for use in ("auto", "sums", "none", "sums,shouts"):
        streams = [engine.stream(prompt, pack=use, max_tokens=3 + 4 * i) for i, prompt in enumerate(PROMPTS)]
        for stream in streams:
            "".join(stream)
        for pack in ("sums", "shouts"):
            engine.packs.unload(pack)
    jax.monitoring.clear_event_listeners()
    assert compiled == []


def test_p3_nothing_is_compiled_without_a_router_either():
    compiled = []
    with tiny_engine() as engine:
        engine.warm_up()
        jax.monitoring.register_event_duration_secs_listener(lambda name, seconds, **_: compiled.append(name))
        engine.generate("one", max_tokens=3)
        jax.monitoring.clear_event_listeners()
    assert compiled == []


def test_a_long_prompt_does_not_stall_the_others(engine):
    """Between two steps at most one chunk is taken in."""
    taken, device = [], engine.scheduler._device
    understand, step = device.understand, device.step
    device.understand = lambda *args: (taken.append("chunk"), understand(*args))[1]
    device.step = lambda group: (taken.append("step"), step(group))[1]
    try:
        first = engine.stream(PROMPTS[0], pack="none", max_tokens=60)
        next(first)
        late = engine.stream("x" * 100, raw=True, pack="none", max_tokens=2)
        "".join(late), "".join(first)
    finally:
        device.understand, device.step = understand, step
    text = "".join(kind[0] for kind in taken)
    assert "cc" not in text[text.index("s") :]


def test_cancelling_frees_the_lane(engine):
    streams = [engine.stream(prompt, pack="sums", max_tokens=100) for prompt in PROMPTS[:4]]
    for stream in streams:
        next(stream)
        stream.close()
    begin = time.monotonic()
    assert len(engine.generate(PROMPTS[0], max_tokens=4).tokens) == 4
    assert time.monotonic() - begin < 20
    assert all(stream.finish == "cancelled" and len(stream.tokens) < 100 for stream in streams)
    assert all(state.users == 0 for state in engine.packs.list())


def test_a_deadline_ends_an_answer_with_what_there_is(engine):
    late = engine.generate(PROMPTS[0], max_tokens=100, timeout=0.0)
    assert (late.tokens, late.finish) == ([], "deadline")
    assert engine.generate(PROMPTS[0], max_tokens=3, timeout=60.0).finish == "length"


def test_a_full_queue_refuses_clearly(engine):
    gate, deliveries = threading.Event(), []

    def hold(event):
        gate.wait()
        deliveries.append(event)

    read = engine.read(PROMPTS[0])
    requests = [engine.request(read, hold, pack="none", max_tokens=2) for _ in range(4)]
    with pytest.raises(FailureError, match="requests wait already"):
        for _ in range(20):
            requests.append(engine.request(read, hold, pack="none", max_tokens=2))
    gate.set()
    while not all(request.ended for request in requests):
        time.sleep(0.01)
    assert len(engine.generate(PROMPTS[0], max_tokens=2, pack="none").tokens) == 2
    assert len(requests) <= 4 + 8 + 1


def test_wrong_requests_hurt_nobody_else(engine):
    stream = engine.stream(PROMPTS[0], pack="none", max_tokens=20)
    for settings, reason in (({"max_tokens": 0}, "at least 1"), ({"pack": "gone"}, "no pack 'gone'")):
        with pytest.raises(InputError, match=reason):
            engine.generate(PROMPTS[1], **settings)
    with pytest.raises(InputError, match="tokens and the context"):
        engine.generate("x" * 1000)
    assert "".join(stream) and len(stream.tokens) == 20


def test_a_reader_that_fails_hurts_nobody_else(engine):
    def fail(event):
        raise RuntimeError("gone")

    stream = engine.stream(PROMPTS[0], pack="none", max_tokens=20)
    request = engine.request(engine.read(PROMPTS[1]), fail, pack="none", max_tokens=20)
    assert "".join(stream) and len(stream.tokens) == 20
    assert request.cancelled and len(request.tokens) < 20


def test_the_asynchronous_calls_give_the_same_answers(engine):
    expected = [engine.generate(prompt, max_tokens=9).text for prompt in PROMPTS]

    async def ask() -> list[str]:
        replies = await asyncio.gather(*(engine.agenerate(prompt, max_tokens=9) for prompt in PROMPTS))
        pieces = [piece async for piece in engine.astream(PROMPTS[0], max_tokens=9)]
        assert "".join(pieces) == expected[0]
        return [reply.text for reply in replies]

    assert asyncio.run(ask()) == expected


def test_many_threads_may_ask_at_once(engine):
    expected = {prompt: engine.generate(prompt, max_tokens=6).tokens for prompt in PROMPTS}
    wrong = []

    def ask(prompt: str) -> None:
        for _ in range(3):
            if engine.generate(prompt, max_tokens=6).tokens != expected[prompt]:
                wrong.append(prompt)

    workers = [threading.Thread(target=ask, args=(prompt,)) for prompt in PROMPTS]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


def test_closing_leaves_no_thread_and_ends_what_runs(packs):
    before = threads()
    engine = Engine(tiny_base(), packs=packs, context=CONTEXT)
    stream = engine.stream(PROMPTS[0], pack="sums", max_tokens=100)
    next(stream)
    engine.close()
    "".join(stream)
    assert stream.finish == "cancelled"
    assert threads() == before
    engine.close()
    with pytest.raises(InputError, match="closed"):
        engine.generate("more")


def test_a_program_may_end_while_an_answer_is_being_computed():
    code = """
from tiny_router import tiny_base
from mbjax.engine.engine import Engine
engine = Engine(tiny_base(), context=256, lanes=4)
streams = [engine.stream("more", max_tokens=250) for _ in range(40)]
next(streams[0])
"""
    own = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", code], cwd=own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_drafts_change_no_greedy_token(packs):
    text = " ".join(["the cat sat on the mat and"] * 3)
    with Engine(tiny_base(), packs=packs, context=CONTEXT, drafts=False) as plain:
        expected = {use: plain.generate(text, pack=use, max_tokens=40, raw=True).tokens for use in ("none", "sums")}
    with Engine(tiny_base(), packs=packs, context=CONTEXT) as drafting:
        seen, scheduler = [], drafting.scheduler
        draft = scheduler._draft
        scheduler._draft = lambda request: (seen.append(draft(request)), seen[-1])[1]
        for use, tokens in expected.items():
            assert drafting.generate(text, pack=use, max_tokens=40, raw=True).tokens == tokens
        assert any(seen)


def test_named_packs_take_a_prompt_chunk_by_chunk(packs, monkeypatch):
    calls = []
    for phase in ("understand", "fuse"):
        plain = getattr(Device, phase)
        monkeypatch.setattr(
            Device, phase, lambda *args, plain=plain, phase=phase: (calls.append(phase), plain(*args))[1]
        )
    with Engine(tiny_base(), packs=packs, context=CONTEXT) as engine:
        engine.packs.load("sums")
        for use in ("sums", "auto"):
            calls.clear()
            engine.generate("a" * 40, pack=use, max_tokens=2, raw=True)
            n_chunks = len(calls) // 2
            assert n_chunks > 1
            assert calls == (["understand", "fuse"] * n_chunks if use == "sums" else sorted(calls, reverse=True))
