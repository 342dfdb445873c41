"""The example of a third-party plugin: written with public names only, and tested next to an installed Torpor."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import torpor
from tests import ROOT
from torpor import guard, launcher, listener, testing

if TYPE_CHECKING:
    from pathlib import Path

EXAMPLE = ROOT / "examples" / "torpor-llamacpp"
PUBLIC = {module.__name__: module.__all__ for module in (torpor, guard, testing, launcher, listener)}


def run(*argv: str | Path, timeout_s: float, cwd: Path | None = None) -> str:
    """Run a command and return its output. A failure shows the command's own output."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(word) for word in argv], cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=timeout_s
    )
    assert done.returncode == 0, f"{argv}\n{done.stdout[-5000:]}\n{done.stderr[-5000:]}"
    return done.stdout


def test_the_example_uses_public_names_only() -> None:
    """A third party's plugin needs nothing else of Torpor."""
    for file in EXAMPLE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                assert not [alias.name for alias in node.names if alias.name.partition(".")[0] == "torpor"], file
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "torpor":
                assert {alias.name for alias in node.names} <= set(PUBLIC[node.module or ""]), f"{file}:{node.lineno}"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_example_is_installed_and_keeps_the_contract(tmp_path: Path) -> None:
    """In a fresh environment with Torpor's wheel, the entry point is found, and the plugin passes every rule, live ones too."""
    run(sys.executable, "-m", "venv", tmp_path / "venv", timeout_s=120)
    python = tmp_path / "venv" / "bin" / "python"
    install = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*install, f"{ROOT}[testing]", f"{EXAMPLE}[test]", timeout_s=900)

    listed = json.loads(run(tmp_path / "venv" / "bin" / "torpor", "plugins", "--json", timeout_s=60))
    mine = next(entry for entry in listed if entry["name"] == "llamacpp")
    assert (mine["status"], mine["launches"]) == ("loaded", True)

    output = run(python, "-m", "pytest", "-p", "no:cacheprovider", EXAMPLE, timeout_s=300, cwd=tmp_path)
    assert re.search(r"\n=+ \d+ passed in ", output), output
