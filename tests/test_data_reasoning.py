"""The builder of the reasoning data: worked solutions end in the answer, and no question of the test is in training."""

import re

import pytest

pytest.importorskip("reasoning_gym")

import reasoning
from gsm_steps import compute, equations, shortened
from reasoning_families import FAMILIES, LONGEST, roughly_tokens, running, times
from reasoning_phrasings import NEW, SEEN

from mbjax.engine.match import is_right


@pytest.fixture(scope="module")
def parts() -> dict[str, list[dict[str, str]]]:
    return reasoning.build(n_train=60, n_stories=60, n_valid=4, n_test=8)[0]


def test_equations_are_taken_without_units_and_only_if_true():
    worked = "It has 40 cards + 2 * 3 cards = 46 cards.\nHe pays $1,200 / 4 = $300 a head.\nSo 5 + 5 = 11.\n#### 300"
    assert equations(worked) == [("40+2*3", "46"), ("1200/4", "300")]
    assert equations("75 patients/day * 7 days/week = 525 patients") == [("75*7", "525")]
    assert shortened(worked, "300") == "40+2*3=46;1200/4=300" and shortened(worked, "299") is None
    assert compute(["2", "*", "(", "3", "+", "4", ")"]) == 14 and compute(["2", "/", "0"]) is None
    assert compute(["2", "+"]) is None and compute(["50%", "*", "8"]) == 4


@pytest.mark.parametrize(
    ("expression", "steps"),
    [
        ("2 + 6 * 4", "6*4=24;2+24=26"),
        ("( 2 - 9 ) * 3", "2-9=-7;-7*3=-21"),
        ("26 * 47", "26*40=1040;26*7=182;1040+182=1222"),
        ("5", "5"),
        ("-( 3 + 4 )", None),
    ],
)
def test_an_expression_is_worked_out_in_steps(expression: str, steps: str | None):
    assert running(expression) == steps


def test_a_product_by_one_digit_takes_one_step():
    assert times(26, 7) == "26*7=182" and times(26, 40) == "26*40=1040"


@pytest.mark.parametrize("name", FAMILIES)
def test_every_worked_solution_ends_in_the_answer(name: str):
    import reasoning_gym

    family, solved = FAMILIES[name], 0
    for entry in reasoning_gym.create_dataset(name, seed=3, size=60, **family.settings):
        worked = family.solve(entry)
        assert all(family.slots(entry).values())
        if worked is not None:
            solved += 1
            assert is_right("last_number", worked, entry["answer"]), entry["question"]
    assert solved >= 50


def test_eleven_families_and_none_of_their_test_questions_in_training(parts: dict[str, list[dict[str, str]]]):
    def numbers(line: dict[str, str]) -> tuple[str, ...]:
        return (line["task"], *sorted(re.findall(r"-?\d+", line["prompt"])))

    assert {line["task"] for line in parts["test"]} == set(FAMILIES) and len(parts["test"]) == 8 * len(FAMILIES)
    exact = [name for name in ("chain_sum", "gcd", "lcm", "count_bits", "products")]  # their numbers are the question
    seen = {numbers(line) for line in parts["train"] if line["task"] in exact}
    # A sum with other signs is another question; of the others no set of numbers comes back.
    assert not {numbers(line) for line in parts["test"] if line["task"] in ("gcd", "lcm", "count_bits")} & seen
    assert not {line["prompt"] for line in parts["test"]} & {line["prompt"] for line in parts["train"]}


def test_test_lines_hold_the_answer_alone_and_half_of_them_new_words(parts: dict[str, list[dict[str, str]]]):
    for line in parts["test"]:
        assert line["match"] == "last_number" and re.fullmatch(r"-?[\d.,]+", line["answer"])
    assert sum(line["phrasing"] == "new" for line in parts["test"]) == len(parts["test"]) / 2
    for name in FAMILIES:
        assert not set(NEW[name]) & set(SEEN[name])


def test_training_answers_fit_into_the_tokens_that_are_read(parts: dict[str, list[dict[str, str]]]):
    assert all(roughly_tokens(line["answer"]) <= LONGEST for line in parts["train"])


def test_the_same_seed_gives_the_same_lines():
    small = {"n_train": 12, "n_stories": 12, "n_valid": 1, "n_test": 2, "names": ("chain_sum", "gcd")}
    assert reasoning.build(**small) == reasoning.build(**small)
    assert reasoning.build(seed=21, **small)[0] != reasoning.build(**small)[0]
