"""Documents, and corpora of them, small enough for a test."""

import json
import random
from pathlib import Path

from tiny_tokenizers import byte_level_core

from mbjax.io.template import ChatTemplate
from mbjax.io.tokenizer import Tokenizer
from mbjax.training.corpus import write_corpus

_WORDS = ["".join(random.Random(i).choices("abcdefghijklmnop", k=2 + i % 7)) for i in range(2_000)]
CHATML = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


def tiny_tokenizer() -> Tokenizer:
    core = byte_level_core("<|endoftext|>")
    return Tokenizer(core, bos_id=0, add_bos=True, eos_ids=[0], template=ChatTemplate(CHATML))


def documents(n: int, seed: int = 0, words: int = 30) -> list[str]:
    """Texts that have nothing in common but words: about `words` of them each."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(_WORDS, k=rng.randint(words // 2, words * 3 // 2))) for _ in range(n)]


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def tiny_corpus(folder: Path, n: int = 60, seed: int = 0, row_length: int = 64) -> Path:
    """The training rows of a corpus made in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    source = write_jsonl(folder / "source.jsonl", documents(n, seed))
    write_corpus([source], tiny_tokenizer(), folder / "rows", row_length=row_length, held_out=0.0)
    return folder / "rows" / "train"
