"""The base digest: pinned, ordered, and blind to how a file says the same."""

import dataclasses
import hashlib

import numpy as np
import pytest
from tiny_bases import CONFIG, random_weights

from mbjax.core.config import RopeScaling
from mbjax.io.digest import base_digest


def test_it_is_the_hash_that_the_design_describes():
    config = dataclasses.replace(CONFIG, head_dim=4, rope_theta=10_000.0)
    tensors = [("a", np.array([[1, -2]], np.float32)), ("b", np.array([0.5], np.float32))]
    settings = b'{"head_dim":4,"inv_freq":["1.0000e+00","1.0000e-02"],"n_heads":4,"n_kv_heads":2,"rms_eps":"1.000000e-05","tied":true}'
    data = b"a\x001,2\x00\x00\x00\x80?\x00\x00\x00\xc0b\x001\x00\x00\x00\x00?"
    assert base_digest(config, tensors) == hashlib.sha256(data + settings).hexdigest()


def test_every_part_counts():
    weights = sorted(random_weights().items())
    digests = {base_digest(CONFIG, weights)}
    changes = ({"n_heads": 2}, {"head_dim": 32}, {"rms_eps": 1e-6}, {"rope_theta": 5e5}, {"tied_head": False})
    digests |= {base_digest(dataclasses.replace(CONFIG, **change), weights) for change in changes}
    name, array = weights[0]
    digests |= {base_digest(CONFIG, [("a" + name, array), *weights[1:]])}
    digests |= {base_digest(CONFIG, [(name, array.reshape(-1)), *weights[1:]])}
    digests |= {base_digest(CONFIG, [(name, np.nextafter(array, np.float32(9))), *weights[1:]])}
    assert len(digests) == 9
    assert base_digest(dataclasses.replace(CONFIG, max_context=9, tap=0), weights) in digests  # no weight depends on it


def test_memory_order_does_not_count():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert base_digest(CONFIG, [("a", array)]) == base_digest(CONFIG, [("a", np.asfortranarray(array))])


def test_llama3_parameters_and_gguf_factors_agree():
    llama3 = dataclasses.replace(CONFIG, rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 64))
    ratios = [np.float32(p / s) for p, s in zip(CONFIG.inv_freq(), llama3.inv_freq(), strict=True)]
    factors = dataclasses.replace(CONFIG, rope_scaling=RopeScaling("factors", factors=tuple(map(float, ratios))))
    assert ratios[0] == 1 and ratios[-1] == 8
    assert base_digest(llama3, []) == base_digest(factors, []) != base_digest(CONFIG, [])


def test_order_and_dtype_are_checked():
    one = np.zeros(1, np.float32)
    for names in (("b", "a"), ("a", "a")):
        with pytest.raises(ValueError, match="sorted by name"):
            base_digest(CONFIG, [(name, one) for name in names])
    with pytest.raises(ValueError, match="not float32"):
        base_digest(CONFIG, [("a", one.astype(np.float16))])
