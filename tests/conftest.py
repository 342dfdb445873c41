"""Fixtures for all tests: a known environment, boots that end with their test, and a search for left processes."""

from __future__ import annotations

import compileall
import gc
import os
import shutil
import signal
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Protocol

import psutil
import pytest
import structlog
from hypothesis import HealthCheck, settings

from tests import ROOT, last_answers, shown, side_by_side
from torpor.engine.process import session_members
from torpor.runtime.boot import Boot
from torpor.runtime.captured_secrets import secret_names
from torpor.snapshots.criu.program import PREFIX_VARIABLE
from torpor.snapshots.store.paths import CACHE_VARIABLE, cache_root, criu_prefix
from torpor.telemetry import events
from torpor.testing import StandIn, StandInVLLM

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from torpor import Deployment
    from torpor.recipe import Recipe
    from torpor.telemetry.stage_report import StageReport

# A busy machine is no fault of what is tested.
settings.register_profile("torpor", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("quick", settings.get_profile("torpor"), max_examples=25)
settings.load_profile("torpor")

_LISTENED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD)

BOTH_DIALECTS = pytest.mark.parametrize(
    "standin",
    [pytest.param(StandIn, id="sglang"), pytest.param(StandInVLLM, id="vllm", marks=pytest.mark.slow)],
)
"""Runs a test with the stand-in of each dialect as `standin`; the second is a slow test."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """See `tests.shown` and `tests.last_answers`."""
    report = yield from shown.note_report(item)
    last_answers.add_to(report)
    return report


def pytest_sessionfinish(exitstatus: int) -> None:
    """See `tests.shown`: a session with a failure records nothing."""
    if exitstatus == pytest.ExitCode.OK:
        shown.write_down()


# pytest keeps the test modules that it has rewritten: without that, each worker rewrites 550 modules again (4 s).
sys.dont_write_bytecode = False


def pytest_configure(config: pytest.Config) -> None:
    """Give the processes that tests start a known environment, whatever this one inherited."""
    gc.disable()  # until all tests are collected: nothing of them is garbage
    _hear_signals()
    for name in secret_names(os.environ):  # with one of the tester's own secrets, no snapshot is taken
        del os.environ[name]
    if not hasattr(config, "workerinput"):
        _compile_torpor()
        _own_cache_root(config)
    config.pluginmanager.register(side_by_side)
    config.pluginmanager.register(last_answers)


def _hear_signals() -> None:
    """Undo what a shell's background job, or nohup, ignores."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _own_cache_root(config: pytest.Config) -> None:
    """Give this session a cache root of its own: tests change nothing in the user's. CRIU stays where it is installed.

    It lies beside the user's. In a temporary folder, captures would refuse what an engine has open there.
    """
    os.environ.setdefault(PREFIX_VARIABLE, str(criu_prefix()))
    beside = cache_root().parent
    beside.mkdir(parents=True, exist_ok=True)
    own = os.environ[CACHE_VARIABLE] = tempfile.mkdtemp(prefix="torpor-tests-", dir=beside)
    config.add_cleanup(lambda: shutil.rmtree(own, ignore_errors=True))


def _compile_torpor() -> None:
    """Compile Torpor once, so that no command that a test starts compiles what it imports.

    Tests write no byte code of their own: Python takes a file that is rewritten within a second, with as many bytes, for the
    old one.
    """
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    for folder in ("core", "plugins"):
        compileall.compile_dir(ROOT / folder, quiet=2)


def pytest_collection_finish() -> None:
    """Keep what was collected out of the garbage collector's way: 7,000 tests are a million objects. See `_compile_torpor` too."""
    sys.dont_write_bytecode = True
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _forgotten_apps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """After a test, Python forgets what it imported from a temporary folder: another test has an app of the same name."""
    known, paths, base = set(sys.modules), list(sys.path), str(tmp_path_factory.getbasetemp())
    yield
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(base):
            del sys.modules[name]
    sys.path[:] = paths


@pytest.fixture(autouse=True)
def _no_quiet_log() -> Iterator[None]:
    """After a test, the log says everything again: a command that a test calls in its process quiets it."""
    yield
    if events._quiet:
        events._quiet = False
        structlog.reset_defaults()


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    """After a test, signals do what they did before: a command that a test calls in its process listens for them."""
    before = {number: signal.getsignal(number) for number in _LISTENED}
    yield
    if any(signal.getsignal(number) is not handler for number, handler in before.items()):
        signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _no_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove what the shell or pytest-xdist says about a terminal: it changes how text is wrapped and coloured."""
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


class MakeBoot(Protocol):
    """Makes a boot that ends with the test, whatever the test does."""

    def __call__(
        self, deployment: Deployment, *, recipe: Recipe | None = None, report: StageReport | None = None
    ) -> Boot:
        """Return a boot that is not started."""


@pytest.fixture
def make_boot() -> Iterator[MakeBoot]:
    """A factory of boots, see `MakeBoot`."""
    boots: list[Boot] = []

    def make(deployment: Deployment, *, recipe: Recipe | None = None, report: StageReport | None = None) -> Boot:
        boots.append(Boot(deployment, recipe=recipe, report=report))
        return boots[-1]

    yield make
    for boot in boots:
        if boot.engine is not None:
            boot.engine.terminate(0.0)


def is_running(process: psutil.Process | int) -> bool:
    """Whether a process runs. A zombie does not, nor one that ends while this looks."""
    try:
        process = psutil.Process(process) if isinstance(process, int) else process
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def living_members(leader_pid: int) -> list[int]:
    """Process ids of an engine's session that still run; zombies do not count."""
    return [process.pid for process in session_members(leader_pid) if is_running(process)]


def wait_until_gone(leader_pid: int, timeout_s: float = 30.0) -> list[int]:
    """Wait until an engine's whole session has ended; return what is left at the deadline."""
    deadline = time.monotonic() + timeout_s
    while (left := living_members(leader_pid)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return left
