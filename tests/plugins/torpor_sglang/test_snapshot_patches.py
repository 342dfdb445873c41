"""The patches that snapshots need, as far as they can be tested without the engine (with it: test_real_server.py)."""

from __future__ import annotations

import importlib
import inspect
import sys
import types
from typing import TYPE_CHECKING

import pytest

from torpor.engine_patches.after_import import after_import
from torpor_sglang.patches.cpu_seconds import never_decrease
from torpor_sglang.patches.detokenizer_thread import detokenize_in_a_thread

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module that can be imported during the test."""
    (tmp_path / "late_module.py").write_text("value = 1\ndef broken():\n    raise ValueError\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    yield "late_module"
    sys.modules.pop("late_module", None)


def test_a_module_is_changed_only_when_it_is_imported(module: str) -> None:
    """The order of the engine's imports stays, and its loader still provides sources for tracebacks."""
    seen: list[int] = []
    after_import(module, lambda found: seen.append(found.value))
    assert seen == []
    found = importlib.import_module(module)
    assert seen == [1]
    assert "raise ValueError" in inspect.getsource(found)


def test_an_imported_module_is_changed_at_once(module: str) -> None:
    """The order of patches and imports does not matter."""
    seen: list[str] = []
    importlib.import_module(module)
    after_import(module, lambda found: seen.append(found.__name__))
    assert seen == [module]


def test_a_missing_module_is_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """One patch names the modules of several versions."""
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    after_import("no_such_module_anywhere", lambda _: pytest.fail("there is none"))
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("no_such_module_anywhere")


def test_a_counter_ignores_a_negative_amount() -> None:
    """The CPU clock of a restored process begins at zero, so the first difference is negative and must not end a process."""

    class Counter:
        total = 0.0

        def inc(self, amount: float = 1, exemplar: dict[str, str] | None = None) -> None:
            if amount < 0:
                raise ValueError("Counters can only be incremented by non-negative amounts.")
            self.total += amount

    metrics = types.ModuleType("metrics")
    metrics.Counter = Counter  # type: ignore[attr-defined]
    never_decrease(metrics)
    counter = Counter()
    for amount in (2.5, -40.0, 0.5):
        counter.inc(amount)
    counter.inc()
    assert counter.total == 4.0


def test_several_detokenizers_stay_processes() -> None:
    """The thread can replace only one process."""

    class Engine:
        @classmethod
        def _launch_detokenizer_subprocesses(
            cls, server_args: object, port_args: object, run_detokenizer_process_func: object
        ) -> tuple[list[object], list[str]]:
            return [server_args, port_args, run_detokenizer_process_func], ["processes"]

    engine = types.ModuleType("engine")
    engine.Engine = Engine  # type: ignore[attr-defined]
    detokenize_in_a_thread(engine)
    several = types.SimpleNamespace(detokenizer_worker_num=2, tokenizer_worker_num=1)
    launched = Engine._launch_detokenizer_subprocesses(
        server_args=several, port_args="ports", run_detokenizer_process_func="run"
    )
    assert launched == ([several, "ports", "run"], ["processes"])


def test_a_version_without_the_patched_method_is_not_changed() -> None:
    """0.5.6.post2 has no such method."""
    engine = types.ModuleType("engine")
    engine.Engine = type("Engine", (), {})  # type: ignore[attr-defined]
    detokenize_in_a_thread(engine)
    assert not [name for name in vars(engine.Engine) if not name.startswith("__")]


def test_two_patches_of_one_module_are_both_applied(module: str) -> None:
    """They run in the order of registration; the second must not hide the first."""
    seen: list[str] = []
    after_import(module, lambda found: seen.append(f"first {found.value}"))
    after_import(module, lambda found: seen.append(f"second {found.value}"))
    importlib.import_module(module)
    assert seen == ["first 1", "second 1"]
