"""The record of what tests showed of each engine: how it grows, and that it names only existing engines and versions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from tests.shown import RESULTS, ROWS, merged, read_results, shown_by, shown_by_benchmark
from torpor.discovery import installed_plugins
from torpor_sglang import SGLang
from torpor_vllm import VLLM

if TYPE_CHECKING:
    from torpor.engine_plugins.chat_server import ChatServer

ENGINES: dict[str, type[ChatServer]] = {"sglang": SGLang, "vllm": VLLM}


def test_new_results_are_added_to_the_record() -> None:
    """Rows in the table's order, versions newest first, each once. Results of another machine stay."""
    before = {ROWS[4]: {"sglang": "0.5.16"}, ROWS[0]: {"sglang": "0.5.16"}}
    shown = {(ROWS[0], "sglang", "0.5.6.post2"), (ROWS[0], "sglang", "0.5.23"), (ROWS[3], "vllm", "0.32.0")}
    assert merged(before, shown) == {
        ROWS[0]: {"sglang": "0.5.23, 0.5.16, 0.5.6.post2"},
        ROWS[3]: {"vllm": "0.32.0"},
        ROWS[4]: {"sglang": "0.5.16"},
    }


class Item:
    """A collected test."""

    nodeid = "tests/test_x.py::test_x"

    def __init__(self, mark: pytest.Mark, **parameters: str) -> None:
        self.callspec = SimpleNamespace(params=parameters)
        self._mark = mark

    def iter_markers(self, name: str) -> list[pytest.Mark]:
        """The marks of a name."""
        return [self._mark] if name == self._mark.name else []


def test_a_marks_braces_stand_for_the_tests_parameters() -> None:
    """One test may show several versions."""
    mark = pytest.mark.shows(ROWS[0], engine="{engine}", version="{version}").mark
    item = cast("pytest.Item", Item(mark, engine="vllm", version="1.0"))
    assert shown_by(item) == {(ROWS[0], "vllm", "1.0")}


def test_a_row_that_the_table_does_not_have_is_an_error() -> None:
    """A misspelt row is no new row."""
    mark = pytest.mark.shows("snapshots", engine="vllm", version="1").mark
    with pytest.raises(ValueError, match="shows 'snapshots'; the rows are flags and routes"):
        shown_by(cast("pytest.Item", Item(mark)))


def test_a_benchmarks_row_needs_every_answer_to_be_right() -> None:
    """After one restore with another text, or one request without an end, the row does not count."""
    whole = {"sampled_asked": 32, "sampled_finished": 32, "restored_s": [1.5], "texts": ["a"], "canary": "a"}
    woken = {"sampled_asked": 32, "sampled_finished": 32, "woken_s": [0.4]}
    rows: dict[str, dict[str, object]] = {"flagship": dict(whole), "standby": dict(woken), "vllm-1": dict(whole)}
    assert shown_by_benchmark({"rows": rows}, "0.5.16") == {
        (ROWS[4], "sglang", "0.5.16"),
        (ROWS[5], "sglang", "0.5.16"),
    }
    for wrong in ({"texts": ["a", "b"]}, {"sampled_finished": 31}):
        assert shown_by_benchmark({"rows": {"flagship": whole | wrong}}, "0.5.16") == set()


def test_the_record_names_only_supported_engines_and_versions() -> None:
    """When a plugin drops a version, the record drops it too."""
    installed = {plugin.name for plugin in installed_plugins() if plugin.launches}
    for row, engines in read_results(RESULTS).items():
        assert row in ROWS
        for engine, told in engines.items():
            assert engine in installed
            assert set(told.split(", ")) <= set(ENGINES[engine].supported_versions)
