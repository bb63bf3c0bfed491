"""Batches of a base's training: the same whatever the processes and restarts, shuffled, and mixed by weight."""

import itertools

import numpy as np
import pytest
from tiny_corpus import tiny_corpus

from mbjax.errors import InputError
from mbjax.training.base_data import base_batches, row_targets
from mbjax.training.corpus import open_corpus

FIELDS = ("tokens", "targets", "segments", "positions")


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpora")
    return {"large": (tiny_corpus(root / "large", 120), 3.0), "small": (tiny_corpus(root / "small", 20, seed=1), 1.0)}


def take(corpora, n, **options) -> list:
    return list(itertools.islice(base_batches(corpora, **{"rows": 8, "seed": 5, **options}), n))


def equal(one, other) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in FIELDS)


def joined(batches) -> list[bytes]:
    return [row.tobytes() for batch in batches for row in batch.tokens]


def test_targets_are_the_next_tokens_of_the_same_document(corpora):
    batch = take(corpora, 1)[0]
    for name in FIELDS:
        assert getattr(batch, name).shape == (8, 64) and getattr(batch, name).dtype == np.int32
    for tokens, targets, segments, positions in zip(*(getattr(batch, name) for name in FIELDS), strict=True):
        for t in range(64):
            inside = t + 1 < 64 and segments[t] > 0 and segments[t + 1] == segments[t]
            assert targets[t] == (tokens[t + 1] if inside else -1)
            assert positions[t] == (positions[t - 1] + 1 if t and segments[t] == segments[t - 1] and segments[t] else 0)
    assert row_targets(batch.tokens, np.zeros_like(batch.segments)).max() == -1


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_the_global_batch_is_the_same_for_any_number_of_processes(corpora, processes):
    whole = take(corpora, 12)
    parts = [take(corpora, 12, process=p, processes=processes) for p in range(processes)]
    for step, batch in enumerate(whole):
        for name in FIELDS:
            rows = np.concatenate([getattr(part[step], name) for part in parts])
            assert np.array_equal(rows, getattr(batch, name))


def test_a_restart_in_the_middle_gives_what_an_uninterrupted_run_sees(corpora):
    whole = take(corpora, 40)  # several epochs of the small corpus
    for start in (1, 17, 39):
        assert equal(take(corpora, 1, start=start)[0], whole[start])
    assert all(equal(a, b) for a, b in zip(take(corpora, 23, start=17, process=0), whole[17:], strict=True))
    running = base_batches(corpora, rows=8, seed=5)
    for _ in range(9):
        next(running)
    state = running.get_state()
    after = [next(running) for _ in range(3)]
    other = base_batches(corpora, rows=8, seed=5)
    other.set_state(state)
    assert state == {"next_index": 9} and all(equal(next(other), batch) for batch in after)
    halves = [take(corpora, 1, start=17, process=p, processes=2)[0].tokens for p in range(2)]
    assert np.array_equal(np.concatenate(halves), whole[17].tokens)  # restarted with another number of processes


def test_threads_do_not_change_the_order(corpora):
    assert joined(take(corpora, 20, threads=1, prefetch=1)) == joined(take(corpora, 20, threads=8, prefetch=32))


def test_an_epoch_holds_every_row_once_and_the_next_in_another_order(corpora):
    folder, _ = corpora["large"]
    corpus = open_corpus(folder)
    n = len(corpus)
    rows = joined(take({"large": (folder, 1.0)}, 2 * n, rows=1))
    stored = [corpus[i]["tokens"].tobytes() for i in range(n)]
    assert sorted(rows[:n]) == sorted(rows[n:]) == sorted(stored)
    assert rows[:n] != stored and rows[:n] != rows[n:]
    assert rows != joined(take({"large": (folder, 1.0)}, 2 * n, rows=1, seed=6))


def test_mixtures_have_their_shares(corpora):
    small = open_corpus(corpora["small"][0])
    known = {small[i]["tokens"].tobytes() for i in range(len(small))}
    for weights in ((3.0, 1.0), (0.7, 0.3), (1.0, 9.0)):
        mixed = {name: (corpora[name][0], w) for name, w in zip(("large", "small"), weights, strict=True)}
        rows = joined(take(mixed, 100))
        share = sum(row in known for row in rows) / len(rows)
        assert abs(share - weights[1] / sum(weights)) < 0.01
    alone = joined(take({"small": corpora["small"]}, 10))
    assert [row for row in joined(take(corpora, 40)) if row in known][:80] == alone[:80]  # a mixture changes no order


def test_what_is_refused(corpora, tmp_path):
    def refused(given, **options) -> str:
        with pytest.raises(InputError) as caught:
            base_batches(given, **{"rows": 8, "seed": 0, **options})
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "cannot be divided" in refused(corpora, processes=3)
    assert "cannot be divided" in refused(corpora, process=2, processes=2)
    assert "first step" in refused(corpora, start=-1)
    assert "no corpus to train on" in refused({})
    assert "no corpus here" in refused({"gone": (tmp_path / "gone", 1.0)})
    assert "weight" in refused({"large": (corpora["large"][0], 0.0)})
    other = tiny_corpus(tmp_path / "other", row_length=32)
    assert "differ in row_length" in refused({**corpora, "other": (other, 1.0)})
    assert "holds no row" in refused({"empty": (tmp_path / "other" / "rows" / "valid", 1.0)})
