"""A plain `torpor up` line is read without the full parser, and every other one with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from torpor.cli.plain_up import plain_up


def test_a_plain_line_is_read() -> None:
    """Every option that it may have, in any order."""
    line = ["up", "--backend", "none", "a.py", "--port", "9000", "--host", "::1", "--records", "r.jsonl", "--json"]
    assert plain_up([*line, "--ask", "How are you?", "--snapshot", "kept"]) == (
        "a.py",
        {
            "backend": "none",
            "snapshot": Path("kept"),
            "question": "How are you?",
            "as_json": True,
            "records": Path("r.jsonl"),
            "host": "::1",
            "port": 9000,
        },
    )


def test_what_is_not_given_is_what_the_full_parser_takes() -> None:
    """The defaults of `torpor.cli.commands.up`."""
    assert plain_up(["up", "a.py"]) == (
        "a.py",
        {
            "backend": None,
            "snapshot": None,
            "question": "",
            "as_json": False,
            "records": None,
            "host": None,
            "port": None,
        },
    )


@pytest.mark.parametrize(
    "line",
    [
        "",
        "up",
        "serve a.py",
        "up --help",
        "up a.py b.py",
        "up a.py --prove",
        "up a.py --gpus 0",
        "up a.py --metrics 9100",
        "up a.py --snapshot s3://bucket/kept",
        "up a.py --trust keys",
        "up a.py --port",
        "up a.py --port x",
        "up a.py --port -1",
        "up a.py --port=9000",
        "up a.py --port \u0663",
        "up a.py --ask --json",
        "up a.py --unknown 1",
        "up -- a.py",
    ],
)
def test_every_other_line_is_for_the_full_parser(line: str) -> None:
    """Also a wrong one: the full parser says what is wrong with it."""
    assert plain_up(line.split()) is None


def test_a_question_may_be_empty_only_for_the_full_parser() -> None:
    """An empty value is rarely meant; the full parser decides."""
    assert plain_up(["up", "a.py", "--ask", ""]) is None
    assert plain_up(["up", "a.py", "--ask", "  "]) is None
