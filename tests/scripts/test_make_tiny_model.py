"""`scripts/make_tiny_model.py`, with the real engine's own libraries."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests import ROOT
from tests.plugins.torpor_sglang.conftest import LOCAL

if TYPE_CHECKING:
    from pathlib import Path

SCRIPT = ROOT / "scripts" / "make_tiny_model.py"


def make(python: Path | str, *arguments: object) -> subprocess.CompletedProcess[str]:
    argv = [str(python), str(SCRIPT), *(str(argument) for argument in arguments)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=200, check=False)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.sglang
@pytest.mark.slow
def test_the_same_model_is_made_every_time(tmp_path: Path) -> None:
    """Weights and tokenizer come from fixed seeds and texts, so a snapshot key made of their files holds."""
    python = LOCAL.find(LOCAL.version).python
    for name in ("one", "two"):
        made = make(python, tmp_path / name)
        assert made.returncode == 0, made.stderr
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    assert make(python, tmp_path / "one").stdout == f"{tmp_path / 'one'}: ready\n"


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    """Nothing is overwritten that this script has not made."""
    (tmp_path / "mine").touch()
    refused = make(sys.executable, tmp_path)
    assert refused.returncode == 2
    assert "holds something else; name another folder" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_interpreter_without_the_engines_libraries_is_named_as_the_reason(tmp_path: Path) -> None:
    """Run with another Python, the error says whose it has to be, and nothing is left behind."""
    failed = make(sys.executable, tmp_path / "model")
    assert failed.returncode == 1
    assert "run it with an engine's Python, see scripts/setup-local" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert list(tmp_path.iterdir()) == []
