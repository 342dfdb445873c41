"""A plain `torpor serve` line, read without the full parser: that would stay in the memory of a gateway that idles (11 MB)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from torpor.cli import actions
from torpor.cli.terminal import claim_output
from torpor.network.light_httpx import import_httpx

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ServeOptions", "plain_serve", "served_plainly"]


class ServeOptions(TypedDict):
    """What `torpor.cli.serve.run_serve` is given."""

    files: list[str]
    config: Path | None
    host: str | None
    port: int | None
    check: bool
    as_json: bool


def served_plainly(words: Sequence[str]) -> bool:
    """Serve until a signal, if the line is a plain one; returns whether it is.

    Args:
        words: of the command line, without the program.
    """
    if (options := plain_serve(words)) is None:
        return False
    import_httpx()  # without its command-line module, 4 MB
    claim_output()
    actions.run_serve(**options)
    return True


def plain_serve(words: Sequence[str]) -> ServeOptions | None:
    """The options of a plain line: APP..., --config, --host, --port.

    None for every other line, also for a wrong one: those are for the full parser.

    Args:
        words: of the command line, without the program.
    """
    if not words or words[0] != "serve":
        return None
    options: ServeOptions = {
        "files": [],
        "config": None,
        "host": None,
        "port": None,
        "check": False,
        "as_json": False,
    }
    rest = iter(words[1:])
    for word in rest:
        if not word.startswith("-"):
            options["files"].append(word)
            continue
        value = next(rest, "")
        if word == "--port" and value.isascii() and value.isdecimal():
            options["port"] = int(value)
        elif word == "--config" and value and not value.startswith("-"):
            options["config"] = Path(value)
        elif word == "--host" and value and not value.startswith("-"):
            options["host"] = value
        else:
            return None
    return options
