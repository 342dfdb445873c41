"""The command line's reference: every command with what its own `--help` says."""

from __future__ import annotations

import contextlib
import functools
import io
from typing import TYPE_CHECKING, Any

from typer.main import get_command

from torpor.cli.commands import app

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["command_names", "command_reference", "help_of"]

WIDTH = 100


def command_names() -> list[tuple[str, ...]]:
    """Every command by its words, `("snapshot", "create")`; a group before what is in it."""
    return list(_below((), _commands()))


def command_reference() -> str:
    """A section for each command."""
    sections = []
    for words in command_names():
        title = " ".join(("torpor", *words))
        sections.append(f"## {title}\n\n```text\n{help_of(words)}\n```")
    return "\n\n".join(sections)


@functools.cache
def help_of(words: tuple[str, ...]) -> str:
    """What a command prints for `--help`.

    Raises:
        RuntimeError: it ended with an error.
    """
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        code = _commands().main(
            [*words, "--help"], prog_name="torpor", standalone_mode=False, terminal_width=WIDTH, color=False
        )
    if code:
        raise RuntimeError(f"`torpor {' '.join(words)} --help` ended with {code}: {shown.getvalue()[-500:]}")
    return shown.getvalue().rstrip()


@functools.cache
def _commands() -> Any:  # typer bundles its own click
    return get_command(app)


def _below(words: tuple[str, ...], command: object) -> Iterator[tuple[str, ...]]:
    for name, below in getattr(command, "commands", {}).items():
        yield (*words, name)
        yield from _below((*words, name), below)
