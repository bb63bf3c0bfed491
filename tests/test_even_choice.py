"""A few lines in the place of all."""

from mbjax.io.even_choice import even_choice


def test_a_choice_is_even_and_keeps_first_and_last():
    assert even_choice(range(101), 5) == [0, 25, 50, 75, 100]
    assert even_choice("abc", 3) == even_choice("abc", None) == even_choice("abc", 9) == ["a", "b", "c"]
    assert even_choice("abc", 1) == ["a"]
