"""Stop strings: found across borders of pieces, and nothing held back that need not be."""

import pytest

from mbjax.engine.stop import StopScanner


def run(stops: tuple[str, ...], pieces: list[str]) -> tuple[str, bool]:
    scanner = StopScanner(stops)
    text = ""
    for piece in pieces:
        text += scanner.push(piece)
        if scanner.stopped:
            return text, True
    return text + scanner.flush(), scanner.stopped


@pytest.mark.parametrize("size", [1, 2, 3, 50])
@pytest.mark.parametrize(
    "text, stops, expected",
    [
        ("one two END three", ("END",), "one two "),
        ("a\n\nb", ("\n\n",), "a"),
        ("aaab", ("aab",), "a"),
        ("first STOP then END", ("END", "STOP"), "first "),
        ("xabcd", ("cd", "abc"), "x"),
    ],
)
def test_text_ends_before_the_first_stop_string(text: str, stops: tuple[str, ...], expected: str, size: int) -> None:
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    assert run(stops, pieces) == (expected, True)


@pytest.mark.parametrize("stops", [(), ("",), ("###",)])
def test_text_without_a_stop_string_passes_whole(stops: tuple[str, ...]) -> None:
    assert run(stops, ["almost ##", "", " but not", " #"]) == ("almost ## but not #", False)


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    scanner = StopScanner(("END",))
    assert scanner.push("text E") == "text "
    assert scanner.push("N") == ""
    assert scanner.push("T") == "ENT"
    assert scanner.push("ER") == "ER"
    assert scanner.flush() == ""
