"""Functions of the engines' question processes. An engine's Python imports it, so it uses the standard library only."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence
    from pathlib import Path


def keep_answers_apart() -> IO[str]:
    """Return the stream for answers. From now on, the engine's own output goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def answer_questions(module: Mapping[str, Any], answers: IO[str]) -> None:
    """Answer with the functions `ask_<what>` of the module until the input ends: JSON lines in, JSON lines out."""
    for line in sys.stdin:
        question = json.loads(line)
        print(json.dumps(module[f"ask_{question['ask']}"](question)), file=answers, flush=True)


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> dict[str, dict[str, str] | str]:
    """Parse a command line; return the values as text, or the parser's error and exit code."""
    complaint = io.StringIO()
    with contextlib.redirect_stderr(complaint):
        try:
            parsed = parser.parse_args(argv)
        except SystemExit as end:
            return {"error": complaint.getvalue(), "exit": str(end.code)}
    return {"values": {name: str(value) for name, value in vars(parsed).items()}}


HEADER = re.compile(r"""["'](x-[a-z0-9-]+)["']""", re.IGNORECASE)


def own_headers(folder: Path) -> list[str]:
    """Return the headers that an engine's code names, in lower case."""
    texts = (file.read_text() for file in folder.rglob("*.py"))
    return sorted({name.lower() for text in texts for name in HEADER.findall(text)})


def paths(routes: Sequence[Any]) -> list[str]:
    """Flatten a route table, with the routes of included routers."""
    found: list[str] = []
    for route in routes:
        included = getattr(route, "original_router", None)  # newer FastAPI keeps an included router here
        found += paths(included.routes) if included is not None else [route.path]
    return found
