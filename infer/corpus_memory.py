"""Memory and time of making a corpus of very many documents.

    python infer/corpus_memory.py [--documents 200000] [--json]     Linux

Writes that many short documents into a temporary folder, every tenth a near-duplicate of an earlier one, trains a
tokenizer on them and packs them to rows. Target: the process grows by less than 300 MB, and finds the near-duplicates.
Exits with 1 where it is missed.
"""

import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from memory_peak import peak_bytes
from report import parser, publish, table

MOST_BYTES, LEAST_FOUND = 300e6, 0.85
EVERY = 10  # of these documents one is a near-duplicate


def write_documents(folder: Path, n: int, shards: int = 4) -> None:
    """Documents of about 40 made-up words in JSONL shards; a near-duplicate has one word of an earlier one changed."""
    rng = random.Random(7)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(5_000)]
    earlier = rng.choices(words, k=40)
    for shard in range(shards):
        with (folder / f"{shard}.jsonl").open("w", encoding="utf-8") as file:
            for i in range(shard, n, shards):
                if i // shards % EVERY == EVERY - 1:
                    text = [*earlier[:20], rng.choice(words), *earlier[21:]]
                else:
                    text = earlier = rng.choices(words, k=rng.randint(35, 45))
                file.write(json.dumps({"text": " ".join(text)}) + "\n")


def measure(n: int) -> dict[str, Any]:
    """Peak growth in bytes over a small corpus made before, seconds, and the share of near-duplicates found."""
    from mbjax.training.corpus import write_corpus
    from mbjax.training.tokenizer import train_tokenizer

    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        small, large = work / "small", work / "large"
        small.mkdir()
        large.mkdir()
        write_documents(small, 2_000)
        tokenizer = train_tokenizer([small], work / "tokenizer", vocab_size=2_000)
        write_corpus([small], tokenizer, work / "small-rows", row_length=256)  # what libraries load once
        write_documents(large, n)
        before, start = peak_bytes(), time.monotonic()
        info = write_corpus([large], tokenizer, work / "large-rows", row_length=256)
        seconds = time.monotonic() - start
        found = info.n_near_duplicates / (n // 4 // EVERY * 4)
        return {
            "documents": n,
            "growth": peak_bytes() - before,
            "seconds": seconds,
            "found": found,
            "rows": info.n_rows,
        }


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--documents", type=int, default=200_000)
    options = arguments.parse_args()
    result = measure(options.documents)
    row = (
        f"{result['documents']:,}",
        f"{result['growth'] / 1e6:.0f} MB",
        f"{result['seconds']:.0f} s",
        f"{result['found']:.1%}",
    )
    text = table(("documents", "growth of memory", "time", "near-duplicates found"), [row])
    publish(options, result, "Making a corpus", text, "corpus.md")
    sys.exit(result["growth"] > MOST_BYTES or result["found"] < LEAST_FOUND)


if __name__ == "__main__":
    main()
