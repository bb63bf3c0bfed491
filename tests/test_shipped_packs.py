"""The packs in `packs/`: sound, bound to the default base, and worth what their scores say."""

import json
from pathlib import Path

import numpy as np
import pytest

from mbjax.engine.engine import Engine
from mbjax.engine.eval_file import read_items
from mbjax.engine.evaluate import evaluate
from mbjax.io.pack_check import list_packs

ROOT = Path(__file__).parent.parent
PACKS = ROOT / "packs"


def test_every_shipped_pack_is_sound():
    found = list_packs(PACKS, verify=True)
    assert [pack.id for pack in found] == ["medical"]
    assert not [problem for pack in found for problem in pack.problems]
    assert sum(pack.manifest.bytes for pack in found) <= 30_000_000


@pytest.fixture(scope="module")
def engine(smollm2):
    return Engine(smollm2, packs=PACKS, context=512)


@pytest.mark.slow
def test_medical_names_the_chapter(engine):
    """A seeded sample of the held-out synonyms: within three standard errors of the shipped score."""
    scores = {s["task"]: s for s in json.loads((PACKS / "medical/scores.json").read_text())["scores"]}
    items = read_items(Path(__file__).parent / "data/medical_sample.jsonl")
    share = evaluate(engine, items, pack="medical").summary["value"]
    expected = scores["chapter"]["pack"]
    assert abs(share - expected) <= 3 * np.sqrt(expected * (1 - expected) / len(items))
    assert expected >= 0.6


@pytest.mark.slow
def test_p1_without_a_pack_the_base_answers_bit_for_bit(engine, smollm2):
    """An engine with packs installed, and one without any, on real prompts."""
    bare = Engine(smollm2, context=512)
    for prompt in ("What is the capital of France?", "Write a short poem about the sea."):
        packed, plain = (e.generate(prompt, pack="none", max_tokens=12) for e in (engine, bare))
        assert packed.tokens == plain.tokens
        assert packed.route == []
