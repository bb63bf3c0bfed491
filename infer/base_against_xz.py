"""Bits per byte of a base on the held-out text of its corpus, against `xz -9` on the same text.

    python infer/base_against_xz.py --base bases/tiny --corpus build/base/corpus [--json] [--write]

The base reads the rows that training evaluates on, all of them. A token that no row scores (the first of each row)
counts as log2(V) bits, as if it were drawn from the vocabulary, so that every byte that xz packs is paid for. Exits
with 1 where the base needs more than xz.
"""

import argparse
import dataclasses
import lzma
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from report import parser, publish, table

from mbjax.core.base_train import BaseRows, StepForm, base_score
from mbjax.io.load import LoadedBase, load_base
from mbjax.training.base_run import held_out_batches, token_bytes
from mbjax.training.corpus import Corpus, open_corpus

ROWS = 8


def base_bits(base: LoadedBase, corpus: Corpus) -> tuple[float, int]:
    """Bits for all of the text, and tokens that no row scores."""
    assert isinstance(base.params.layers, tuple)
    layers: Any = jax.tree.map(lambda *parts: jnp.stack(parts), *base.params.layers)
    params = dataclasses.replace(base.params, layers=layers)
    sizes = jnp.asarray(token_bytes(base.tokenizer, base.config.vocab_size))
    score = jax.jit(partial(base_score, config=base.config, form=StepForm()))
    nll, scored, tokens = 0.0, 0, 0
    for batch in held_out_batches([corpus], ROWS, 0):
        rows = BaseRows(*(jnp.asarray(x) for x in (batch.tokens, batch.targets, batch.segments, batch.positions)))
        found = score(params, rows, sizes)
        nll, scored = nll + float(found["nll"]), scored + int(found["targets"])
        starts = (batch.positions == 0) & (batch.segments > 0) & (batch.tokens == base.tokenizer.bos_id)
        tokens += int((batch.segments > 0).sum() - starts.sum())  # what begins a document is no text
        print(f"{tokens:,} tokens", file=sys.stderr, end="\r")
    unscored = max(0, tokens - scored)
    return nll / math.log(2) + unscored * math.log2(base.config.vocab_size), unscored


def text_of(base: LoadedBase, corpus: Corpus) -> bytes:
    """The documents of the rows, one after the other."""
    parts = []
    for i in range(len(corpus)):
        row = corpus[i]
        ids = np.asarray(row["tokens"])[np.asarray(row["segments"]) > 0]
        parts.append(b"".join(base.tokenizer.token_bytes(int(token)) for token in ids))
    return b"".join(parts)


def main() -> None:
    made: argparse.ArgumentParser = parser(__doc__)
    made.add_argument("--base", type=Path, required=True)
    made.add_argument("--corpus", type=Path, required=True)
    options = made.parse_args()
    base, corpus = load_base(options.base, "float32"), open_corpus(options.corpus / "valid")
    text = text_of(base, corpus)
    bits, unscored = base_bits(base, corpus)
    packed = len(lzma.compress(text, preset=9))
    result = {
        "bytes": len(text),
        "base_bits_per_byte": bits / len(text),
        "xz_bits_per_byte": 8 * packed / len(text),
        "unscored_tokens": unscored,
        "digest": base.digest,
    }
    rows = [
        (base.name, f"{result['base_bits_per_byte']:.3f}"),
        ("`xz -9`", f"{result['xz_bits_per_byte']:.3f}"),
    ]
    text_about = f"{len(text):,} bytes of held-out text.\n\n" + table(("", "bits per byte"), rows)
    publish(options, result, "A base of one's own against xz", text_about, "base_against_xz.md")
    sys.exit(0 if result["base_bits_per_byte"] < result["xz_bits_per_byte"] else 1)


if __name__ == "__main__":
    main()
