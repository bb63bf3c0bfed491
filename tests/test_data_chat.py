"""The builder of the chat data, on conversations in the corpus's layout."""

from pathlib import Path

import chat
import pytest

from mbjax.errors import InputError


def corpus(root: Path) -> Path:
    (root / "english").mkdir()
    (root / "english" / "talk.yml").write_text(
        "categories:\n- talk\nconversations:\n- - Good morning\n  - Hello\n  - How are you?\n- - WHO IS THERE\n  - 3\n"
    )
    (root / "english" / "emotion.yml").write_text("conversations:\n- - You are sad\n  - No.\n  - I am  not.\n")
    (root / "english" / "coding.yml").write_text("conversations:\n- - Write code\n  - def f()\n")
    return root


def test_neighbouring_turns_are_pairs_and_alternatives_answer_the_first(tmp_path: Path):
    pairs = chat.read_pairs(corpus(tmp_path), ("english",))
    assert pairs == [
        ("english", "You are sad", "No."),
        ("english", "You are sad", "I am not."),
        ("english", "Good morning", "Hello"),
        ("english", "Hello", "How are you?"),
        ("english", "Who is there", "3"),
    ]
    with pytest.raises(InputError, match="chatterbot-corpus"):
        chat.read_pairs(tmp_path, ("french",))


@pytest.fixture
def pairs() -> list[chat.Pair]:
    words = [
        "anchor",
        "basket",
        "candle",
        "dolphin",
        "engine",
        "feather",
        "guitar",
        "harbour",
        "island",
        "jacket",
        "kettle",
        "ladder",
    ]
    return [
        (language, f"{a} {b} {language[:2]}{i}{j}?", f"reply {a}{b}{r}")
        for language in ("english", "chinese")
        for i, a in enumerate(words)
        for j, b in enumerate(reversed(words))
        for r in range(2)
    ]


def test_what_is_nearly_the_same_is_one_group():
    pairs = [("english", "What is your name?", "A"), ("english", "what is your name", "B"), ("english", "Go away", "C")]
    assert [len(group) for group in chat.groups(pairs)["english"]] == [2, 1]


def test_no_utterance_is_on_both_sides(pairs: list[chat.Pair]):
    parts, meta = chat.build(pairs)

    def said(part: str) -> set[str]:
        return {line["prompt"].lower().rstrip("?. ") for line in parts[part]}

    assert not said("train") & (said("test") | said("valid")) and not said("test") & said("valid")
    assert meta["languages"]["english"]["groups_held_out"] > 0


def test_the_true_reply_stands_at_its_label_among_replies_to_others(pairs: list[chat.Pair]):
    known = {(said, reply) for _, said, reply in pairs}
    for line in chat.build(pairs)[0]["test"]:
        fits = [(line["prompt"], choice) in known for choice in line["choices"]]
        assert fits.index(True) == line["label"] and sum(fits) == 1


def test_an_utterance_is_typed_in_several_ways_but_stays_itself():
    rng = chat.random.Random(0)
    found = {chat.as_typed("How are you?", rng) for _ in range(40)}
    assert len(found) > 3 and {text.lower().rstrip("?.") for text in found} == {"how are you"}


def test_the_same_seed_gives_the_same_lines(pairs: list[chat.Pair]):
    assert chat.build(pairs) == chat.build(pairs) and chat.build(pairs, seed=1)[0] != chat.build(pairs)[0]
