"""The command `torpor`: plan, up, plugins.

Each command lives in a module of its own that is imported when it runs, so that `torpor --help` costs neither modal nor
httpx.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from torpor._version import __version__
from torpor.errors import TorporError

__all__ = ["app", "main"]

_HELP = """Serve language models from engines that sleep in a memory snapshot and wake in seconds.

\b
build   prepare_image     what the container image holds
        compile_kernels   what to compile or download once
start   launch            start the engine process
        warmup            real requests until nothing is left to compile
        pre_snapshot      put the engine to sleep
--- snapshot ---
wake    post_restore      wake the engine, once per restored replica
"""

app = typer.Typer(
    name="torpor",
    help=_HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

AppFile = Annotated[str, typer.Argument(metavar="APP", help="App file with a deployment, e.g. apps/tiny_cpu.py.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"torpor {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[  # noqa: ARG001 - handled by its callback
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of Torpor's own errors.")] = False,
) -> None:
    if debug:
        os.environ["TORPOR_DEBUG"] = "1"


@app.command()
def plan(app_file: AppFile, as_json: AsJson = False) -> None:
    """Show everything that an app will do, without doing it."""
    from torpor.cli.plan import show_plan  # noqa: PLC0415

    show_plan(app_file, as_json=as_json)


@app.command()
def up(
    app_file: AppFile,
    backend: Annotated[str, typer.Option(help="How the sleeping server is kept: none or standby.")] = "standby",
    ask: Annotated[str, typer.Option(help="Ask this once it serves, stream the answer, then stop.")] = "",
    as_json: AsJson = False,
) -> None:
    """Run an app's whole lifecycle on this machine.

    While it serves, SIGUSR1 sends the engine to sleep, SIGUSR2 wakes it, and Ctrl-C ends it.
    """
    from torpor.cli.up import run_up  # noqa: PLC0415

    run_up(app_file, backend=backend, question=ask, as_json=as_json)


@app.command()
def plugins(as_json: AsJson = False) -> None:
    """List the installed plugins and their hooks."""
    from torpor.cli.plugins import list_plugins  # noqa: PLC0415

    list_plugins(as_json=as_json)


def main() -> None:
    """Run the command; Torpor's own errors become one paragraph on standard error and their exit code."""
    try:
        app()
    except TorporError as error:
        if os.environ.get("TORPOR_DEBUG", "") not in ("", "0"):
            raise
        notes = "".join(f"\n  ({note})" for note in getattr(error, "__notes__", []))
        print(f"torpor: {type(error).__name__}: {error}{notes}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("torpor: interrupted; everything it started was ended", file=sys.stderr)
        sys.exit(130)
