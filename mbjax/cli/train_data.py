"""`mbjax train tokenizer` and `mbjax train data`: what the training of a base starts from."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from mbjax.cli import options
from mbjax.cli.output import note, print_json, progress_stages
from mbjax.cli.route_train import app

SourcesArgument = Annotated[
    list[Path],
    typer.Argument(metavar="FILE|DIR...", help=".txt, .jsonl, .parquet or .array_record files, or folders of them."),
]
KeyOption = Annotated[str, typer.Option("--key", help="The field of a record that holds the text.")]


@app.command()
def tokenizer(
    sources: SourcesArgument,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The folder to write.")],
    vocab_size: Annotated[int, typer.Option("--vocab-size", metavar="N", help="All tokens, 262 of them fixed.")],
    model: Annotated[str, typer.Option("--model", help="bpe or unigram.")] = "bpe",
    key: KeyOption = "text",
    as_json: options.JsonOption = False,
) -> None:
    """Train a tokenizer with SentencePiece; the same sources give the same bytes."""
    from mbjax.io.tokenizer import Tokenizer
    from mbjax.training.tokenizer import train_tokenizer

    with progress_stages(in_bytes=True) as stage:
        train_tokenizer(
            sources,
            out,
            vocab_size=vocab_size,
            model=model,
            key=key,
            progress=lambda done, total: stage("reading" if done < total else "learning", done, total),
        )
    made = Tokenizer.from_hf(out)
    about = {"tokenizer": str(out), "model": model, "vocab_size": made.vocab_size, "digest": made.digest}
    if as_json:
        print_json(about)
    else:
        print(f"{out} ({model}, {made.vocab_size} tokens)")


@app.command()
def data(
    sources: SourcesArgument,
    tokenizer: Annotated[Path, typer.Option("--tokenizer", metavar="DIR", help="The folder of a tokenizer.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The folder to write.")],
    row_length: Annotated[int, typer.Option("--row-length", metavar="N", help="Tokens of a row.")] = 1024,
    held_out: Annotated[float, typer.Option("--held-out", help="The share of documents for validation.")] = 0.01,
    near: Annotated[
        float, typer.Option("--near-duplicates", help="Leave out repetitions from this similarity on; 0: keep them.")
    ] = 0.8,
    key: KeyOption = "text",
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Count lines that cannot be read instead of stopping there.")
    ] = False,
    as_json: options.JsonOption = False,
) -> None:
    """Turn documents into packed rows of tokens, once: without repetitions, and a part of them held out."""
    from mbjax.training.corpus import PARTS, open_corpus, write_corpus

    with progress_stages(in_bytes=True) as stage:
        write_corpus(
            sources,
            tokenizer,
            out,
            row_length=row_length,
            held_out=held_out,
            near_duplicates=near or None,
            key=key,
            skip_unreadable=skip_unreadable,
            watch=stage,
        )
    infos = {part: open_corpus(out / part).info for part in PARTS}
    if as_json:
        print_json({"corpus": str(out), **{part: dataclasses.asdict(info) for part, info in infos.items()}})
        return
    for part, info in infos.items():
        counts = f"{info.n_rows:,} rows, {info.n_tokens:,} tokens of {info.n_documents:,} documents"
        print(f"{out / part}: {counts}, {info.n_bytes / max(info.n_tokens, 1):.2f} bytes/token")
    left = infos["train"]
    note(
        f"left out: {left.n_duplicates:,} duplicates, {left.n_near_duplicates:,} near-duplicates,"
        f" {left.n_empty:,} empty, {left.n_unreadable:,} unreadable"
    )
