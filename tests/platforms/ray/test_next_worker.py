"""`torpor.platforms.ray.next_worker`: when a worker is started ahead. On a real cluster: tests/platforms/ray/test_cluster.py."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
import structlog

from tests.platforms.ray.with_ray import needs_ray

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The module in a process that is no worker, with a runtime context of the test's own."""
    import ray

    from torpor.platforms.ray import next_worker

    monkeypatch.setenv("TORPOR_CACHE", str(tmp_path))
    monkeypatch.setattr(ray, "get_runtime_context", Context)
    return next_worker


class Context:
    """What Ray says of a replica."""

    environment = "{}"

    def get_runtime_env_string(self) -> str:
        """Its runtime environment."""
        return self.environment


@needs_ray
def test_one_worker_is_started_and_a_second_caller_does_nothing(
    node: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first waits until it is there; others leave at once, and so does who finds an idle one."""
    asked, idle, waits = [], list[int](), threading.Event()

    def ask() -> None:
        asked.append(True)
        waits.set()

    monkeypatch.setattr(node, "_ask_raylet", ask)
    monkeypatch.setattr(node, "_idle_workers", lambda: idle)
    first = threading.Thread(target=node.start_next_worker, daemon=True)
    first.start()
    assert waits.wait(30)
    node.start_next_worker()
    assert (len(asked), first.is_alive()) == (1, True)
    idle.append(7)
    first.join(30)
    assert not first.is_alive()
    node.start_next_worker()
    assert len(asked) == 1


@needs_ray
def test_a_ray_that_starts_none_is_no_error(node: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next replica starts as it would without; a line of the log says why."""

    def refuse() -> None:
        raise AttributeError("no PrestartWorkers")

    monkeypatch.setattr(node, "_ask_raylet", refuse)
    with structlog.testing.capture_logs() as logs:
        node.start_next_worker()
    (entry,) = logs
    assert (entry["event"], entry["error"]) == ("no_worker_started_ahead", "AttributeError: no PrestartWorkers")


@needs_ray
def test_replicas_with_a_runtime_environment_get_none(node: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would not give it to them."""
    monkeypatch.setattr(Context, "environment", '{"env_vars": {"A": "1"}}')
    monkeypatch.setattr(node, "_ask_raylet", lambda: pytest.fail("it was asked"))
    with structlog.testing.capture_logs() as logs:
        node.start_next_worker()
    assert logs == []


@needs_ray
def test_what_is_imported_ahead_can_be_imported() -> None:
    """A name that went away would only make starts slower, which nobody sees."""
    import importlib

    from torpor.platforms.ray.preloaded import MODULES

    for name in MODULES:
        assert importlib.import_module(name)


@needs_ray
def test_rays_protocol_has_the_call() -> None:
    """With the fields that it is given."""
    from ray.core.generated import node_manager_pb2

    fields = {one.name for one in node_manager_pb2.PrestartWorkersRequest.DESCRIPTOR.fields}
    assert {"language", "job_id", "keep_alive_duration_secs", "num_workers"} <= fields
