"""How tests share the workers of pytest-xdist: which of them stay together, which begin first, and what runs now.

pytest-xdist's own `--dist loadgroup` does not know its groups any more with pytest 9.2, and says nothing. Here each worker writes
the groups down, and the process that hands out the tests reads them.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typing_extensions import override
from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from xdist.remote import Producer
    from xdist.workermanage import WorkerController

__all__ = ["LONG_S", "RunningNow", "Together", "built_once", "group_of"]

LONG_S = 30.0
"""A test that runs for longer is named while it runs, and again whenever its time has doubled."""

_ENGINE_FIXTURES = ("questions", "asked")
"""Session fixtures that start a process of a real engine: all tests of one version ask the same process."""
_CLASS_FIXTURES = ("life",)
"""Fixtures that keep their value for the whole class (see `torpor.testing`), whatever their scope says."""


def group_of(item: pytest.Item) -> str | None:
    """The group of a test: one worker runs all tests of a group. None if a test may run in any worker.

    Tests that use one module or class fixture stay together, so that it is built once. A parameter of that fixture
    makes a group of its own.
    """
    if not isinstance(item, pytest.Function):
        return None
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    if any(name in item.fixturenames for name in _ENGINE_FIXTURES):
        return f"{item.path.parent.name}-{parameters.get('questions', 'any')}"
    if any(name in item.fixturenames for name in _CLASS_FIXTURES):
        return item.nodeid.rpartition("::")[0].replace("::", ".")
    shared = [name for name in item.fixturenames if _is_shared(item, name)]
    if not shared:
        return None
    return "-".join(
        [item.nodeid.partition("::")[0], *(str(item.callspec.indices[one]) for one in shared if one in parameters)]
    )


def built_once(factory: pytest.TempPathFactory, name: str, build: Callable[[Path], None]) -> Path:
    """Return a folder of this session that the first worker builds and all workers share."""
    base = factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    folder, beside = shared / name, shared / f"{name}.new"
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            shutil.rmtree(beside, ignore_errors=True)
            build(beside)
            beside.rename(folder)
    return folder


class Together(LoadScopeScheduling):
    """Hands out tests one by one, those of a group to one worker."""

    def __init__(self, config: pytest.Config, log: Producer, groups: Path) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False  # the workers have put the tests in order
        self._file = groups
        self._groups: dict[str, str] | None = None

    @override
    def _split_scope(self, nodeid: str) -> str:
        if self._groups is None:  # every worker has collected by now
            self._groups = json.loads(self._file.read_text())
        return self._groups.get(nodeid, nodeid)


class Controller:
    """The hooks of the process that hands out the tests."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="torpor-tests-")
        self._groups = Path(self._folder.name) / "groups.json"

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: WorkerController) -> None:
        """Tell a worker where the groups belong."""
        node.workerinput["groups"] = str(self._groups)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Producer) -> Together | None:
        """Take the place of `--dist loadgroup`."""
        return Together(config, log, self._groups) if config.getoption("dist") == "loadgroup" else None

    def pytest_unconfigure(self) -> None:
        """Remove the groups."""
        self._folder.cleanup()


class Worker:
    """The hooks of a process that runs tests.

    Args:
        groups: the file for their groups.
    """

    def __init__(self, groups: Path) -> None:
        self._groups = groups

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Write down the groups. Tests with long deadlines go first, so that none of them runs alone at the end."""
        items.sort(key=_deadline, reverse=True)
        beside = self._groups.with_name(f"{os.getpid()}.json")
        beside.write_text(json.dumps({item.nodeid: group for item in items if (group := group_of(item))}))
        beside.replace(self._groups)


class RunningNow:
    """Names the tests that have been running for long, in the process that shows the results of all workers.

    Args:
        write: shows a line.
        long_s: see `LONG_S`.
    """

    def __init__(self, write: Callable[[str], None], *, long_s: float) -> None:
        self._write = write
        self._long_s = long_s
        self._begun: dict[str, float] = {}
        self._named_at: dict[str, float] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def pytest_sessionstart(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def pytest_sessionfinish(self) -> None:
        """Watch no longer."""
        self._ended.set()
        self._thread.join()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A worker begins a test."""
        self._begun[nodeid] = time.monotonic()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """A worker has ended a test."""
        self._begun.pop(nodeid, None)
        self._named_at.pop(nodeid, None)

    def due(self, now_s: float) -> Iterable[str]:
        """A line for each test that is due to be named."""
        for nodeid, begun_s in self._begun.copy().items():
            running_s = now_s - begun_s
            if running_s >= self._named_at.get(nodeid, self._long_s):
                self._named_at[nodeid] = 2 * running_s
                yield f"running for {running_s:.0f} s: {nodeid}"

    def _watch(self) -> None:
        while not self._ended.wait(self._long_s / 10):
            for line in self.due(time.monotonic()):
                self._write(line)


def pytest_configure(config: pytest.Config) -> None:
    """Register what this process needs: nothing where there are no workers."""
    if (given := getattr(config, "workerinput", None)) is not None:
        config.pluginmanager.register(Worker(Path(given["groups"])))
    elif config.getoption("dist", "no") != "no":
        config.pluginmanager.register(Controller())
        config.pluginmanager.register(RunningNow(lambda line: _show(config, line), long_s=LONG_S))


def _show(config: pytest.Config, line: str) -> None:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.ensure_newline()
        reporter.write_line(line)


def _is_shared(item: pytest.Function, name: str) -> bool:
    definitions = item._fixtureinfo.name2fixturedefs.get(name, ())
    return any(definition.scope in ("class", "module") for definition in definitions)


def _deadline(item: pytest.Item) -> float:
    mark = item.get_closest_marker("timeout")
    return float(mark.args[0]) if mark and mark.args else 0.0
