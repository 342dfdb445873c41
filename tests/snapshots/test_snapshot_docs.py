"""The page about snapshots and the package's docstring name only what exists (tests/cli runs the page's commands)."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.main import get_command

import torpor.snapshots
from tests import ROOT
from torpor.cli.commands import app
from torpor.platforms import local
from torpor.snapshots.criu import probe

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = (ROOT / "docs" / "snapshots.md").read_text(encoding="utf-8")
ON_GPUS = (ROOT / "docs" / "gpu-snapshots.md").read_text(encoding="utf-8")
GVISOR = (ROOT / "docs" / "gvisor.md").read_text(encoding="utf-8")
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
FOLDER = Path(str(torpor.snapshots.__file__)).parent


def options(command: Any) -> Iterator[str]:
    """Every option of a command and its subcommands (typer has its own click)."""
    for parameter in command.params:
        yield from (*parameter.opts, *parameter.secondary_opts)
    for below in getattr(command, "commands", {}).values():
        yield from options(below)


def test_the_package_names_each_of_its_modules() -> None:
    """And each of its packages."""
    modules = {file.stem for file in FOLDER.glob("*.py")} - {"__init__"}
    modules |= {file.parent.name for file in FOLDER.glob("*/__init__.py")}
    text = str(torpor.snapshots.__doc__)
    assert sorted(name for name in modules if not re.search(rf"\b{name}\b", text)) == []
    named = re.findall(r"^(\w+) +\S|[(;,] ?(\w+):", text.partition("\n\n")[2], re.MULTILINE)
    assert len(named) > 10
    for name in filter(None, (word for words in named for word in words)):
        importlib.import_module(f"torpor.snapshots.{'criu.' * (name == 'probe')}{name}")


def test_every_option_on_the_pages_is_one_of_a_command() -> None:
    """Flags of an engine on several GPUs are those that its plugin knows; one is pip's."""
    settings = "".join(file.read_text("utf-8") for file in (ROOT / "plugins").glob("*/several_gpus.py"))
    known = {*options(get_command(app)), *FLAG.findall(settings), "--no-deps"}
    named = set(FLAG.findall(PAGE + ON_GPUS))
    assert {"--verify", "--replicas", "--snapshot", "--backend", "--mode"} <= named
    assert named - known == set()


def test_every_function_on_the_page_is_exported() -> None:
    """The functions for Python."""
    (line,) = re.findall(r"^The same from Python: (.*) in `torpor\.platforms\.local`", PAGE, re.MULTILINE)
    names = re.findall(r"`(\w+)`", line)
    assert len(names) == 4
    assert set(names) <= set(local.__all__)


def test_every_reason_is_on_the_page() -> None:
    """The table's codes are those that a reason can have."""
    told = str(probe.Reason.__doc__).partition("code:")[2].partition("seen:")[0]
    codes = set(re.findall(r"`(\w+)`", told))
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", PAGE[PAGE.index("| reason |") :], re.MULTILINE)
    assert {code for row in rows for code in re.findall(r"`(\w+)`", row)} == codes
    source = (FOLDER / "criu" / "probe.py").read_text()
    given = set(re.findall(r'code="(\w+)"|yield "(\w+)"', source))
    assert {first or second for first, second in given} | set(probe._CODES) == codes


@pytest.mark.parametrize("mark", ["runsc 0.0~", "2026-11-25", "CRIU 4.2.1", "kernel 6.18", "medians of 5"])
def test_the_decision_on_gvisor_says_what_it_rests_on(mark: str) -> None:
    """Versions, date and method: they tell when to check again."""
    assert mark in GVISOR
