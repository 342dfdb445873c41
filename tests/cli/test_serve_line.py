"""A plain `torpor serve` line is read without the full parser, and every other one with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from torpor.cli.plain_serve import plain_serve


def test_a_plain_line_is_read() -> None:
    """Every option that it may have, in any order."""
    assert plain_serve(["serve", "a.py", "--port", "9000", "b.py", "--host", "::1", "--config", "serve.toml"]) == {
        "files": ["a.py", "b.py"],
        "config": Path("serve.toml"),
        "host": "::1",
        "port": 9000,
        "check": False,
        "as_json": False,
    }
    assert plain_serve(["serve"]) is not None


@pytest.mark.parametrize(
    "line",
    [
        "",
        "up a.py",
        "serve --help",
        "serve a.py --check",
        "serve a.py --json",
        "serve a.py --port",
        "serve a.py --port x",
        "serve a.py --port -1",
        "serve a.py --port=9000",
        "serve a.py --port \u0663",
        "serve --config --host",
        "serve --config",
        "serve a.py --unknown 1",
        "serve a.py -- b.py",
    ],
)
def test_every_other_line_is_for_the_full_parser(line: str) -> None:
    """Also a wrong one: the full parser says what is wrong with it."""
    assert plain_serve(line.split()) is None
