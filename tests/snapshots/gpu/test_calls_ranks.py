"""The driver's calls on processes of several GPUs: at once, in order, with deadlines, and with faults of one rank alone."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.snapshots.nvidia import MEMORY_BYTES, UUIDS, FakeDriver, listed_gpus
from tests.snapshots.nvidia.process import pattern
from torpor.snapshots.gpu import calls_program as cuda_calls
from torpor.snapshots.gpu.advice import advice, listed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torpor.snapshots.gpu.calls_program import Answer, Failure

CALLS = {"lock": "cuCheckpointProcessLock", "checkpoint": "cuCheckpointProcessCheckpoint"}
CALLS |= {"restore": "cuCheckpointProcessRestore", "unlock": "cuCheckpointProcessUnlock"}
NOTHING = bytes(MEMORY_BYTES)


class Ranks(NamedTuple):
    """Two processes, one on each of two GPUs, and the driver's log of calls."""

    driver: FakeDriver
    pids: tuple[int, int]
    log: Path

    def call(
        self,
        action: str,
        *,
        inject: str = "",
        pairs: Sequence[tuple[str, str]] = (),
        limit_s: float = 20.0,
        gpus: Sequence[str] = UUIDS[:2],
    ) -> Answer:
        """Run the program."""
        go = self.log.with_name("go")
        go.write_text("".join(f"{old} {new}\n" for old, new in pairs))
        libraries = str(self.driver.libcuda)
        finished = subprocess.run(
            [sys.executable, "-I", "-S", cuda_calls.__file__, action, libraries, *[str(limit_s)] * 3, str(go)]
            + [str(pid) for pid in self.pids],
            env={
                "PATH": os.defpath,
                "TORPOR_FAKE_CUDA": inject,
                "TORPOR_FAKE_DEVICE": str(self.driver.device),
                "TORPOR_FAKE_GPU": listed_gpus(*gpus),
                "TORPOR_FAKE_LOG": str(self.log),
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        (line,) = finished.stdout.splitlines()
        answer: Answer = json.loads(line.removeprefix(cuda_calls.MARK))
        assert finished.returncode == bool(answer["failures"])
        return answer

    def calls(self) -> list[tuple[str, str]]:
        """Begin and end of each call but those for the state, in order, as the driver saw them."""
        words = [line.split() for line in self.log.read_text().splitlines()]
        return [(what, call) for what, call, *_ in words if what in ("begin", "end") and call != "state"]

    def where(self, pid: int) -> list[int]:
        """The GPUs that hold a process's memory."""
        return [gpu for gpu in range(2) if self.driver.on_gpu(pid, gpu) != NOTHING]

    def states(self) -> list[str]:
        """What the driver says of each process."""
        library = ctypes.CDLL(str(self.driver.libcuda))
        assert library.cuInit(0) == 0
        found = []
        for pid in self.pids:
            state = ctypes.c_int(-1)
            assert library.cuCheckpointProcessGetState(pid, ctypes.byref(state)) == 0
            found.append(cuda_calls.STATES[state.value])
        return found

    def unharmed(self) -> bool:
        """Whether each process runs with its memory on its own GPU."""
        running = self.call("resume")["failures"] == []
        return running and all(self.driver.on_gpu(pid, gpu) == pattern(pid) for gpu, pid in enumerate(self.pids))


@pytest.fixture(scope="module")
def machine(nvidia_libraries: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeDriver]:
    """Two GPUs."""
    with pytest.MonkeyPatch.context() as patch:
        yield FakeDriver.install(nvidia_libraries, tmp_path_factory.mktemp("two") / "machine", patch, gpus=2)


@pytest.fixture(scope="module")
def processes(machine: FakeDriver) -> Iterator[tuple[int, int]]:
    """Two processes; each can see both GPUs and uses one."""
    started: dict[int, subprocess.Popen[str]] = {}
    while set(started) != {0, 1}:  # a process takes its GPU by its pid
        process = subprocess.Popen(machine.argv("--ranks", "2"), stdout=subprocess.PIPE, text=True)
        if (before := started.get(process.pid % 2)) is not None:
            before.kill()
            before.communicate()
        started[process.pid % 2] = process
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
    yield started[0].pid, started[1].pid
    for process in started.values():
        process.kill()
        process.communicate()


@pytest.fixture
def ranks(machine: FakeDriver, processes: tuple[int, int], tmp_path: Path) -> Iterator[Ranks]:
    """The two processes, which every test leaves as it found them."""
    there = Ranks(machine, processes, tmp_path / "calls.log")
    yield there
    assert there.unharmed()


class Fault(NamedTuple):
    """What the driver does to one rank, the error that it gives, and the known cause."""

    call: str
    code: str
    name: str
    cause: str


def failed(answer: Answer) -> list[tuple[int, str, str]]:
    return [(one["pid"], one["call"], one["name"]) for one in answer["failures"]]


def test_all_ranks_are_asked_at_once_and_in_order(ranks: Ranks) -> None:
    """Each call is under way for both at the same time; all locks end before a checkpoint begins, all restores before an unlock."""
    assert ranks.call("suspend", inject="lock=meet2")["failures"] == []
    assert ranks.call("resume", inject="restore=meet2")["failures"] == []
    ended: list[str] = []
    for what, call in ranks.calls():
        if what == "end":
            ended.append(call)
        elif call == "checkpoint":
            assert ended.count("lock") == 2
        elif call == "unlock":
            assert ended.count("restore") == 2
    assert ended == ["lock"] * 2 + ["checkpoint"] * 2 + ["restore"] * 2 + ["unlock"] * 2


def test_ranks_come_back_swapped_and_back_again(ranks: Ranks) -> None:
    """Each restore gets the whole list; the memory is on the other GPU, and the second capture starts from there."""
    first, second = ranks.pids
    assert (ranks.where(first), ranks.where(second)) == ([0], [1])
    for expected in ((1, 0), (0, 1)):
        pairs = list(zip(UUIDS[:2], reversed(UUIDS[:2]), strict=True))
        assert ranks.call("suspend")["failures"] == []
        assert (ranks.where(first), ranks.where(second)) == ([], [])
        assert ranks.call("resume", pairs=pairs)["failures"] == []
        assert [ranks.where(pid) for pid in ranks.pids] == [[gpu] for gpu in expected]
        assert [
            ranks.driver.on_gpu(pid, gpu) == pattern(pid) for pid, gpu in zip(ranks.pids, expected, strict=True)
        ] == [
            True,
            True,
        ]
    told = [line.split()[-1] for line in ranks.log.read_text().splitlines() if line.startswith("pairs")]
    assert told == [f"{UUIDS[0]}={UUIDS[1]},{UUIDS[1]}={UUIDS[0]},"] * 4


@pytest.mark.parametrize(
    ("pairs", "gpus"),
    [
        ([(UUIDS[0], UUIDS[1])], UUIDS[:2]),
        ([(UUIDS[0], UUIDS[1]), (UUIDS[1], UUIDS[1])], UUIDS[:2]),
        ([(UUIDS[0], UUIDS[4]), (UUIDS[1], UUIDS[0])], UUIDS[:2]),
        ([], UUIDS[4:6]),
    ],
    ids=["one is missing", "one twice", "not here", "other GPUs and no pairs"],
)
def test_a_wrong_list_of_gpus_is_refused_with_what_it_has_to_be(
    ranks: Ranks, pairs: list[tuple[str, str]], gpus: Sequence[str]
) -> None:
    """The stand-in refuses what the real driver was seen to refuse."""
    ranks.call("suspend")
    answer = ranks.call("resume", pairs=pairs, gpus=gpus)
    assert failed(answer) == [(pid, CALLS["restore"], "CUDA_ERROR_INVALID_VALUE") for pid in ranks.pids]
    assert "every GPU that the process could see at the capture" in advice(answer["failures"])


@pytest.mark.fault("one rank's GPU state cannot be saved", area="GPU snapshots", outcome="held")
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    "fault",
    [
        Fault("lock", "600", "CUDA_ERROR_NOT_READY", "One rank that is still busy"),
        Fault("checkpoint", "801", "CUDA_ERROR_NOT_SUPPORTED", "--disable-custom-all-reduce"),
        Fault("checkpoint", "forget", cuda_calls.FORGOTTEN, "The driver contradicts itself"),
    ],
)
def test_a_rank_that_fails_or_forgets_undoes_all(ranks: Ranks, rank: int, fault: Fault) -> None:
    """The failure names its process, the cause is told, and both ranks run on."""
    answer = ranks.call("suspend", inject=f"{fault.call}:{ranks.pids[rank]}={fault.code}")
    assert failed(answer) == [(ranks.pids[rank], CALLS[fault.call], fault.name)]
    assert (answer["left"], answer["hung"]) == ([], False)
    assert fault.cause in advice(answer["failures"])
    assert ranks.states() == ["running"] * 2
    if fault.call == "lock":
        assert ("begin", "checkpoint") not in ranks.calls()


def test_a_lock_that_was_forgotten_is_found_at_the_checkpoint(ranks: Ranks) -> None:
    """The driver refuses to checkpoint what is not locked."""
    answer = ranks.call("suspend", inject=f"lock:{ranks.pids[1]}=forget")
    assert failed(answer) == [(ranks.pids[1], CALLS["checkpoint"], "CUDA_ERROR_ILLEGAL_STATE")]


@pytest.mark.fault("one rank's GPU state cannot be restored", area="GPU snapshots", outcome="refused")
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    "fault",
    [
        Fault("restore", "801", "CUDA_ERROR_NOT_SUPPORTED", "communicators were not suspended before the sleep"),
        Fault("restore", "999", "CUDA_ERROR_UNKNOWN", "communicators were not suspended before the sleep"),
        Fault("restore", "2", "CUDA_ERROR_OUT_OF_MEMORY", "another start may have taken it"),
        Fault("unlock", "forget", cuda_calls.FORGOTTEN, "The driver contradicts itself"),
        Fault("unlock", "304", "CUDA_ERROR_OPERATING_SYSTEM", ""),
    ],
)
def test_a_rank_that_does_not_come_back_is_named(ranks: Ranks, rank: int, fault: Fault) -> None:
    """With what is known to cause it. The other rank is back."""
    ranks.call("suspend")
    answer = ranks.call("resume", inject=f"{fault.call}:{ranks.pids[rank]}={fault.code}")
    assert failed(answer) == [(ranks.pids[rank], CALLS[fault.call], fault.name)]
    assert fault.cause in advice(answer["failures"])
    assert ranks.states()[1 - rank] == "running" != ranks.states()[rank]


