"""The packs in `packs/`: sound, bound to the default base, and without effect where they are not selected."""

import shutil
from pathlib import Path

import pytest

from mbjax.engine.engine import Engine
from mbjax.io.pack_check import list_packs

ROOT = Path(__file__).parent.parent
PACKS = ROOT / "packs"


def test_every_shipped_pack_is_sound():
    found = list_packs(PACKS, verify=True)
    assert [pack.id for pack in found] == ["chat", "code", "creative", "legal", "medical", "reasoning"]
    assert all(pack.manifest.route is not None and pack.manifest.bytes <= 4_000_000 for pack in found)
    assert not [problem for pack in found for problem in pack.problems]
    assert sum(pack.manifest.bytes for pack in found) <= 30_000_000


@pytest.fixture(scope="module")
def engine(smollm2):
    return Engine(smollm2, packs=PACKS, context=512)


@pytest.mark.slow
def test_p2_another_pack_changes_nothing_for_a_prompt_that_does_not_select_it(smollm2, tmp_path):
    """Real prompts and packs: tokens, gates and scores with all packs installed and with the selected one alone."""
    prompts = {
        "medical": "Which ICD-10 chapter is whooping cough in?",
        "reasoning": "A farmer has 12 hens and buys 15 more. How many hens has he?",
    }
    for pack, prompt in prompts.items():
        for name in (pack, "router"):
            shutil.copytree(PACKS / name, tmp_path / pack / name)
        one, all_of_them = (Engine(smollm2, packs=packs, context=512) for packs in (tmp_path / pack, PACKS))
        alone, beside = (engine.generate(prompt, max_tokens=12) for engine in (one, all_of_them))
        assert [item.pack for item in beside.route] == [pack]
        assert alone.tokens == beside.tokens and alone.route == beside.route


@pytest.mark.slow
def test_p1_without_a_pack_the_base_answers_bit_for_bit(engine, smollm2):
    """An engine with packs installed, and one without any, on real prompts."""
    bare = Engine(smollm2, context=512)
    for prompt in ("What is the capital of France?", "Write a short poem about the sea."):
        packed, plain = (e.generate(prompt, pack="none", max_tokens=12) for e in (engine, bare))
        assert packed.tokens == plain.tokens
        assert packed.route == []
