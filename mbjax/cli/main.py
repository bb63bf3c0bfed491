"""The command line's entry: registers the commands and turns every error into one line and an exit status."""

import os
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from mbjax.cli.bench import bench
from mbjax.cli.chat import chat
from mbjax.cli.demo import demo
from mbjax.cli.evaluate import evaluate
from mbjax.cli.generate import generate
from mbjax.cli.pack_train import app as pack_app
from mbjax.cli.plan import plan
from mbjax.cli.pull import pull
from mbjax.cli.route import route
from mbjax.cli.train_packs import app as train_app
from mbjax.errors import MbjaxError

_INTERRUPTED = 130  # 128 + SIGINT, as shells have it

app = typer.Typer(
    name="mbjax",
    help="A small frozen base understands, packs know, a router decides.",
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (demo, pull, generate, chat, route, plan, bench):
    app.command()(command)
app.command("eval")(evaluate)
app.add_typer(pack_app, name="pack")
app.add_typer(train_app, name="train")


def _show_version(wanted: bool) -> None:
    if wanted:
        try:
            print(version("mbjax"))
        except PackageNotFoundError:
            print("unknown (mbjax runs from its source tree and is not installed)")
        raise typer.Exit()


@app.callback()
def _options(
    show_version: Annotated[
        bool, typer.Option("--version", "-V", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """The `mbjax` script."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs one command. Returns its exit status: 0, 1 for a failure, 2 for wrong input, 130 for Ctrl-C."""
    try:
        status = app(args=arguments or ["--help"], prog_name="mbjax", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except MbjaxError as error:
        return _fail(str(error), error.exit_status)
    except typer.TyperException as error:
        return _fail(error.format_message(), 2)
    except (typer.Abort, KeyboardInterrupt):
        return _INTERRUPTED
    except Exception as error:
        if os.environ.get("MBJAX_TRACEBACK"):
            raise
        about = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return _fail(f"internal error: {about}; run with MBJAX_TRACEBACK=1 for the traceback", 1)


def _fail(message: str, status: int) -> int:
    line = " ".join(message.split())
    print(f"mbjax: {line}", file=sys.stderr)
    return status


if __name__ == "__main__":
    main()