@pytest.mark.slow
@pytest.mark.fault("one rank's call of the GPU driver hangs", area="GPU snapshots", outcome="refused")
@pytest.mark.parametrize(("action", "call"), [("suspend", "checkpoint"), ("resume", "restore"), ("resume", "unlock")])
def test_a_rank_that_hangs_is_given_up_at_the_deadline(ranks: Ranks, action: str, call: str) -> None:
    """The other rank's call ended; the program does not wait for the one that hangs."""
    if action == "resume":
        ranks.call("suspend")
    answer = ranks.call(action, inject=f"{call}:{ranks.pids[1]}=hang", limit_s=0.5)
    assert failed(answer) == [(ranks.pids[1], CALLS[call], cuda_calls.TIMEOUT)]
    assert answer["hung"]
    assert str(ranks.pids[0]) in answer["seconds"][CALLS[call]]
    assert ("NCCL_NVLS_ENABLE=0" in advice(answer["failures"])) == (call != "unlock")


def test_a_failure_is_shown_with_rank_and_gpu() -> None:
    """As the label says; a cause is told once, and that of the call before that of the error."""
    one: Failure = {"pid": 7, "call": CALLS["restore"], "name": "CUDA_ERROR_UNKNOWN", "text": "unknown error"}
    assert listed([one], {7: "sglang::scheduler_TP1; on GPU 1"}) == (
        f"  - pid 7 (sglang::scheduler_TP1; on GPU 1): {CALLS['restore']}: CUDA_ERROR_UNKNOWN: unknown error"
    )
    assert advice([one, {**one, "pid": 8}]).count("\n") == 1
    hung: Failure = {**one, "name": cuda_calls.TIMEOUT}
    first, second = advice([hung]).splitlines()
    assert first.startswith("Multicast memory")
    assert second.startswith("The call hangs")
