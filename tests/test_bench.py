"""The measurements of `bench`."""

import json

import pytest
from tiny_engine import TINY, tiny_engine

from mbjax.engine.bench import bench, read_bandwidth
from mbjax.engine.programs import tree_bytes
from mbjax.errors import InputError
from mbjax.kernels.native import isa


def test_the_figures_hang_together():
    engine, runs = tiny_engine(context=64), []
    result = bench(engine, prompt_tokens=20, decode_tokens=9, repeats=2, progress=lambda *at: runs.append(at))
    assert runs == [(1, 3), (2, 3), (3, 3)]
    assert min(result.prefill_tok_s, result.decode_tok_s, result.bandwidth) > 0
    kv = TINY.n_layers * 2 * TINY.n_kv_heads * TINY.head_dim * 4
    assert result.bytes_per_token == tree_bytes(engine.base.params) + 5 * kv  # 1 to 9 positions, 5 in the mean
    assert result.bandwidth_share == pytest.approx(result.bytes_per_token * result.decode_tok_s / result.bandwidth)
    assert result.memory == engine.memory()
    document = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert {"prefill_tok_s", "decode_tok_s", "bandwidth_share", "swap_s", "memory"} <= set(document)
    assert document["swap_s"] is None
    assert document["kernels"] == isa()


@pytest.mark.parametrize(
    "settings", [{"prompt_tokens": 65}, {"prompt_tokens": 0}, {"decode_tokens": 64}, {"repeats": 0}]
)
def test_what_the_context_does_not_hold_is_refused(settings):
    with pytest.raises(InputError, match="the context is 64"):
        bench(tiny_engine(context=64), **settings)


def test_bandwidth_is_bytes_per_second():
    assert 10**7 < read_bandwidth(n_bytes=2**22, repeats=2) < 10**14
