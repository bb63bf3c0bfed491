"""An engine on a quantised base: what it holds, what it says, and which dtypes its cache may have."""

import dataclasses

import pytest
from test_kernels import needs_native
from tiny import random_base
from tiny_engine import TINY, tiny_engine

from mbjax.core.fused import Bundle
from mbjax.core.quantize import RULES, quantize
from mbjax.engine.batch import answer_all
from mbjax.engine.engine import Engine
from mbjax.engine.plan import Wishes, plan
from mbjax.errors import InputError


def engine_of(scheme: str = "int8", kv_dtype: str = "auto") -> Engine:
    params, _ = quantize(random_base(TINY), RULES[scheme])
    return Engine(dataclasses.replace(tiny_engine().base, params=params), context=64, kv_dtype=kv_dtype)


@needs_native
@pytest.mark.parametrize(("kv_dtype", "width"), [("auto", 2), ("float32", 4), ("bfloat16", 2), ("int8", 1.25)])
def test_the_cache_takes_the_dtype_asked_for_and_a_plan_says_so(kv_dtype, width):
    engine = engine_of(kv_dtype=kv_dtype)
    assert isinstance(engine.base.params.layers, Bundle)
    assert engine.generate("abc", max_tokens=5, raw=True).tokens
    planned, held = plan(TINY, Wishes("int8", kv_dtype, context=64)), engine.memory().components
    assert {name: held[name] for name in ("base", "kv")} == {name: planned.components[name] for name in ("base", "kv")}
    positions = 2 * TINY.n_layers * TINY.n_kv_heads * 64
    between = TINY.d_model * 4  # tap states between a prompt's two phases
    assert planned.position_bytes == pytest.approx(
        positions * TINY.head_dim * width / 64 + between, abs=1
    )  # int8: a scale of 4


@needs_native
def test_an_answer_is_the_same_alone_and_in_a_batch():
    engine, prompts = engine_of("int4"), [[5, 9, 80], [7], [200, 3, 3, 3, 17]]
    alone = [engine.generate("".join(map(chr, ids)), max_tokens=8, raw=True).tokens for ids in prompts]
    ids = [engine.encode("".join(map(chr, ids)), raw=True) for ids in prompts]
    ends = engine.base.tokenizer.eos_ids
    assert answer_all(engine.base.params, TINY, ids, max_tokens=8, ends=ends) == alone


def test_another_dtype_of_the_cache_is_refused():
    with pytest.raises(InputError, match="kv_dtype is 'int3'"):
        engine_of(kv_dtype="int3")
