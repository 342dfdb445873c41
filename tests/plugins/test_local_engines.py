"""An engine that is not set up skips its tests, or fails them where it is required."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.plugins.local_engines import LocalEngine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def local(tmp_path: Path) -> LocalEngine:
    """An engine of which nothing is set up."""
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
def test_what_is_missing_is_named_with_the_command_that_makes_it(
    local: LocalEngine, monkeypatch: pytest.MonkeyPatch, required: str, expected: str, end: str
) -> None:
    """Without the environment, then without the other version's Python files: a skip, or a failure where it is required."""
    monkeypatch.setenv("TORPOR_REQUIRE_VLLM", required)
    missing = ".engines/vllm-0.32.0/bin/python is missing; run scripts/setup-local --engine vllm"
    assert outcome(lambda: local.find("0.33.0")) == (expected, missing + end)
    put_python(local)
    missing = ".engines/vllm-parsers/0.33.0 is missing; run scripts/setup-local --engine vllm --parsers"
    assert outcome(lambda: local.find("0.33.0")) == (expected, missing + end)


def test_the_other_engines_requirement_is_not_this_ones(local: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each engine is required by a variable of its own."""
    monkeypatch.setenv("TORPOR_REQUIRE_SGLANG", "1")
    monkeypatch.delenv("TORPOR_REQUIRE_VLLM", raising=False)
    assert outcome(lambda: local.find("0.32.0"))[0] == "skipped"


def test_another_version_is_found_before_the_one_whose_python_runs_it(local: LocalEngine) -> None:
    """The version that runs here is on its interpreter's path already; any other is put before it."""
    python = put_python(local)
    parsers = local.folder / "vllm-parsers" / "0.33.0"
    parsers.mkdir(parents=True)
    assert (local.find("0.32.0").python, local.find("0.32.0").env["PYTHONPATH"]) == (python, "")
    assert (local.find("0.33.0").python, local.find("0.33.0").env["PYTHONPATH"]) == (python, str(parsers))
