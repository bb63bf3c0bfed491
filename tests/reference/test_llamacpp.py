"""The default base against llama.cpp on the same GGUF file: logits over 20 real texts, token ids of 2,000 lines."""

import pytest

pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")


@pytest.mark.reference
@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # what llama.cpp's bindings warn of is not ours
def test_every_target_is_met(smollm2) -> None:
    from compare_llamacpp import checks, compare

    rows = checks(compare(speed=False))
    assert len(rows) == 4
    assert [f"{what}: {value}, {bound}" for what, value, bound, met in rows if not met] == []
