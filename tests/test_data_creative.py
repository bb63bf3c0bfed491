"""The builder of the creative data, on a dictionary and poems in the layout of the Debian packages."""

import base64
import gzip
import random
from pathlib import Path

import creative
import pytest
from creative_phrasings import NEW, SEEN
from creative_sources import Entry, Poem, entry, number, read_dictionary, read_poems

from mbjax.errors import InputError

ENTRY = """ABDICATION, n.  An act whereby a sovereign attests his sense of the
high temperature of the throne.

    Poor Isabella's Dead, whose abdication
    Set all tongues wagging in the Spanish nation.
                                                                  G.J.
"""
POEMS = """\x1b[32m《梦李白・其二》\x1b[m
\x1b[33m作者：杜甫\x1b[m
浮云终日行，游子久不至。
三夜频梦君，情亲见君意。
%
\x1b[32m题目:《塞上》\x1b[m
\x1b[33m作者:柳开（９４６－９９９）\x1b[m
鸣骹直上一千尺，天静无风声更干。
%
"""


def digits(value: int) -> str:
    """A number as dictd writes it."""
    text = ""
    while value or not text:
        letters = base64.b64encode(bytes([value % 64 << 2]))
        text, value = letters[:1].decode() + text, value // 64
    return text


def write_dictionary(folder: Path, entries: list[str]) -> None:
    text, index = "preface\n", [f"00databaseinfo\tA\t{digits(8)}"]
    for item in entries:
        start, size = len(text.encode()), len(item.encode())
        index.append(f"{item.split(',')[0].lower()}\t{digits(start)}\t{digits(size)}")
        text += item
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "devil.index").write_text("\n".join(index) + "\n")
    (folder / "devil.dict.dz").write_bytes(gzip.compress(text.encode()))


def test_an_entry_is_parted_into_prose_and_verse():
    found = entry(ENTRY)
    assert found == Entry(
        "ABDICATION",
        "n. An act whereby a sovereign attests his sense of the high temperature of the throne.",
        ("Poor Isabella's Dead, whose abdication\nSet all tongues wagging in the Spanish nation.",),
    )
    assert entry("The preface, n.  no word in capitals") is None


def test_a_dictionary_is_read_by_its_index(tmp_path: Path):
    assert number(digits(98765)) == 98765
    write_dictionary(tmp_path, [ENTRY, "ABATIS, n.  Rubbish in front of a fort.\n"])
    assert [item.word for item in read_dictionary(tmp_path)] == ["ABDICATION", "ABATIS"]
    with pytest.raises(InputError, match="dict-devil"):
        read_dictionary(tmp_path / "nowhere")


def test_poems_are_read_without_colours_and_dates(tmp_path: Path):
    (tmp_path / "poems").write_text(POEMS, encoding="utf-8")
    first, second = read_poems(tmp_path / "poems")
    assert first == Poem("梦李白・其二", "杜甫", "浮云终日行，游子久不至。\n三夜频梦君，情亲见君意。")
    assert (second.title, second.author) == ("塞上", "柳开") and creative.cycle(first) == "杜甫 梦李白"
    with pytest.raises(InputError, match="fortunes-zh"):
        read_poems(tmp_path / "nowhere")


def gibberish(seed: int) -> str:
    """Words that no other seed has."""
    rng = random.Random(seed)
    return " ".join("".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=7)) for _ in range(4))


def literature() -> tuple[list[Entry], dict[str, list[Poem]]]:
    words = [f"{a}{b}" for a in "ABCDEFGH" for b in ("AMBLE", "OGMA", "UZZLE", "IRST", "ENNY")]
    entries = [Entry(word, f"n. {gibberish(i)}.", (f"{gibberish(i + 500)}\n{word}",)) for i, word in enumerate(words)]
    poems = [
        Poem(f"题{chr(0x4E00 + i)}・其{n}", "某", chr(0x5000 + 9 * i + ord(n) % 5) * 12 + "。")
        for i in range(20)
        for n in "一二"
    ]
    return entries, {"tang": poems[:20], "song": poems[20:]}


def test_no_word_and_no_cycle_is_on_both_sides():
    entries, poems = literature()
    parts, meta = creative.build(entries, poems)
    hidden = {line["group"] for line in parts["valid"]}
    assert not {line["group"] for line in parts["train"]} & hidden
    texts = {line["answer"] for line in parts["train"]}
    assert not texts & {line["completion"] for line in parts["test"]} and meta["held_out"]["pieces"] >= len(
        parts["test"]
    )
    assert {line["task"] for line in parts["test"]} == {"devil", "verse", "chinese"}


def test_long_texts_are_parted_at_sentences():
    text = " ".join(f"Sentence number {i}." for i in range(60))
    found = creative.pieces(text, 200)
    assert " ".join(found) == text and all(piece.endswith(".") and len(piece) <= 220 for piece in found)
    assert creative.pieces("一行。二行。三行。", 6) == ["一行。二行。", "三行。"]


def test_new_words_are_new_and_the_same_seed_gives_the_same_lines():
    for task, phrasings in NEW.items():
        assert not set(phrasings) & set(SEEN[task])
    assert creative.build(*literature()) == creative.build(*literature())
