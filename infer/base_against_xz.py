"""Bits per byte of a base on the held-out text of its corpus, against `xz -9` on the same text.

    python infer/base_against_xz.py --base bases/tiny --corpus build/base/corpus [--json] [--write]

The base reads the rows that training evaluates on, all of them. Every token of a document but the one that begins it is
scored exactly once, the end token too, so that every byte that xz packs is paid for. Exits with 1 where the base needs
more than xz.
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
from mbjax.training.base_data import row_targets
from mbjax.training.base_run import held_out_batches, token_bytes
from mbjax.training.corpus import Corpus, open_corpus

ROWS = 8


def base_bits(base: LoadedBase, corpus: Corpus) -> float:
    """Bits for all of the text."""
    own: Any = base.params.layers
    params = dataclasses.replace(base.params, layers=jax.tree.map(lambda *parts: jnp.stack(parts), *own))
    sizes = jnp.asarray(token_bytes(base.tokenizer, base.config.vocab_size))
    score = jax.jit(partial(base_score, config=base.config, form=StepForm()))
    nll = 0.0
    for i, batch in enumerate(held_out_batches([corpus], ROWS, 0)):
        rows = BaseRows(*(jnp.asarray(x) for x in (batch.tokens, batch.targets, batch.segments, batch.positions)))
        nll += float(score(params, rows, sizes)["nll"])
        print(f"{min((i + 1) * ROWS, len(corpus))} of {len(corpus)} rows", file=sys.stderr, end="\r")
    return nll / math.log(2)


def text_of(base: LoadedBase, corpus: Corpus) -> bytes:
    """The documents, one after the other: what the targets stand for (a row's first token is the last of the one before)."""
    rows = (corpus[i] for i in range(len(corpus)))
    targets = (row_targets(np.asarray(row["tokens"]), np.asarray(row["segments"])) for row in rows)
    return b"".join(base.tokenizer.token_bytes(int(token)) for row in targets for token in row if token >= 0)


def main() -> None:
    made: argparse.ArgumentParser = parser(__doc__)
    made.add_argument("--base", type=Path, required=True)
    made.add_argument("--corpus", type=Path, required=True)
    options = made.parse_args()
    base, corpus = load_base(options.base, "float32"), open_corpus(options.corpus / "valid")
    text = text_of(base, corpus)
    bits = base_bits(base, corpus)
    packed = len(lzma.compress(text, preset=9))
    result = {
        "bytes": len(text),
        "base_bits_per_byte": bits / len(text),
        "xz_bits_per_byte": 8 * packed / len(text),
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
