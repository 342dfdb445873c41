"""docs/exit-codes.md lists every command, and every command exits as the page says."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from typing import TYPE_CHECKING

import pytest
from scripts.site.commands import command_names, help_of
from scripts.site.exit_codes import error_table, exit_code_table
from typer.testing import CliRunner

from tests import ROOT
from tests.command_line import torpor
from torpor.cli.commands import app
from torpor.cli.exit_codes import EXIT_CODES
from torpor.client import ChatResult
from torpor.platforms.modal.prewarm import Prewarmed

if TYPE_CHECKING:
    from pathlib import Path

PAGE = (ROOT / "docs" / "exit-codes.md").read_text(encoding="utf-8")
GROUPS = {("snapshot",), ("key",), ("ray",)}

ENDS = [
    ("plan APP", 0),
    ("plan none.py", 2),
    ("up none.py", 2),
    ("serve none.py", 2),
    ("serve", 2),
    ("wake none", 1),
    ("sleep none", 1),
    ("pin none --off", 1),
    ("doctor none.py", 2),
    ("plugins", 0),
    ("new 1", 2),
    ("key new", 0),
    ("key signing none/key", 2),
    ("key encryption id", 0),
    ("snapshot push DIR store/name", 1),
    ("snapshot push DIR s3://name", 2),
    ("snapshot pull store/name DIR", 1),
    ("snapshot ls store", 1),
    ("snapshot ls DIR", 0),
    ("snapshot gc DIR --older-than soon", 2),
    ("snapshot rm s3://name", 2),
    ("snapshot create none.py DIR", 2),
    ("snapshot inspect DIR", 2),
    ("snapshot inspect none", 2),
    ("snapshot restore DIR", 1),
    ("snapshot restore DIR --replicas 0", 2),
    ("snapshot rm DIR", 1),
    ("snapshot weights", 0),
    ("snapshot compare none.py", 2),
    ("bench none.py", 2),
    ("report none.json", 2),
    ("boots --file none.log", 2),
    ("probe ftp://127.0.0.1", 2),
    ("probe http://127.0.0.1:9 --timeout 0.2", 1),
    ("prewarm ftp://127.0.0.1", 2),
    ("ray plan APP", 0),
    ("ray plan none.py", 2),
    ("ray manifest APP", 0),
    ("ray manifest APP --kubernetes", 2),
]


def test_every_command_is_in_the_table() -> None:
    """The page names no other command."""
    there = {" ".join(words) for words in command_names() if words not in GROUPS}
    assert there - set(EXIT_CODES) == set()
    assert {line.split("`")[1].removeprefix("torpor ") for line in exit_code_table().splitlines()[2:]} == there


def test_help_and_table_name_the_same_codes() -> None:
    """Each code in a command's own help is in the table."""
    told = 0
    for words in command_names():
        text = " ".join(help_of(words).partition("Exit code ")[2].split())
        if text:
            told += 1
            codes = {code for code in (0, 1, 2) if text.startswith(str(code)) or f"; {code}:" in text}
            assert codes <= set(EXIT_CODES[" ".join(words)]), words
    assert told >= 5


@pytest.mark.slow
@pytest.mark.parametrize(("line", "code"), ENDS, ids=[line for line, _ in ENDS])
def test_a_command_exits_as_the_table_says(tmp_path: Path, line: str, code: int) -> None:
    """The command's row has each code. An error is one paragraph."""
    (tmp_path / "empty").mkdir()
    places = {"APP": str(ROOT / "apps" / "tiny_cpu.py"), "DIR": str(tmp_path / "empty")}
    ran = torpor(
        *(places.get(word, word) for word in line.split()), env={"TORPOR_CACHE": str(tmp_path / "cache")}, cwd=tmp_path
    )
    assert ran.returncode == code, ran.stdout + ran.stderr
    assert "Traceback" not in ran.stderr
    (name,) = (name for name in EXIT_CODES if line == name or line.startswith(f"{name} "))
    assert code in EXIT_CODES[name]


def test_every_error_is_in_the_table() -> None:
    """With its code, and when it is raised."""
    table = error_table()
    assert "| `SnapshotError` | 1 |" in table
    assert "| `ConfigurationError` | 2 |" in table


@pytest.mark.parametrize(
    "line",
    [
        "plan APP",
        "serve APP",
        "ray plan APP",
        "plugins",
        "key new",
        "key signing k",
        "key encryption id",
        "snapshot ls .",
        "snapshot gc .",
        "status",
        "snapshot list",
        "snapshot weights",
        "boots --file LOG",
    ],
)
def test_json_has_the_keys_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    """Standard output is one JSON value with every key that the page promises."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torpor.cli.ray_plan.find_spec", lambda _name: None)  # importing Ray takes a second
    monkeypatch.setenv("TORPOR_CACHE", str(tmp_path / "cache"))
    (tmp_path / "store").mkdir()
    log = tmp_path / "app.log"
    log.write_text("")
    words = [{"APP": str(ROOT / "apps" / "tiny_cpu.py"), "LOG": str(log)}.get(word, word) for word in line.split()]
    ran = CliRunner().invoke(app, [*words, "--json"])
    assert ran.exit_code == 0, ran.output
    value = json.loads(ran.stdout)
    assert _promised(line) - set(value[0] if isinstance(value, list) else value) == set()


def _promised(line: str) -> set[str]:
    """The keys in a command's row."""
    name = next(name for name in EXIT_CODES if line == name or line.startswith(f"{name} "))
    row = next(row for row in PAGE.splitlines() if row.startswith(f"| `{name}` |") and "|" in row[2:])
    whole = row.partition(" | ")[2].partition("; with")[0]
    keys = re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", whole))
    assert len(keys) > 1
    return set(keys)


def test_the_json_of_answers_and_rounds_has_the_keys_of_the_page() -> None:
    """The commands that ask a server print these values."""
    assert _promised("probe") == {field.name for field in fields(ChatResult)} | {"tokens_per_s"}
    assert _promised("prewarm") == {field.name for field in fields(Prewarmed)} | {"starts", "url"}
