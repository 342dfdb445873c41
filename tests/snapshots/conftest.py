"""Fixtures for tests of sandboxes and CRIU: the modes that work here, and sandboxes that always end."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import pytest

from tests.snapshots.nvidia import FakeDriver, build
from torpor import SnapshotError
from torpor.snapshots.criu.program import PREFIX_VARIABLE, Criu, find
from torpor.snapshots.sandbox.start import create_sandbox
from torpor.snapshots.store.paths import criu_prefix

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torpor.snapshots.sandbox.sandbox import Clock, Sandbox
    from torpor.snapshots.store.manifest import Mode

REQUIRE_VARIABLE = "TORPOR_REQUIRE_CRIU"
SMALL_DISK_VARIABLE = "TORPOR_TEST_SMALL_DISK"
MODES: tuple[Mode, ...] = ("rootless", "root") if os.geteuid() == 0 else ("rootless",)
SMALL_DISK_BYTES = 4 << 20
Seen = TypeVar("Seen")


class MakeSandbox(Protocol):
    """Makes sandboxes of the mode under test, with a common scratch folder; the test's end ends them."""

    def __call__(
        self,
        name: str = "one",
        *,
        private: Sequence[Path] = (),
        clock: Clock | None = None,
    ) -> Sandbox:
        """Return a new sandbox."""


def refuse(reason: str) -> None:
    """Skip a test that cannot run on this machine; fail if it is required."""
    if os.environ.get(REQUIRE_VARIABLE):
        pytest.fail(f"{REQUIRE_VARIABLE} is set, but: {reason}")
    pytest.skip(reason)


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> Mode:
    """Rootless, and root if we are root; skipped if the kernel forbids it."""
    chosen: Mode = request.param
    if reason := _forbidden(chosen):
        refuse(reason)
    return chosen


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """Mount point of the private scratch folder."""
    return tmp_path / "scratch"


@pytest.fixture
def make_sandbox(mode: Mode, scratch: Path) -> Iterator[MakeSandbox]:
    """A factory of sandboxes, see `MakeSandbox`."""
    made: list[Sandbox] = []

    def make(name: str = "one", *, private: Sequence[Path] = (), clock: Clock | None = None) -> Sandbox:
        sandbox = create_sandbox(name, mode=mode, scratch=scratch, private=private, clock=clock)
        made.append(sandbox)
        return sandbox

    yield make
    for sandbox in made:
        sandbox.kill()


@pytest.fixture
def sandbox(make_sandbox: MakeSandbox) -> Sandbox:
    """One sandbox."""
    return make_sandbox()


@pytest.fixture(scope="session")
def criu(tmp_path_factory: pytest.TempPathFactory) -> Criu:
    """The CRIU of `torpor snapshot setup`, or the machine's own."""
    try:
        return find(criu_prefix(), cache=tmp_path_factory.mktemp("criu-cache"))
    except SnapshotError as error:
        refuse(f"{error} (or set {PREFIX_VARIABLE})")
        raise


@pytest.fixture(scope="session")
def nvidia_libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-in for libcuda and NVML, built here; see `tests.snapshots.nvidia`."""
    return build(tmp_path_factory.mktemp("nvidia"))


@pytest.fixture
def driver(nvidia_libraries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    """Make this process and its children see one GPU."""
    return FakeDriver.install(nvidia_libraries, tmp_path / "machine", monkeypatch)


@pytest.fixture
def two_gpus(nvidia_libraries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    """Make this process and its children see two GPUs of one kind."""
    return FakeDriver.install(nvidia_libraries, tmp_path / "machine", monkeypatch, gpus=2)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An empty folder on a disk of 4 MiB."""
    if given := os.environ.get(SMALL_DISK_VARIABLE):
        yield Path(given)
        return
    if os.geteuid() != 0:
        refuse(f"only root can make a small disk; {SMALL_DISK_VARIABLE} names none")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_BYTES}", "small", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def wait_for(look: Callable[[], Seen], timeout_s: float = 30.0) -> Seen:
    """Call until the result is true or the time is over, and return the last result."""
    deadline = time.monotonic() + timeout_s
    while not (seen := look()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return seen


def exists(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def _forbidden(mode: Mode) -> str:
    if mode not in _seen:
        try:
            with tempfile.TemporaryDirectory() as folder:
                create_sandbox("trial", mode=mode, scratch=Path(folder) / "scratch").kill()
            _seen[mode] = ""
        except SnapshotError as error:
            _seen[mode] = str(error)
    return _seen[mode]


_seen: dict[Mode, str] = {}
