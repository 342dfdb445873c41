"""`torpor.snapshots.gpu.calls_program`: the driver's calls on real processes, by the program that runs inside a sandbox."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

from tests.snapshots.conftest import wait_for
from tests.snapshots.nvidia import FakeDriver, build
from tests.snapshots.nvidia.process import pattern
from torpor.snapshots.before_capture.external_resources import open_paths
from torpor.snapshots.gpu import calls_program as cuda_calls

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torpor.snapshots.gpu.calls_program import Answer

Calls = tuple[str, ...]


class StartProcess(Protocol):
    """Starts a process on the stand-in GPU; it is ended with the test."""

    def __call__(self, *arguments: str) -> int:
        """Its pid, once it is on the GPU."""


@pytest.fixture
def start(driver: FakeDriver) -> Iterator[StartProcess]:
    """A factory of processes, see `StartProcess`."""
    started: list[subprocess.Popen[str]] = []

    def start_one(*arguments: str) -> int:
        process = subprocess.Popen(driver.argv(*arguments), stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        return process.pid

    yield start_one
    for process in started:
        process.kill()
        process.communicate()


def call(driver: FakeDriver, action: str, *pids: int, inject: str = "", limit_s: float = 20.0) -> tuple[int, Answer]:
    """Run the program; its exit code and answer."""
    argv = [sys.executable, "-I", "-S", cuda_calls.__file__, action, f"/no/such/libcuda.so.1:{driver.libcuda}"]
    finished = subprocess.run(
        [*argv, *[str(limit_s)] * 3, "-", *map(str, pids)],
        env={"PATH": os.defpath, "TORPOR_FAKE_CUDA": inject, "TORPOR_FAKE_DEVICE": str(driver.device)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert finished.stderr == ""
    (line,) = finished.stdout.splitlines()
    assert line.startswith(cuda_calls.MARK)
    answer: Answer = json.loads(line.removeprefix(cuda_calls.MARK))
    return finished.returncode, answer


def states(driver: FakeDriver, *pids: int) -> list[str]:
    """What the driver says of each process."""
    library = ctypes.CDLL(str(driver.libcuda))
    assert library.cuInit(0) == 0
    found = []
    for pid in pids:
        state = ctypes.c_int(-1)
        assert library.cuCheckpointProcessGetState(pid, ctypes.byref(state)) == 0
        found.append(cuda_calls.STATES[state.value])
    return found


def holds(driver: FakeDriver, pid: int) -> bool:
    """Whether a process has the device open or mapped."""
    return any(path.startswith(driver.devices) for path in open_paths(pid))


def test_all_processes_are_suspended_and_resumed_with_their_memory(driver: FakeDriver, start: StartProcess) -> None:
    """Suspended, none holds a device file and the GPU is empty; resumed, everything is as before."""
    pids = (start(), start(), start())
    assert [driver.on_gpu(pid) for pid in pids] == [pattern(pid) for pid in pids]
    code, answer = call(driver, "suspend", *pids)
    assert (code, answer["failures"], answer["left"], answer["hung"]) == (0, [], [], False)
    assert states(driver, *pids) == ["checkpointed"] * 3
    assert not any(holds(driver, pid) for pid in pids)
    assert not any(any(driver.on_gpu(pid)) for pid in pids)
    seconds = answer["seconds"]
    assert set(seconds) == {
        "cuInit",
        "cuCheckpointProcessGetState",
        "cuCheckpointProcessLock",
        "cuCheckpointProcessCheckpoint",
    }
    assert set(seconds["cuCheckpointProcessCheckpoint"]) == set(map(str, pids))
    assert all(0 < took < 60 for took in seconds["cuCheckpointProcessCheckpoint"].values())
    code, answer = call(driver, "resume", *pids)
    assert (code, answer["failures"]) == (0, [])
    assert states(driver, *pids) == ["running"] * 3
    assert all(holds(driver, pid) for pid in pids)
    assert [driver.on_gpu(pid) for pid in pids] == [pattern(pid) for pid in pids]


@pytest.mark.parametrize(
    ("failing", "name", "said"),
    [
        ("lock", "600", ("cuCheckpointProcessLock", "CUDA_ERROR_NOT_READY", "words for error 600")),
        ("checkpoint", "801", ("cuCheckpointProcessCheckpoint", "CUDA_ERROR_NOT_SUPPORTED", "words for error 801")),
        ("checkpoint", "4242", ("cuCheckpointProcessCheckpoint", "CUresult 4242", "CUresult 4242")),
        ("state", "401", ("cuCheckpointProcessGetState", "CUDA_ERROR_ILLEGAL_STATE", "words for error 401")),
    ],
)
def test_a_suspension_that_fails_for_one_is_undone_for_all(
    driver: FakeDriver, start: StartProcess, failing: str, name: str, said: Calls
) -> None:
    """Every process runs on with its memory on the GPU; the answer has pid, call and the driver's error."""
    pids = (start(), start(), start())
    code, answer = call(driver, "suspend", *pids, inject=f"{failing}:{pids[1]}={name}")
    assert code == 1
    assert [(one["pid"], one["call"], one["name"], one["text"]) for one in answer["failures"]] == [(pids[1], *said)]
    assert (answer["left"], answer["hung"]) == ([], False)
    assert states(driver, *pids) == ["running"] * 3
    assert [driver.on_gpu(pid) for pid in pids] == [pattern(pid) for pid in pids]


