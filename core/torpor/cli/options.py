"""Options and arguments that several commands share, and the group that lists commands."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer
from typer._click.exceptions import NoArgsIsHelpError, UsageError
from typer.core import TyperGroup
from typer.main import get_command_name

from torpor._override import override
from torpor.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from typer._click import Context
    from typer.models import CommandInfo, OptionInfo

__all__ = [
    "AppFile",
    "AsJson",
    "Ask",
    "Backend",
    "CommandGroup",
    "Documents",
    "EngineMetrics",
    "Gpus",
    "Host",
    "Identity",
    "Jobs",
    "KeyFile",
    "LongWaiting",
    "Metrics",
    "Port",
    "Prove",
    "Question",
    "Records",
    "Served",
    "Snapshot",
    "SoundFile",
    "StoreOptions",
    "TaskName",
    "TrustedKeys",
    "Unsigned",
    "Waiting",
    "checked_question",
    "keep_named",
]


class CommandGroup(TyperGroup):
    """Lists its commands with their whole first paragraph, which typer would cut at the end of the line."""

    @override
    def list_commands(self, ctx: Context) -> list[str]:
        for command in self.commands.values():
            command.short_help = command.short_help or " ".join((command.help or "").split("\n\n")[0].split())
        return super().list_commands(ctx)

    @override
    def make_context(
        self, info_name: str | None, args: list[str], parent: Context | None = None, **extra: object
    ) -> Context:
        with _usage_errors():
            return super().make_context(info_name, args, parent, **extra)

    @override
    def invoke(self, ctx: Context) -> object:
        with _usage_errors():  # of the command's own options: its context is made here
            return super().invoke(ctx)


_KINDS = {
    "Input should be a valid integer, unable to parse string as an integer": "it has to be a whole number.",
    "Input should be a valid number, unable to parse string as a number": "it has to be a number.",
}
"""What the parser says of a value of another type, and what the user reads instead."""


@contextlib.contextmanager
def _usage_errors() -> Iterator[None]:
    """Raise a wrong command line as Torpor's own error: one sentence, not four lines.

    Raises:
        ConfigurationError: in place of the parser's error.
    """
    try:
        yield
    except NoArgsIsHelpError:
        raise
    except UsageError as error:
        said = error.format_message()
        for parsers, ours in _KINDS.items():
            said = said.replace(parsers, ours)
        path = error.ctx.command_path if error.ctx else "torpor"
        end = "" if said.endswith((".", "?")) else "."
        raise ConfigurationError(f"{said}{end} `{path} -h` lists what is allowed.") from error


def checked_question(option: str, text: str | None) -> str:
    """The text of a question; empty where none was given.

    Args:
        option: e.g. `--ask`.
        text: its value; None if it was not given.

    Raises:
        ConfigurationError: it was given, and is empty.
    """
    if text is not None and not text.strip():
        raise ConfigurationError(f"{option} is empty; write what the server is asked, or leave {option} out.")
    return text or ""


def keep_named(app: typer.Typer, words: Sequence[str]) -> None:
    """Keep only the command that a command line names: typer builds all that it is given, with a validator for each option.

    All of them stay for a line that names none or an unknown one, because help and suggestions list them.
    """
    before = list(itertools.takewhile(lambda word: word.startswith("-"), words))
    if len(before) == len(words) or {"-h", "--help"} & set(before):
        return
    name, rest = words[len(before)], words[len(before) + 1 :]
    commands = [one for one in app.registered_commands if _name_of(one) == name]
    groups = [one for one in app.registered_groups if one.name == name]
    if commands or groups:
        app.registered_commands, app.registered_groups = commands, groups
    for group in groups:
        if group.typer_instance is not None:
            keep_named(group.typer_instance, rest)


def _name_of(command: CommandInfo) -> str:
    return command.name or get_command_name(getattr(command.callback, "__name__", ""))


AppFile = Annotated[str, typer.Argument(metavar="APP", help="App file with a deployment, e.g. apps/tiny_cpu.py.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
TaskName = Annotated[
    str, typer.Option(help="What the server serves: chat, generate, embed, rerank, score, classify or transcribe.")
]
Question = Annotated[
    str, typer.Option(help="The question; the text to embed or to classify; the query of a ranking or of scores.")
]
Documents = Annotated[
    list[str] | None, typer.Option(metavar="TEXT", help="Text to rank or to score; several times for several.")
]
SoundFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Sound to transcribe; a generated one by default.")
]
Ask = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT", help="Ask this when the server is up, show the answer, then stop.", show_default=False
    ),
]


def _waiting(limit_s: int) -> OptionInfo:
    """The option of a command that waits for a server.

    Args:
        limit_s: seconds that it waits by default.
    """
    said = f"Deadline for the whole command; by default {limit_s}, and 10 while nothing listens at the address."
    option: OptionInfo = typer.Option(metavar="SECONDS", help=said, show_default=False)
    return option


Waiting = Annotated[float | None, _waiting(600)]
LongWaiting = Annotated[float | None, _waiting(3600)]
Metrics = Annotated[
    str,
    typer.Option(
        metavar="[HOST:]PORT", help="Show metrics for Prometheus at this address, under /metrics; no key is asked."
    ),
]
EngineMetrics = Annotated[
    bool, typer.Option("--engine-metrics", help="Pass the engines' own metrics on, with a replica's name on each.")
]
Gpus = Annotated[
    str,
    typer.Option(
        metavar="LIST",
        help="Use these GPUs alone, e.g. 0,1: numbers as nvidia-smi shows them, or UUIDs. By default a restore takes the GPUs with "
        "the fewest replicas, then the most free memory; at a cold start CUDA takes its first ones, unless a command has them.",
        show_default=False,
    ),
]
Host = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Listen on this address; by default the deployment's, which is 127.0.0.1 unless the app sets another.",
        show_default=False,
    ),
]
Port = Annotated[
    int | None, typer.Option(help="The public port, 1 to 65535; by default the deployment's.", show_default=False)
]
Prove = Annotated[
    bool | None,
    typer.Option(
        "--prove/--no-prove",
        help="Restore and wake one replica of a new snapshot before it is put in place; by default without a GPU.",
        show_default=False,
    ),
]
Records = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write stage records to this file; by default to one under the cache root."),
]
KeyFile = Annotated[Path, typer.Argument(metavar="FILE", help="A new file for the private key; never overwritten.")]
Backend = Annotated[
    str | None,
    typer.Option(help="How the sleeping engine is kept: none, standby (the default) or criu.", show_default=False),
]
Snapshot = Annotated[
    str,
    typer.Option(
        metavar="DIR|URL",
        help="Restore this snapshot if it fits; else start cold, and capture a new one into a folder (CRIU). A URL names one "
        "in a store.",
        show_default=False,
    ),
]
Jobs = Annotated[int, typer.Option(metavar="N", help="Transfers at once; 0 for what suits this machine.")]
TrustedKeys = Annotated[
    Path | None,
    typer.Option(
        "--trust",
        metavar="FILE",
        help="Demand a signature by one of the public keys in this file; by default the file that TORPOR_TRUSTED_KEYS names.",
        show_default=False,
    ),
]
Unsigned = Annotated[
    bool,
    typer.Option("--unsigned", help="Accept a snapshot that no trusted key signed: it is memory that will run as you."),
]
Identity = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="File with the age identity that decrypts an encrypted snapshot.", show_default=False
    ),
]
Served = Annotated[str, typer.Argument(metavar="NAME", help="A deployment that `torpor serve` serves here.")]


class StoreOptions(TypedDict):
    """Options about a store of snapshots, and whom to trust."""

    snapshots: str
    trust: Path | None
    unsigned: bool
    identity: Path | None
