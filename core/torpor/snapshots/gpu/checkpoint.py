"""Suspends the GPU state of a sandbox's processes to their host memory before a dump, and resumes it after a restore.

CRIU cannot dump a process that holds a /dev/nvidia* file, even one without GPU memory. So the driver locks and checkpoints every
such process (`torpor.snapshots.gpu.calls_program`, run inside the sandbox); afterwards none holds such a file. If a later step
fails, the state returns to the GPUs and the original sleeps on. If that fails, too, the sandbox is ended.

Measured on an H200 with driver 580.159: 0.05 s for a process without GPU memory, 1 to 2 s for a sleeping scheduler with 4 GB, 63 s
for one with 114 GB. Resuming the last two takes 2 s and 19 s.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torpor.errors import GpuSnapshotError, NoRoomError, SnapshotError
from torpor.snapshots.criu.run import expected_bytes
from torpor.snapshots.gpu import driver as gpu
from torpor.snapshots.gpu.advice import advice, listed
from torpor.snapshots.gpu.calls import UnansweredError, run_calls
from torpor.snapshots.gpu.holders import DEVICES, holders, named
from torpor.snapshots.gpu.placement import GpuMap
from torpor.snapshots.store.gpu_state import Gpu, GpuPart, GpuProcess
from torpor.snapshots.store.host_memory import MEMORY_VARIABLE, available_bytes
from torpor.snapshots.store.paths import LIBRARIES_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torpor.snapshots.gpu.calls_program import Answer
    from torpor.snapshots.gpu.holders import Holder
    from torpor.snapshots.sandbox.sandbox import Sandbox

__all__ = [
    "Resumed",
    "ResumedProcess",
    "Resumption",
    "Suspended",
    "resume",
    "suspended",
]

_GO = ".torpor-cuda-go"
_SET_TID = (5, 5)  # clone3(2) with set_tid


@dataclass(frozen=True, kw_only=True)
class ResumedProcess:
    """How long the resumption of one process took, in seconds; 0 for a call that it did not need."""

    pid: int
    restore_s: float
    unlock_s: float


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """How long the resumption of a tree took.

    Attributes:
        seconds: from the first step to the last.
        init_s: the part in which the calling process initialised the driver.
        processes: one part per process; they run side by side.
    """

    seconds: float
    init_s: float
    processes: tuple[ResumedProcess, ...]


class Suspended:
    """A tree whose GPU state is in host memory; `suspended` makes it.

    Attributes:
        part: the manifest's part about it.
        driver: the driver's version.
        gpus: every GPU that the tree could see, in the driver's order.
        seconds: how long the suspension took.
        resumed: set by `resume`.
    """

    def __init__(self, sandbox: Sandbox, part: GpuPart, driver: str, gpus: tuple[Gpu, ...], seconds: float) -> None:
        self._sandbox = sandbox
        self.part, self.driver, self.gpus, self.seconds = part, driver, gpus, seconds
        self.resumed: Resumed | None = None

    def resume(self) -> Resumed:
        """Resume the original on its GPUs; it stays asleep.

        Raises:
            GpuSnapshotError: the driver could not; the sandbox was ended.
        """
        self.resumed = resume(self._sandbox, self.part)
        return self.resumed


@contextlib.contextmanager
def suspended(
    sandbox: Sandbox,
    *,
    images_in_memory: bool = False,
    devices: Sequence[str] = DEVICES,
    awake: gpu.Driver | None = None,
) -> Iterator[Suspended]:
    """Keep the GPU state of a tree in its host memory while the block runs.

    If the block raises and the tree still lives, the tree is resumed on its GPUs. Otherwise the state stays in host memory: the
    tree was dumped and ended, or the block called `Suspended.resume`.

    Args:
        sandbox: its tree sleeps, and is not stopped (the driver gets no answer from a stopped process).
        images_in_memory: whether the images will lie on a tmpfs, so that the tree's memory is needed twice.
        devices: how the paths of the driver's files begin.
        awake: what the driver said while the engine served; a restore then knows how much memory a serving replica needs.

    Raises:
        NoRoomError: there is too little host memory.
        GpuSnapshotError: the driver could not; the message names processes and calls. The original sleeps on as before, unless
            the message says that the sandbox was ended.
    """
    state = _suspend(sandbox, images_in_memory, devices, awake)
    try:
        _check_let_go(sandbox, devices)
        yield state
    except BaseException as error:
        if state.resumed is None and state.part.processes and sandbox.alive and sandbox.poll() is None:
            try:
                state.resume()
            except SnapshotError as second:
                raise GpuSnapshotError(
                    f"{error or type(error).__name__}\nAnd then the original was lost: {second}"
                ) from error
        raise


def _check_let_go(sandbox: Sandbox, devices: Sequence[str]) -> None:
    if left := holders(sandbox, devices):
        raise GpuSnapshotError(
            "After the checkpoint these processes still hold device files of the driver, which CRIU cannot dump:\n"
            f"{named(left)}\nThe driver closes its own files and NVML's. Whatever else opens them (a profiler, a monitor in "
            "the engine) has to close them before the capture."
        )


def resume(sandbox: Sandbox, part: GpuPart, where: GpuMap | None = None) -> Resumed:
    """Resume the processes of a tree on their GPUs, or on others; they stay asleep. See `Resumption`.

    Raises:
        GpuSnapshotError: the driver could not; the message names processes and calls. The sandbox was ended.
    """
    return Resumption(sandbox, part).finish(where)


class Resumption:
    """Resumes the processes of a tree on their GPUs; it can start before the tree is restored.

    The program that makes the calls starts at once, so that it loads and initialises the driver while CRIU works. Before kernel
    5.5 CRIU can choose pids only while no other process starts in the sandbox; there `finish` starts the program.

    Args:
        sandbox: with the tree, or about to get it.
        part: of the manifest.
        wait_s: seconds within which `finish` will be called.
    """

    def __init__(self, sandbox: Sandbox, part: GpuPart, *, wait_s: float = 0.0) -> None:
        self._sandbox, self._part, self._wait_s = sandbox, part, wait_s
        self._go = sandbox.scratch / _GO
        self._answer: Answer | None = None
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        if part.processes and _kernel() >= _SET_TID:
            self._start()

    def finish(self, where: GpuMap | None = None) -> Resumed:
        """Resume the processes, which CRIU has restored by now; they stay asleep.

        Args:
            where: the GPUs that they get; by default those of the capture.

        Raises:
            GpuSnapshotError: the driver could not; the message names processes and calls. The sandbox was ended.
        """
        began = time.perf_counter()
        if not self._part.processes:
            return Resumed(seconds=0.0, init_s=0.0, processes=())
        where = where or GpuMap({})
        go = self._sandbox.outside(self._sandbox.scratch) / _GO
        try:
            unfinished = go.with_name(f"{_GO}.new")
            unfinished.write_text("".join(f"{old} {new}\n" for old, new in where.pairs))
            unfinished.rename(go)
            answer = self._answered()
            go.unlink()
        except BaseException:
            self._sandbox.kill()
            raise
        return self._resumed(answer, began, where)

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        pids = [one.pid for one in self._part.processes]
        try:
            self._answer = run_calls(
                "resume", self._sandbox, pids, self._part.memory_bytes, go=self._go, wait_s=self._wait_s
            )
        except BaseException as error:
            self._error = error

    def _answered(self) -> Answer:
        if self._thread is None:
            self._start()
        assert self._thread is not None
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._answer is not None
        return self._answer

    def _resumed(self, answer: Answer, began: float, where: GpuMap) -> Resumed:
        if answer["failures"]:
            self._sandbox.kill()
            raise GpuSnapshotError(
                f"The processes of sandbox {self._sandbox.name!r} could not be resumed on their GPUs:\n"
                f"{listed(answer['failures'], self._labels(where))}\n{advice(answer['failures'])}The sandbox was ended."
            )
        restored, unlocked = (answer["seconds"].get(f"cuCheckpointProcess{what}", {}) for what in ("Restore", "Unlock"))
        return Resumed(
            seconds=time.perf_counter() - began,
            init_s=answer["seconds"].get("cuInit", {}).get("0", 0.0),
            processes=tuple(
                ResumedProcess(pid=pid, restore_s=restored.get(str(pid), 0.0), unlock_s=unlocked.get(str(pid), 0.0))
                for pid in (one.pid for one in self._part.processes)
            ),
        )

    def _labels(self, where: GpuMap) -> dict[int, str]:
        """By pid, the command of each process, and its GPUs here as far as they are known."""
        return {
            one.pid: _label(one.command, [str(where.places.get(uuid, uuid)) for uuid in one.gpus])
            for one in self._part.processes
        }


def _suspend(sandbox: Sandbox, images_in_memory: bool, devices: Sequence[str], awake: gpu.Driver | None) -> Suspended:
    began = time.perf_counter()
    found = holders(sandbox, devices)
    before = gpu.look()
    if not found:
        part = GpuPart(processes=(), memory={}, awake={})
        return Suspended(sandbox, part, before.version, (), time.perf_counter() - began)
    if not before.gpus:
        raise GpuSnapshotError(
            f"Processes of the engine hold device files of the driver ({found[0].shown_files}), but the driver names no GPU "
            f"({before.against or 'it lists none'}), so a restore could compare nothing. If the loader does not know the folder of "
            f"the driver's libraries, name it in {LIBRARIES_VARIABLE}. Nothing was changed."
        )
    held = before.held_by({one.host_pid for one in found})
    to_move = sum(held.values()) or sum(use.used_bytes for use in before.uses)
    _check_host_memory(to_move, expected_bytes(sandbox) + to_move if images_in_memory else 0)
    try:
        answer = run_calls("suspend", sandbox, [one.pid for one in found], to_move)
    except BaseException as error:
        if isinstance(error, UnansweredError) or not isinstance(error, SnapshotError):
            sandbox.kill()
        raise
    if answer["failures"]:
        raise _not_suspended(sandbox, answer, {one.pid: _label(one.command, _places(before, one)) for one in found})
    part = _part(_processes(answer, found, before), before, awake, {one.host_pid for one in found})
    return Suspended(sandbox, part, before.version, before.gpus, time.perf_counter() - began)


def _part(processes: tuple[GpuProcess, ...], before: gpu.Driver, awake: gpu.Driver | None, pids: set[int]) -> GpuPart:
    """The manifest's part, once the checkpoint has freed the memory of these processes (host pids)."""
    after = gpu.look()
    memory = _memory(before, after, before.held_by(pids))
    served = _memory(awake, after, awake.held_by(pids)) if awake else {}
    return GpuPart(processes, memory, {uuid: size for uuid, size in served.items() if uuid in memory})


