"""Prompts as the arrays that programs take."""

import jax
import numpy as np

from mbjax.engine.chunks import chunk_shape, chunks_of, parts_of

SIZES = (16, 4)


def test_a_chunk_carries_what_its_prompts_are_made_of_bit_by_bit():
    prompts = [list(range(1, 20)), list(range(101, 119))]
    weights = [np.linspace(0, 1, len(ids), dtype=np.float32) for ids in prompts]
    at = 0
    for chunk in chunks_of(prompts, SIZES, weights):
        assert (chunk.values.shape, chunk.values.dtype) == (chunk_shape(chunk.size, chunk.rows).shape, np.int32)
        tokens, shares, start, n_valid = map(np.asarray, jax.jit(parts_of)(chunk.values))
        for row, (ids, own) in enumerate(zip(prompts, weights, strict=True)):
            n = len(ids[at : at + chunk.size])
            assert (start[row], n_valid[row]) == (at, n)
            np.testing.assert_array_equal(tokens[row], ids[at : at + n] + [0] * (chunk.size - n))
            np.testing.assert_array_equal(shares[row, :n], own[at : at + n])
            assert not shares[row, n:].any()
        at += chunk.size
    assert at >= 19


def test_prompts_that_no_router_reads_weigh_nothing():
    (chunk,) = chunks_of([[7, 8, 9]], SIZES)
    assert not np.asarray(parts_of(chunk.values).weights).any()
