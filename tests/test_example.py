"""The examples of third-party plugins: written with public names only, and tested by their own tests.

`tests/scaffold/test_made_projects.py` installs and runs torpor-llamacpp.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import torpor
from tests import ROOT
from tests.plugins.local_engines import make_tiny_model
from tests.plugins.torpor_vllm.conftest import LOCAL
from torpor import engine_plugins, guard, launcher, listener, testing
from torpor.platforms import local

if TYPE_CHECKING:
    from pathlib import Path

EXAMPLES = ROOT / "examples"
BESIDE_TORPOR = ("torpor-otel", "torpor-warmups")
"""Examples whose tests need no environment of their own."""

PUBLIC = {
    module.__name__: module.__all__ for module in (torpor, engine_plugins, guard, testing, launcher, listener, local)
}


def test_the_examples_use_public_names_only() -> None:
    """A third party's plugin needs nothing else of Torpor. Names for annotations alone count as well."""
    for file in EXAMPLES.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                assert not [alias.name for alias in node.names if alias.name.partition(".")[0] == "torpor"], file
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "torpor":
                assert {alias.name for alias in node.names} <= set(PUBLIC[node.module or ""]), f"{file}:{node.lineno}"


@pytest.mark.parametrize("name", BESIDE_TORPOR)
@pytest.mark.slow
def test_an_example_keeps_the_contract_and_passes_its_own_tests(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a session of its own, with its own settings, beside the Torpor of this session."""
    assert passed_tests_of(name, tmp_path, monkeypatch) > 20


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_engine_around_transformers_keeps_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch, transformers and a tiny model on the CPU: every rule, live ones too, answers, and the memory of a sleep."""
    engine = LOCAL.find(LOCAL.version)
    model = tmp_path / "tiny"
    make_tiny_model(engine, model)
    monkeypatch.setenv("TORPOR_ENGINE_PYTHON", str(engine.python))
    monkeypatch.setenv("TORPOR_TINY_MODEL", str(model))
    assert passed_tests_of("torpor-transformers", tmp_path, monkeypatch) > 30


def passed_tests_of(name: str, cwd: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run an example's tests; returns how many passed. None may be skipped."""
    folder = EXAMPLES / name
    monkeypatch.setenv("PYTEST_ADDOPTS", "")
    source = os.pathsep.join([str(folder / "src"), *map(str, (ROOT / "core", ROOT / "plugins"))])
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-c",
            folder / "pyproject.toml",
            folder / "tests",
        ],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, f"{done.stdout[-5000:]}\n{done.stderr[-2000:]}"
    found = re.search(r"^(\d+) passed in ", done.stdout, re.MULTILINE)
    assert found, done.stdout
    return int(found[1])
