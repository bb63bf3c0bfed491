"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_BASE = "smollm2-135m"

_SAMPLING = "Sampling"

BaseOption = Annotated[
    str, typer.Option("--base", "-b", metavar="NAME|PATH", help="Catalog name, HF directory or GGUF file.")
]
DtypeOption = Annotated[str, typer.Option("--dtype", help="auto (as stored), float32, bfloat16, int8 or int4.")]
KvOption = Annotated[
    str, typer.Option("--kv-dtype", help="Of the KV cache: auto, float32, bfloat16 or int8 (half the memory).")
]
ContextOption = Annotated[
    int | None,
    typer.Option(
        "--context", "-c", metavar="N", help="Most positions of a conversation; default 2048 or the base's own limit."
    ),
]
LanesOption = Annotated[int, typer.Option("--lanes", metavar="N", help="Requests answered at once, 1 to 16.")]
BudgetOption = Annotated[
    str | None,
    typer.Option("--budget", metavar="SIZE", help="The most bytes to hold, for example 4GiB or 800MB."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
PacksOption = Annotated[
    Path | None,
    typer.Option("--packs", metavar="DIR", help="Directory of packs; default ./packs if it is there, else your own."),
]
PackOption = Annotated[
    str, typer.Option("--pack", metavar="auto|none|ID,ID", help="Packs to use; auto leaves the choice to the router.")
]
ForceOption = Annotated[bool, typer.Option("--force-base", help="Let in packs that were made for another base.")]
RawOption = Annotated[bool, typer.Option("--raw", help="Take the prompt as it is, without the chat template.")]
TokensOption = Annotated[int, typer.Option("--max-tokens", "-n", metavar="N", help="Most tokens of an answer.")]
TemperatureOption = Annotated[
    float, typer.Option("--temperature", "-t", help="0 is greedy.", rich_help_panel=_SAMPLING)
]
TopKOption = Annotated[
    int, typer.Option("--top-k", help="Keep the k most probable tokens; 0 keeps all.", rich_help_panel=_SAMPLING)
]
TopPOption = Annotated[
    float,
    typer.Option("--top-p", help="Keep the tokens that make up this much probability.", rich_help_panel=_SAMPLING),
]
MinPOption = Annotated[
    float,
    typer.Option("--min-p", help="Drop tokens below this share of the most probable one.", rich_help_panel=_SAMPLING),
]
PenaltyOption = Annotated[
    float, typer.Option("--repetition-penalty", help="Above 1 avoids tokens already there.", rich_help_panel=_SAMPLING)
]
SeedOption = Annotated[int, typer.Option("--seed", "-s", help="Same seed, same text.", rich_help_panel=_SAMPLING)]
StopOption = Annotated[
    list[str] | None,
    typer.Option(
        "--stop", metavar="TEXT", help="End the answer before this text; may be repeated.", rich_help_panel=_SAMPLING
    ),
]
FileArgument = Annotated[Path, typer.Argument(metavar="FILE.jsonl", help="One JSON object per line.")]
