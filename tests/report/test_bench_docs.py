"""The page about `torpor bench` names the options and fields that exist."""

from __future__ import annotations

import re
from pathlib import Path

from typer.main import get_command

import torpor.report
from tests import ROOT
from tests.report.recorded import measured
from tests.snapshots.test_snapshot_docs import options
from torpor.cli.commands import app

PAGE = (ROOT / "docs" / "bench.md").read_text(encoding="utf-8")


def test_every_field_of_the_json_is_in_the_table() -> None:
    """The table names no field that no longer exists."""
    content = measured().as_json()
    fields = set(content)
    for name in ("machine", "floor"):
        part = content[name]
        assert isinstance(part, dict)
        fields |= set(part)
    starts = content["starts"]
    assert isinstance(starts, list)
    fields |= {*starts[0], *starts[0]["spans"][0], "cold", "restored", "woken", "median", "min", "p95", "max"}
    table = PAGE.partition("## The JSON")[2].partition("`report` refuses")[0]
    named = set(re.findall(r"`([\w.\[\]]+)`", table)) - {"torpor.bench", "starts[].spans"}
    assert named == fields


def test_every_option_on_the_page_is_one_of_a_command() -> None:
    """The page has all options of `bench`."""
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", PAGE))
    assert {"--starts", "--backend", "--json", "--html", "--records"} <= named
    assert named - set(options(get_command(app))) == set()


def test_the_package_names_each_of_its_modules() -> None:
    """It names no module that no longer exists."""
    folder = Path(str(torpor.report.__file__)).parent
    modules = {file.stem for file in folder.glob("*.py")} - {"__init__"}
    named = set(re.findall(r"^(\w+) {3,}", str(torpor.report.__doc__), re.MULTILINE))
    assert named == modules