def test_a_failure_to_undo_is_reported_separately(driver: FakeDriver, start: StartProcess) -> None:
    """One cannot be checkpointed and the other not restored: the answer lists the second as left."""
    first, second = start(), start()
    code, answer = call(driver, "suspend", first, second, inject=f"checkpoint:{second}=801,restore:{first}=304")
    assert code == 1
    assert [(one["pid"], one["call"]) for one in answer["failures"]] == [(second, "cuCheckpointProcessCheckpoint")]
    assert [(one["pid"], one["name"]) for one in answer["left"]] == [(first, "CUDA_ERROR_OPERATING_SYSTEM")]
    assert states(driver, first) == ["checkpointed"]
    assert states(driver, second) == ["running"]


@pytest.mark.parametrize(("failing", "code"), [("restore", "2"), ("unlock", "304")])
def test_a_resumption_that_fails_names_the_process(
    driver: FakeDriver, start: StartProcess, failing: str, code: str
) -> None:
    """The others are resumed."""
    first, second = start(), start()
    call(driver, "suspend", first, second)
    exit_code, answer = call(driver, "resume", first, second, inject=f"{failing}:{first}={code}")
    assert exit_code == 1
    assert [(one["pid"], one["call"].lower()) for one in answer["failures"]] == [
        (first, f"cucheckpointprocess{failing}")
    ]
    assert states(driver, second) == ["running"]


def test_a_resumption_starts_from_the_state_of_each_process(driver: FakeDriver, start: StartProcess) -> None:
    """One is checkpointed, one only locked, one runs: an interrupted resumption can be repeated."""
    pids = (start(), start(), start())
    call(driver, "suspend", *pids)
    call(driver, "resume", *pids, inject=f"unlock:{pids[0]}=304,restore:{pids[1]}=304")
    assert states(driver, *pids) == ["locked", "checkpointed", "running"]
    code, answer = call(driver, "resume", *pids)
    assert (code, answer["failures"]) == (0, [])
    assert states(driver, *pids) == ["running"] * 3


def test_a_process_that_is_suspended_already_is_refused(driver: FakeDriver, start: StartProcess) -> None:
    """Another program may be working on it; the other processes are not touched."""
    pids = (start(), start())
    call(driver, "suspend", pids[0])
    code, answer = call(driver, "suspend", *pids)
    assert code == 1
    assert [(one["pid"], one["text"]) for one in answer["failures"]] == [(pids[0], "it is checkpointed already")]
    assert states(driver, *pids) == ["checkpointed", "running"]


@pytest.mark.slow
@pytest.mark.parametrize("failing", ["state", "lock", "checkpoint", "init"])
def test_a_call_that_hangs_is_given_up_at_its_deadline(driver: FakeDriver, start: StartProcess, failing: str) -> None:
    """The program ends by itself and names call and process; the state is marked unknown."""
    pid, other = start(), start()
    whom = "" if failing == "init" else f":{pid}"
    code, answer = call(driver, "suspend", pid, other, inject=f"{failing}{whom}=hang", limit_s=1.0)
    assert code == 1
    assert answer["hung"]
    (failure,) = answer["failures"]
    assert (failure["name"], failure["pid"]) == (cuda_calls.TIMEOUT, 0 if failing == "init" else pid)
    assert "did not return within" in failure["text"]
    assert failing == "init" or "its state is S (sleeping)" in failure["text"]


def test_a_process_without_cuda_is_named(driver: FakeDriver) -> None:
    """The driver's error for a process that never called cuInit."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        code, answer = call(driver, "suspend", process.pid)
    finally:
        process.kill()
        process.wait()
    assert code == 1
    assert [(one["pid"], one["name"]) for one in answer["failures"]] == [(process.pid, "CUDA_ERROR_NOT_INITIALIZED")]


def test_a_process_that_has_ended_is_named(driver: FakeDriver, start: StartProcess) -> None:
    """It ended before the call; the suspension of the other is undone."""
    gone, other = start(), start()
    os.kill(gone, signal.SIGKILL)
    assert wait_for(lambda: Path(f"/proc/{gone}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
    code, answer = call(driver, "suspend", gone, other)
    assert code == 1
    assert [one["pid"] for one in answer["failures"]] == [gone]
    assert states(driver, other) == ["running"]


def test_a_driver_without_the_functions_is_reported(driver: FakeDriver, tmp_path: Path) -> None:
    """Before 570 libcuda lacks them; the first missing one is named."""
    (tmp_path / "old").mkdir()
    old = FakeDriver(libraries=build(tmp_path / "old", old=True), device=driver.device, used=driver.used)
    code, answer = call(old, "suspend", os.getpid())
    assert code == 1
    assert [(one["call"], one["name"]) for one in answer["failures"]] == [("cuCheckpointProcessGetState", "MISSING")]
    assert "driver is too old" in answer["failures"][0]["text"]


def test_a_machine_without_libcuda_is_reported(driver: FakeDriver, tmp_path: Path) -> None:
    """With every path that was tried."""
    code, answer = call(FakeDriver(libraries=tmp_path, device=driver.device, used=driver.used), "suspend", os.getpid())
    assert code == 1
    (failure,) = answer["failures"]
    assert (failure["call"], failure["name"]) == ("dlopen", "MISSING")
    assert "/no/such/libcuda.so.1" in failure["text"]
    assert str(tmp_path) in failure["text"]


def test_a_driver_that_sees_no_gpu_is_reported(driver: FakeDriver, start: StartProcess) -> None:
    """The very first call fails; nothing is touched."""
    pid = start()
    code, answer = call(driver, "suspend", pid, inject="init=100")
    assert code == 1
    assert [(one["call"], one["name"]) for one in answer["failures"]] == [("cuInit", "CUDA_ERROR_NO_DEVICE")]
    assert states(driver, pid) == ["running"]
