"""A plain `torpor up` line, read without the full parser: importing that takes 0.1 s, and the engine starts after it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from torpor.cli import actions
from torpor.cli.terminal import claim_output
from torpor.network.light_httpx import leave_command_line_out

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["UpOptions", "plain_up", "started_plainly"]

_VALUED = ("--backend", "--snapshot", "--ask", "--records", "--host", "--port")


class UpOptions(TypedDict):
    """What `torpor.cli.up.run_up` is given."""

    backend: str | None
    snapshot: Path | None
    question: str
    as_json: bool
    records: Path | None
    host: str | None
    port: int | None


def started_plainly(words: Sequence[str]) -> bool:
    """Start and serve until a signal, if the line is a plain one; returns whether it is.

    Args:
        words: of the command line, without the program.
    """
    if (read := plain_up(words)) is None:
        return False
    leave_command_line_out()
    claim_output()
    app_file, options = read
    actions.run_up(app_file, **options)
    return True


def plain_up(words: Sequence[str]) -> tuple[str, UpOptions] | None:
    """The app file and the options of a plain line: APP, --backend, --snapshot DIR, --ask, --records, --host, --port, --json.

    None for every other line, also for a wrong one and for a snapshot in a store: those are for the full parser.

    Args:
        words: of the command line, without the program.
    """
    if not words or words[0] != "up":
        return None
    app_file, as_json, texts = "", False, dict[str, str]()
    rest = iter(words[1:])
    for word in rest:
        if word == "--json":
            as_json = True
        elif word in _VALUED:
            texts[word] = next(rest, "")
            if not texts[word].strip() or texts[word].startswith("-"):
                return None
        elif word.startswith("-") or app_file:
            return None
        else:
            app_file = word
    port, snapshot = texts.get("--port", ""), texts.get("--snapshot", "")
    if not app_file or "://" in snapshot or (port and not (port.isascii() and port.isdecimal())):
        return None
    return app_file, {
        "backend": texts.get("--backend"),
        "snapshot": Path(snapshot) if snapshot else None,
        "question": texts.get("--ask", ""),
        "as_json": as_json,
        "records": Path(texts["--records"]) if "--records" in texts else None,
        "host": texts.get("--host"),
        "port": int(port) if port else None,
    }
