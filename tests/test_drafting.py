"""Drafts by lookup, and resting where they do not pay."""

import time

from mbjax.engine.drafting import Drafter, looked_up
from mbjax.engine.programs import DRAFT


def test_the_latest_place_of_the_longest_end_is_followed():
    assert looked_up([1, 2, 3, 4, 9, 1, 2]) == [3, 4, 9, 1, 2]
    assert looked_up([7, 1, 2, 5, 8, 1, 2, 6, 7, 1, 2]) == [5, 8, 1, 2, 6, 7, 1, 2]  # three tokens before two
    assert looked_up([1, 2, 5, 1, 2, 6, 1, 2]) == [6, 1, 2]
    assert looked_up([1, 2, 3, 4]) is None and looked_up([1]) is None and looked_up([]) is None


def test_a_draft_is_as_long_as_the_program_takes_it():
    drafter = Drafter(enabled=True)
    follows = drafter.guess([1, 2, 3], [1, 2])
    assert follows == [3, 1, 2]
    assert drafter.rest_of(follows, []).tolist() == [3, 1, 2] + [2] * (DRAFT - 3)
    assert drafter.rest_of(follows, [3]).tolist() == [1, 2] + [2] * (DRAFT - 2)
    assert drafter.rest_of(follows, [4]) is None and drafter.rest_of([3], [3]) is None


def test_it_rests_for_longer_and_longer_where_nothing_is_saved():
    drafter, rests = Drafter(enabled=True), []
    for _ in range(3):
        while drafter.willing():
            drafter.saw(1)
        rest = 1
        while not drafter.willing():
            rest += 1
        rests.append(rest)
    assert rests == [32, 64, 128]


def test_it_goes_on_where_drafts_are_right_and_never_begins_where_it_is_off():
    drafter = Drafter(enabled=True)
    for _ in range(500):
        assert drafter.willing()
        drafter.saw(DRAFT + 1)
    assert not Drafter(enabled=False).willing()


def test_what_a_draft_costs_is_measured():
    drafter = Drafter(enabled=True)
    for _ in range(30):
        drafter.step_took(0.001)
    with drafter.timed():
        time.sleep(0.01)  # dearer than eight steps, however fast the machine is
    for _ in range(20):
        drafter.saw(2)
    assert not drafter.willing()
