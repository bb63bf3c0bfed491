"""Guessing the next prompt's packs from the routes so far."""

import random

from preload import hit_rate

from mbjax.engine.predictor import Predictor


def test_what_usually_follows_is_expected():
    predictor = Predictor()
    for _ in range(10):
        for pack in ("a", "b", "c"):
            predictor.saw((pack,))
    assert predictor.likely(1) == ["a"]  # after c
    predictor.saw(("a",))
    assert predictor.likely(1) == ["b"]
    assert set(predictor.likely(3)) == {"a", "b", "c"} and predictor.likely(3)[-1] == "b"


def test_nothing_seen_means_nothing_expected_and_old_habits_fade():
    predictor = Predictor()
    assert predictor.likely(2) == [] and predictor.likely(0) == []
    for pack in ("a", "b") * 10:
        predictor.saw((pack,))
    for _ in range(40):
        predictor.saw(("a",))
        predictor.saw(("c",))
    predictor.saw(("a",))
    assert predictor.likely(1) == ["c"]


def test_routes_of_two_packs_and_of_none_count_whatever_their_order():
    predictor = Predictor()
    for _ in range(5):
        predictor.saw(("b", "a"))
        predictor.saw(())
        predictor.saw(("c",))
    predictor.saw(("a", "b"))
    predictor.saw(())
    assert predictor.likely(1) == ["c"]


def test_on_a_user_with_habits_it_beats_the_least_recently_used():
    chance, now, routes = random.Random(0), 0, []
    for _ in range(500):
        routes.append([f"pack{now}"])
        now = (now + 1) % 5 if chance.random() < 0.8 else chance.randrange(5)
    assert hit_rate(routes, 2, predicting=True) > 2 * hit_rate(routes, 2, predicting=False)