def _processes(answer: Answer, found: Sequence[Holder], before: gpu.Driver) -> tuple[GpuProcess, ...]:
    locked, moved = (answer["seconds"][f"cuCheckpointProcess{what}"] for what in ("Lock", "Checkpoint"))
    return tuple(
        GpuProcess(
            pid=one.pid,
            command=one.command,
            lock_s=locked[str(one.pid)],
            checkpoint_s=moved[str(one.pid)],
            gpus=before.gpus_of(one.host_pid),
        )
        for one in found
    )


def _places(driver: gpu.Driver, one: Holder) -> list[str]:
    """The GPUs for which the driver lists a process, in words."""
    return [f"GPU {at} ({use.gpu.name})" for at, use in enumerate(driver.uses) if one.host_pid in use.held_bytes]


def _label(command: str, places: Sequence[str]) -> str:
    """A process in words: its command, which names the rank, and its GPUs if they are known."""
    return f"{command}; on {' and '.join(places)}" if places else command


def _memory(before: gpu.Driver, after: gpu.Driver, held: Mapping[str, int]) -> dict[str, int]:
    """Memory that a restore will need on each GPU: what the checkpoint freed, or what the processes held if that is more.

    If the driver lists the processes, only their GPUs count: on another GPU some other process may have freed memory.
    """
    now = {use.gpu.uuid: use.used_bytes for use in after.uses}
    freed = {use.gpu.uuid: use.used_bytes - now.get(use.gpu.uuid, use.used_bytes) for use in before.uses}
    taken = {uuid: max(size, held.get(uuid, 0)) for uuid, size in freed.items()}
    return {uuid: size for uuid, size in taken.items() if size > 0 and (uuid in held or not held)}


