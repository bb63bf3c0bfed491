"""MinHash: signatures estimate the Jaccard similarity, and banding finds what is similar and nothing else."""

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
from tiny_corpus import documents

from mbjax.training.near_duplicates import N_HASHES, near_duplicates, signature


def shingles(text: str) -> set[bytes]:
    data = " ".join(text.lower().split()).encode()
    return {data[i : i + 8] for i in range(len(data) - 7)}


def changed(text: str, n: int, rng: random.Random) -> str:
    words = text.split()
    for i in rng.sample(range(len(words)), n):
        words[i] = rng.choice(["other", "words", "instead", "of", "these"])
    return " ".join(words)


def test_equal_entries_estimate_the_similarity():
    rng, errors = random.Random(1), []
    for i, text in enumerate(documents(60, words=150)):
        other = changed(text, i // 3, rng)
        a, b = shingles(text), shingles(other)
        errors.append(np.mean(signature(text) == signature(other)) - len(a & b) / len(a | b))
    assert abs(np.mean(errors)) < 0.015 and np.std(errors) < 0.05  # 0.5 / sqrt(128) = 0.044 at the worst similarity


def test_case_and_spacing_do_not_count_and_short_texts_have_a_signature():
    assert np.array_equal(signature("One  two\nTHREE four"), signature("one two three four"))
    assert signature("a").shape == signature("").shape == (N_HASHES,)
    assert not np.array_equal(signature("a"), signature("b"))
    long = " ".join(documents(200))  # several blocks of shingles
    assert np.array_equal(signature(long), np.minimum(signature(long[:6_000]), signature(long[5_000:])))


def test_the_later_of_two_similar_documents_goes():
    rng = random.Random(2)
    texts = documents(200, words=100)
    twins = [changed(text, 2, rng) for text in texts[:50]]
    signatures = np.stack([signature(text) for text in [*texts, *twins]])
    dropped = near_duplicates(signatures, 0.8, np.zeros(250, bool))
    true = [len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b)) for a, b in zip(texts, twins, strict=False)]
    assert not dropped[:200].any() and dropped[200:].sum() >= 0.9 * sum(s > 0.85 for s in true) > 20
    skipped = near_duplicates(signatures, 0.8, np.arange(250) < 50)  # the originals play no part: their twins stay
    assert not skipped.any()
    assert np.array_equal(near_duplicates(signatures, 0.8, np.zeros(250, bool)), dropped)


def test_many_copies_leave_one():
    signatures = np.repeat(np.stack([signature(text) for text in documents(3)]), 500, axis=0)
    dropped = near_duplicates(signatures, 0.8, np.zeros(1_500, bool))
    assert np.flatnonzero(~dropped).tolist() == [0, 500, 1_000]


def test_the_program_that_measures_memory_runs():
    program = Path(__file__).parents[1] / "infer" / "corpus_memory.py"
    command = [sys.executable, str(program), "--documents", "8000", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert measured["growth"] < 60e6 and measured["found"] > 0.85
