"""What every builder in this folder does when it is run: reads its arguments, writes the split, counts the tokens."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from split_files import Line, write_split

from mbjax.errors import MbjaxError

Build = Callable[[argparse.Namespace], tuple[Mapping[str, Sequence[Line]], dict[str, Any]]]


def run_builder(doc: str, build: Build, seed: int, options: Mapping[str, str] | None = None) -> None:
    """The command line of a builder: --out, --seed, --base and its own `options` (name -> help), all of them texts.

    `build(arguments)` gives the parts and the meta document; the tokens of one epoch are put down in it.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="directory for the files")
    parser.add_argument("--seed", type=int, default=seed)
    parser.add_argument("--base", default="smollm2-135m", help="whose tokenizer counts the tokens; 'none': no count")
    for name, text in (options or {}).items():
        parser.add_argument(name, help=text)
    arguments = parser.parse_args()
    try:
        parts, meta = build(arguments)
        if arguments.base != "none":
            meta["tokens"] = count_tokens(arguments.base, parts)
        document = write_split(arguments.out, parts, meta)
    except MbjaxError as error:
        parser.exit(error.exit_status, f"{error}\n")
    print({name: file["lines"] for name, file in document["files"].items()}, meta.get("tokens"))
    print(document["split_digest"])


def count_tokens(base: str, parts: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Tokens of an epoch over `train`, prompts in the chat template, and of its longest line."""
    from mbjax.io.load import load_base  # JAX and the base: not for --help

    tokenizer = load_base(base).tokenizer
    lengths = []
    for line in parts["train"]:
        turn = [{"role": "user", "content": line["prompt"]}]
        text = tokenizer.template.render(turn) if tokenizer.template else line["prompt"] + "\n"
        replies = line["choices"] if "choices" in line else [line["answer"]]
        lengths.append(sum(len(tokenizer.encode(part, add_bos=False)) for part in (text, *replies)))
    return {"base": base, "train": sum(lengths), "longest": max(lengths)}
