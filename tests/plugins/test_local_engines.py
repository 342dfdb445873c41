"""Tests of a missing engine are skipped, or fail if the engine is required."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.plugins.local_engines import LocalEngine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def local(tmp_path: Path) -> LocalEngine:
    """An engine that is not installed."""
    return LocalEngine(name="vllm", title="vLLM", version="0.32.0", folder=tmp_path / ".engines")


def put_python(local: LocalEngine) -> Path:
    python = local.folder / "vllm-0.32.0" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    return python


def outcome(find: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises((pytest.skip.Exception, pytest.fail.Exception)) as found:
        find()
    return ("skipped" if found.errisinstance(pytest.skip.Exception) else "failed"), str(found.value)


@pytest.mark.parametrize(
    ("required", "expected", "end"), [("", "skipped", ""), ("1", "failed", " (TORPOR_REQUIRE_VLLM=1)")]
)
def test_the_message_names_the_missing_part_and_the_command_that_installs_it(
    local: LocalEngine, monkeypatch: pytest.MonkeyPatch, required: str, expected: str, end: str
) -> None:
    """First the environment is missing, then the other version's Python files: a skip, or a failure if required."""
    monkeypatch.setenv("TORPOR_REQUIRE_VLLM", required)
    missing = ".engines/vllm-0.32.0/bin/python is missing; run scripts/setup-local --engine vllm"
    assert outcome(lambda: local.find("0.33.0")) == (expected, missing + end)
    put_python(local)
    missing = ".engines/vllm-parsers/0.33.0 is missing; run scripts/setup-local --engine vllm --parsers"
    assert outcome(lambda: local.find("0.33.0")) == (expected, missing + end)


def test_a_required_engine_does_not_require_the_other(local: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each engine has its own variable."""
    monkeypatch.setenv("TORPOR_REQUIRE_SGLANG", "1")
    monkeypatch.delenv("TORPOR_REQUIRE_VLLM", raising=False)
    assert outcome(lambda: local.find("0.32.0"))[0] == "skipped"


def test_another_version_comes_first_on_the_import_path(local: LocalEngine) -> None:
    """The interpreter's own version is on the path already; another version is put before it."""
    python = put_python(local)
    parsers = local.folder / "vllm-parsers" / "0.33.0"
    parsers.mkdir(parents=True)
    assert (local.find("0.32.0").python, local.find("0.32.0").env["PYTHONPATH"]) == (python, "")
    assert (local.find("0.33.0").python, local.find("0.33.0").env["PYTHONPATH"]) == (python, str(parsers))
