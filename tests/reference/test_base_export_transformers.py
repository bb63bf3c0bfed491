"""A base that `mbjax train base` wrote gives the same logits and token ids in transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_base_run import CONFIG, write_data

from mbjax.core.base_train import new_base, unstacked
from mbjax.core.forward import forward
from mbjax.io.hf_export import write_hf
from mbjax.io.load import load_base

pytestmark = pytest.mark.reference


@pytest.mark.filterwarnings("default")
def test_the_exported_base_gives_the_same_logits(home, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, model = write_data(tmp_path), CONFIG.model
    params = unstacked(jax.device_get(jax.jit(lambda seed: new_base(model, seed))(np.uint32(1))), model)
    write_hf(tmp_path / "base", params, model, folder / "tokenizer")
    ours, theirs = load_base(tmp_path / "base"), AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    text = "abc  déf 123\n\tghi"
    ids = ours.tokenizer.encode(text)
    assert ids == AutoTokenizer.from_pretrained(tmp_path / "base")(text).input_ids
    tokens = np.asarray([ids], np.int32)
    gates = jnp.zeros((*tokens.shape, 0), jnp.float32)
    logits, _ = forward(ours.params, (), gates, jnp.asarray(tokens), config=ours.config)
    with torch.no_grad():
        wanted = theirs.float()(torch.from_numpy(tokens.astype(np.int64))).logits.numpy()
    np.testing.assert_allclose(logits, wanted, atol=1e-4 * np.abs(wanted).max())