def _check_host_memory(to_move: int, image_bytes: int) -> None:
    available, wanted = available_bytes(), to_move + image_bytes
    if available < wanted:
        raise NoRoomError(
            f"A checkpoint moves {to_move / 1e9:.2f} GB of GPU memory to host memory"
            + (f", and images on a tmpfs take {image_bytes / 1e9:.2f} GB more of it" if image_bytes else "")
            + f"; {available / 1e9:.2f} GB are available (the least of MemAvailable and the limits of this process's control "
            "groups). Free host memory, choose a folder on a disk, or have the engine release more of its GPU memory before it "
            f"sleeps. For a virtual machine whose memory grows on use, set its maximum in {MEMORY_VARIABLE}. Nothing was changed."
        )


def _not_suspended(sandbox: Sandbox, answer: Answer, labels: Mapping[int, str]) -> GpuSnapshotError:
    """The error for a failed suspension; ends the sandbox if its processes could not be resumed."""
    if answer["hung"]:
        end = "The state of the driver is unknown, so the sandbox was ended."
    elif answer["left"]:
        end = f"The change could not be undone, so the sandbox was ended:\n{listed(answer['left'], labels)}"
    else:
        end = "The change was undone: the engine sleeps on as before, and can be woken."
    if answer["hung"] or answer["left"]:
        sandbox.kill()
    return GpuSnapshotError(
        f"The GPU state of sandbox {sandbox.name!r} could not be moved to host memory:\n"
        f"{listed(answer['failures'], labels)}\n{advice(answer['failures'])}{end}"
    )


def _kernel() -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
