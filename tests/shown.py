"""Records what the tests prove about each engine. The documentation builds a table from the record.

A test that runs the real engine carries a mark:

    @pytest.mark.shows("snapshot by CRIU, on a CPU", engine="sglang", version="0.5.23")

`{name}` in engine or version stands for a parameter of the test. With TORPOR_RECORD=FILE, the marks of all tests that passed are
added to FILE: `{"ROW": {"ENGINE": "VERSION, VERSION"}}`. `make record` does this for all engines of this machine. Rows that need
a GPU come from the results of `benchmarks/gpu`: a row counts if all restores gave one text and each sampled request ended.
"""

from __future__ import annotations

import importlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tests import ROOT

if TYPE_CHECKING:
    from collections.abc import Generator

    import pytest

__all__ = ["RECORD_VARIABLE", "RESULTS", "ROWS", "Results", "merged", "read_results", "shown_by", "shown_by_benchmark"]

RECORD_VARIABLE = "TORPOR_RECORD"
RESULTS = ROOT / "docs" / "engine-results.json"
ROWS = (
    "flags and routes, against the real parser and application",
    "contract: start, guard, two sleeps and wakes, end",
    "faults of the real engine",
    "snapshot by CRIU, on a CPU",
    "snapshot by CRIU and the CUDA driver, on a GPU",
    "standby, on a GPU",
    "deployment as the real modal client sends it",
)
Results = dict[str, dict[str, str]]
Figures = dict[str, dict[str, dict[str, object]]]
_shown: set[tuple[str, str, str]] = set()


def shown_by(item: pytest.Item) -> set[tuple[str, str, str]]:
    """Return row, engine and version of each mark of a test.

    Raises:
        ValueError: a mark names a row that the table does not have.
    """
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    found = set()
    for mark in item.iter_markers("shows"):
        (row,) = mark.args
        if row not in ROWS:
            raise ValueError(f"{item.nodeid} shows {row!r}; the rows are {', '.join(ROWS)}")
        with suppress(KeyError):  # a test without the parameter, in a class that has the mark
            engine, version = (str(mark.kwargs[key]).format(**parameters) for key in ("engine", "version"))
            found.add((row, engine, version))
    return found


def merged(results: Results, shown: set[tuple[str, str, str]]) -> Results:
    """Add what was shown to results. Rows are in the order of `ROWS`, versions newest first."""
    versions: dict[tuple[str, str], set[str]] = {
        (row, engine): set(told.split(", ")) for row, engines in results.items() for engine, told in engines.items()
    }
    for row, engine, version in shown:
        versions.setdefault((row, engine), set()).add(version)
    return {
        row: {
            engine: ", ".join(sorted(found, key=_numbers, reverse=True))
            for (other, engine), found in sorted(versions.items())
            if other == row
        }
        for row in ROWS
        if any(other == row for other, _ in versions)
    }


def read_results(file: Path) -> Results:
    """Read an earlier record; empty if there is no file."""
    results: Results = json.loads(file.read_text()) if file.exists() else {}
    return results


def shown_by_benchmark(results: Figures, version: str) -> set[tuple[str, str, str]]:
    """Return what the results of the GPU benchmark show about SGLang.

    Args:
        results: content of the file. Rows of other engines begin with the engine's name and are left out.
        version: SGLang's version in the benchmark's deployment.
    """
    found = set()
    for name, row in results.get("rows", {}).items():
        whole = bool(row.get("sampled_asked")) and row.get("sampled_finished") == row["sampled_asked"]
        if name.startswith("vllm") or not whole:
            continue
        texts = row.get("texts")
        one_answer = isinstance(texts, list) and len(texts) == 1
        if row.get("restored_s") and one_answer:  # the lifecycle itself compares the canary at every wake
            found.add((ROWS[4], "sglang", version))
        if row.get("woken_s"):
            found.add((ROWS[5], "sglang", version))
    return found


def note_report(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember the marks of a test if it passes."""
    report = yield
    if report.when == "call" and report.passed:
        _shown.update(shown_by(item))
    return report


def write_down() -> None:
    """Write the record at the end of the session, if TORPOR_RECORD is set."""
    if (name := os.environ.get(RECORD_VARIABLE)) and _shown:
        version: str = importlib.import_module("benchmarks.gpu.app").deployment.engine.engine_version
        figures = sorted((RESULTS.parents[1] / "benchmarks" / "gpu").glob("*.json"))
        on_a_gpu = [shown_by_benchmark(json.loads(one.read_text()), version) for one in figures]
        file = Path(name)
        file.write_text(json.dumps(merged(read_results(file), _shown.union(*on_a_gpu)), indent=2) + "\n")


def _numbers(version: str) -> tuple[tuple[int, str], ...]:
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in version.split("."))
