"""The tables of docs/exit-codes.md: the meaning of each command's exit codes, and the exit code of each error."""

from __future__ import annotations

from scripts.site.commands import command_names
from scripts.site.docstrings import parse

import torpor.errors
from torpor.cli.exit_codes import EXIT_CODES

__all__ = ["error_table", "exit_code_table"]


def exit_code_table() -> str:
    """A row for each command."""
    there = {" ".join(words) for words in command_names()}
    rows = [
        f"| `torpor {name}` | {' | '.join(codes.get(code, '') for code in (0, 1, 2))} |"
        for name, codes in EXIT_CODES.items()
        if name in there
    ]
    return "\n".join(("| command | 0 | 1 | 2 |", "|---|---|---|---|", *rows))


def error_table() -> str:
    """A row for each of Torpor's errors."""
    found = [getattr(torpor.errors, name) for name in torpor.errors.__all__]
    rows = [f"| `{one.__name__}` | {one.exit_code} | {parse(one).summary} |" for one in sorted(found, key=_order)]
    return "\n".join(("| error | exit code | when |", "|---|---|---|", *rows))


def _order(error: type[torpor.errors.TorporError]) -> tuple[int, str]:
    return error.exit_code, error.__name__
