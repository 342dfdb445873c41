"""Tests in several workers: tests that share a fixture run in one worker, and a long test is named while it runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests import ROOT
from tests.side_by_side import RunningNow

if TYPE_CHECKING:
    from pathlib import Path

CONFTEST = """
from tests import side_by_side

side_by_side.LONG_S = 0.2

def pytest_configure(config):
    config.pluginmanager.register(side_by_side)
"""
TESTS = """
import os, pathlib, time, pytest
from tests.side_by_side import built_once

@pytest.fixture(scope="module", params=["a", "b"])
def built(request, tmp_path_factory):
    name = f"{request.param} {os.environ['PYTEST_XDIST_WORKER']}"
    (pathlib.Path(__file__).parent / name).touch()
    return request.param

@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    def build(folder):
        folder.mkdir()
        (pathlib.Path(__file__).parent / f"shared {os.getpid()}").touch()
    return built_once(tmp_path_factory, "shared", build)

@pytest.mark.parametrize("number", range(4))
def test_of_a_fixture(built, shared, number):
    assert shared.is_dir()
    (pathlib.Path(__file__).parent / f"{built}{number}").write_text(str(time.monotonic()))

@pytest.mark.timeout(100)
def test_long(shared):
    (pathlib.Path(__file__).parent / "long").write_text(str(time.monotonic()))
    time.sleep(0.5)
"""


@pytest.mark.slow
def test_a_shared_fixture_is_built_once_and_a_long_test_is_named(tmp_path: Path) -> None:
    """Each parameter of a module fixture has one worker, a shared folder has one for all. The longest deadline goes first."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_it.py").write_text(TESTS)
    options = ["-p", "no:cacheprovider", "-p", "xdist.plugin", "-n", "2", "--dist", "loadgroup"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", "/dev/null", "--rootdir", tmp_path, *options, tmp_path],
        cwd=ROOT,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},  # other plugins would cost a second
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "9 passed" in done.stdout
    built = [path.name for path in tmp_path.glob("? gw?")]
    assert sorted(name[0] for name in built) == ["a", "b"]
    assert len(list(tmp_path.glob("shared *"))) == 1
    assert re.search(r"^running for \d+ s: test_it\.py::test_long$", done.stdout, re.MULTILINE), done.stdout
    assert float((tmp_path / "long").read_text()) < float((tmp_path / "b3").read_text())


def test_a_long_test_is_named_repeatedly_until_it_ends() -> None:
    """After the time that makes it long, then whenever its time has doubled."""
    lines: list[str] = []
    now = RunningNow(lines.append, long_s=30)
    now.pytest_runtest_logstart("test_one")
    now._begun["test_one"] = 100.0
    assert [list(now.due(at)) for at in (129, 130, 159, 160, 219, 220)] == [
        [],
        ["running for 30 s: test_one"],
        [],
        ["running for 60 s: test_one"],
        [],
        ["running for 120 s: test_one"],
    ]
    now.pytest_runtest_logfinish("test_one")
    assert list(now.due(1000.0)) == []
