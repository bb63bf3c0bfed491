"""Composes the part of the background prompts that is not written by hand: mbjax/data/background/composed.jsonl.

    apt-get install wordnet-base
    python train/data/background.py --out mbjax/data/background [--source /usr]

The router's space is made from these prompts, and every pack's route key learns them as foreign. Sentences are WordNet's
examples, nouns WordNet's words, passages those written by hand; a sentence or noun is used once. Left out by words:
the subjects of the packs, and the subjects that measure abstaining and so must be in no background (cooking, travel,
gardening, music, car repair, astronomy, history; of languages Spanish and German). The same seed gives the same bytes.
"""

import argparse
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

from background_frames import NOUN, PASSAGE, PASSAGE_ZH, SENTENCE
from split_files import Line, encode_lines
from wordnet import Synset, read_synsets

from mbjax.errors import MbjaxError
from mbjax.io.files import atomic_write

SEED = 20
FRAMED, PLAIN, PASSAGES, NOUNS = 1050, 150, 260, 330  # prompts of each kind
PASSAGE_KINDS = ("fiction passages", "news passages", "encyclopaedic passages", "letters and diary", "段落")
KNOWN = 3  # WordNet's count of a word's uses in its tagged texts, at least: nouns that people use
LEFT_OUT = re.compile(
    r"\b(medic|diseas|patient|doctor|physician|nurse|surg|hospital|blood|cancer|symptom|diagnos|drug|wound|fever|pain|ill|"
    r"infect|bone|muscle|injur|tumou?r|heart|lung|nerv|skin|virus|vaccin|pregnan|breast|liver|"
    r"law|legal|court|judge|jury|licen[cs]e|contract|constitution|crime|criminal|lawyer|attorney|patent|copyright|guilty|"
    r"trial|sentence|statute|article|clause|defendant|verdict|parliament|congress|amendment|"
    r"equation|algebra|arithmetic|number|sum|multipl|divi|math|calculat|percent|fraction|geometr|triangle|count|"
    r"program|code|comput|software|function|python|algorithm|data|file|"
    r"poe[mt]|verse|rhyme|lyric|satir|cynic|"
    r"cook|bak|food|eat|ate|eaten|meal|dinner|lunch|breakfast|soup|meat|bread|cake|cheese|wine|fruit|vegetable|recipe|"
    r"kitchen|restaurant|tast|sauce|salad|dish|drink|drank|beer|sugar|butter|egg|fish|chicken|"
    r"travel|trip|tour|journey|hotel|flight|flew|airport|passport|vacation|holiday|voyage|"
    r"garden|plant|flower|tree|seed|weed|lawn|rose|shrub|leaf|leaves|crop|"
    r"music|song|sing|sang|sung|piano|violin|guitar|orchestra|opera|concert|melod|tune|symphon|band|choir|drum|"
    r"car|cars|engine|brake|tyre|tire|motor|automobile|truck|drive|drove|driver|garage|"
    r"star|stars|planet|moon|sun|solar|galax|telescope|astronom|orbit|comet|universe|space|earth|mars|venus|"
    r"histor|war|wars|century|ancient|king|queen|emperor|empire|roman|medieval|revolution|army|soldier|battle|napoleon|"
    r"spanish|spain|german|germany|nazi|jew|negro|rape|sex|whore|slut|nigger|suicide|kill|murder)",
    re.IGNORECASE,
)


def usable(text: str) -> bool:
    """Whether a text keeps away from the subjects that are left out."""
    return LEFT_OUT.search(text) is None and text.isascii() and not re.search(r"\d", text)


def sentences(synsets: list[Synset]) -> list[str]:
    """The examples that are whole sentences of middle length, with a capital and a full stop."""
    found: dict[str, None] = {}
    for synset in synsets:
        for example in synset.examples:
            words = example.split()
            if 5 <= len(words) <= 22 and usable(example) and words[0].lower() in _BEGINNINGS:
                text = example[0].upper() + example[1:]
                found[text if text[-1] in ".!?" else text + "."] = None
    return list(found)


_BEGINNINGS = frozenset(
    [
        "he",
        "she",
        "they",
        "we",
        "i",
        "you",
        "it",
        "the",
        "this",
        "that",
        "his",
        "her",
        "their",
        "our",
        "my",
        "there",
        "if",
        "when",
        "what",
    ]
)


def nouns(synsets: list[Synset]) -> Iterator[tuple[str, str]]:
    """(lexicographer file, noun) of the first words of common synsets with frames."""
    for synset in synsets:
        word = synset.words[0].replace("_", " ")
        if (
            synset.pos == "noun"
            and synset.file in NOUN
            and synset.uses >= KNOWN
            and word.islower()
            and usable(f"{word} {synset.gloss}")
        ):
            yield synset.file, word


def passages(directory: Path) -> list[str]:
    """The hand-written prompts of the passage kinds."""
    lines = [json.loads(line) for path in sorted(directory.glob("*.jsonl")) if path.name != "composed.jsonl"
             for line in path.read_text(encoding="utf-8").splitlines()]  # fmt: skip
    return [line["prompt"] for line in lines if line["kind"] in PASSAGE_KINDS]


def compose(synsets: list[Synset], written: list[str], *, seed: int = SEED) -> list[Line]:
    """The composed prompts with their kinds, shuffled."""
    rng = random.Random(seed)
    pool = sentences(synsets)
    rng.shuffle(pool)
    lines = [_line("plain sentence", text) for text in pool[:PLAIN]]
    frames = _dealt(SENTENCE, FRAMED, rng)
    lines += [_line("sentence task", frame.format(s=s)) for frame, s in zip(frames, pool[PLAIN:], strict=False)]
    pairs = [(text, frame) for text in written for frame in (PASSAGE if text.isascii() else PASSAGE_ZH)]
    chosen = rng.sample(pairs, min(PASSAGES, len(pairs)))
    lines += [_line("passage task", frame.format(s=text)) for text, frame in chosen]
    things = sorted(set(nouns(synsets)))
    for file, noun in rng.sample(things, min(NOUNS, len(things))):
        lines.append(_line("about a thing", rng.choice(NOUN[file]).format(n=noun)))
    rng.shuffle(lines)
    return lines


def _dealt(frames: tuple[str, ...], n: int, rng: random.Random) -> list[str]:
    """`n` frames, each used equally often, in random order."""
    dealt = [frames[i % len(frames)] for i in range(n)]
    rng.shuffle(dealt)
    return dealt


def _line(kind: str, prompt: str) -> Line:
    return {"prompt": re.sub(r"\ba (?=[aeiou])", "an ", prompt) if kind == "about a thing" else prompt, "kind": kind}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="directory with the hand-written files; composed.jsonl")
    parser.add_argument("--source", type=Path, default=Path("/usr"), help="where wordnet-base is installed")
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args()
    try:
        synsets = read_synsets(options.source / "share" / "wordnet")
        lines = compose(synsets, passages(options.out), seed=options.seed)
        with atomic_write(options.out / "composed.jsonl") as file:
            file.write(encode_lines(lines))
    except MbjaxError as error:
        parser.exit(error.exit_status, f"{error}\n")
    print(f"{len(lines)} prompts")


if __name__ == "__main__":
    main()
