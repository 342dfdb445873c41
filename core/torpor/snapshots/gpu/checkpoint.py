"""The GPU state of a sandbox's processes: into their host memory before a dump, back to the GPUs after a restore.

CRIU can dump no process that holds a /dev/nvidia* file, whether it has GPU memory or not. So every holder is locked and
checkpointed by the driver (`torpor.snapshots.gpu.calls_program`, run inside the sandbox), after which none holds one. Whatever
fails afterwards, the state goes back to the GPUs, and the original sleeps on; where that fails too, the sandbox is ended.

Measured on an H200 with driver 580.159: 0.05 s for a process without GPU memory, 1 to 2 s for a sleeping scheduler with
4 GB, 63 s for one with 114 GB; back in 2 s and 19 s.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torpor.errors import SnapshotError
from torpor.snapshots.before_capture.external_resources import open_paths
from torpor.snapshots.criu.run import expected_bytes
from torpor.snapshots.gpu import driver as gpu
from torpor.snapshots.gpu.calls import UnansweredError, advice, listed, run_calls
from torpor.snapshots.store.gpu_state import Gpu, GpuPart, GpuProcess

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torpor.snapshots.gpu.calls_program import Answer
    from torpor.snapshots.sandbox.sandbox import Sandbox

__all__ = [
    "DEVICES",
    "Holder",
    "Resumed",
    "ResumedProcess",
    "Resumption",
    "Suspended",
    "holders",
    "resume",
    "suspended",
]

DEVICES = ("/dev/nvidia",)
"""How the paths of the driver's device files begin: nvidia0, nvidiactl, nvidia-uvm, nvidia-caps/..."""

_SHOWN = 4
_GO = ".torpor-cuda-go"
_SET_TID = (5, 5)  # clone3(2) with set_tid


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A process that holds device files of the driver, open or mapped.

    Attributes:
        pid: inside the sandbox.
        host_pid: as this process sees it.
        command: its command line.
        files: the device files.
    """

    pid: int
    host_pid: int
    command: str
    files: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ResumedProcess:
    """What bringing one process back to its GPUs took, in seconds; 0 for a call that it did not need."""

    pid: int
    restore_s: float
    unlock_s: float


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """What bringing a tree back to its GPUs took.

    Attributes:
        seconds: from the first step to the last.
        init_s: of it, for the driver to be initialised in the calling process.
        processes: the parts, which run side by side.
    """

    seconds: float
    init_s: float
    processes: tuple[ResumedProcess, ...]


class Suspended:
    """A tree whose GPU state lies in host memory. Made by `suspended`.

    Attributes:
        part: what a manifest says of it.
        driver: the driver's version.
        gpus: those that the tree was on.
        seconds: what the suspension took.
        resumed: set by `resume`.
    """

    def __init__(self, sandbox: Sandbox, part: GpuPart, driver: str, gpus: tuple[Gpu, ...], seconds: float) -> None:
        self._sandbox = sandbox
        self.part, self.driver, self.gpus, self.seconds = part, driver, gpus, seconds
        self.resumed: Resumed | None = None

    def resume(self) -> Resumed:
        """Bring the original back to its GPUs, still asleep.

        Raises:
            SnapshotError: the driver could not; the sandbox was ended.
        """
        self.resumed = resume(self._sandbox, self.part)
        return self.resumed


def holders(sandbox: Sandbox, devices: Sequence[str] = DEVICES) -> tuple[Holder, ...]:
    """The processes of a tree that hold device files of the driver, in the order of their pids.

    Args:
        sandbox: with the tree.
        devices: how the files' paths begin.
    """
    found = []
    for inside, outside in sorted(sandbox.host_pids().items()):
        files = tuple(sorted({path for path in open_paths(outside) if path.startswith(tuple(devices))}))
        if files and inside != 1:
            found.append(Holder(pid=inside, host_pid=outside, command=_command(outside), files=files))
    return tuple(found)


@contextlib.contextmanager
def suspended(
    sandbox: Sandbox, *, images_in_memory: bool = False, devices: Sequence[str] = DEVICES
) -> Iterator[Suspended]:
    """Keep the GPU state of a tree in its host memory while the block runs.

    It stays there when the block ends well (the tree was dumped and ended, or `Suspended.resume` brought it back); when the
    block raises and the tree still lives, it is brought back to its GPUs.

    Args:
        sandbox: with a tree that sleeps and runs (a stopped process answers the driver never).
        images_in_memory: whether the images will lie on a tmpfs, so that the tree takes its memory twice.
        devices: how the paths of the driver's files begin.

    Raises:
        SnapshotError: there is too little host memory, or the driver could not; the message names processes and calls. The
            original sleeps on as before, unless the message says that the sandbox was ended.
    """
    state = _suspend(sandbox, images_in_memory, devices)
    try:
        if left := holders(sandbox, devices):
            raise SnapshotError(_still_held(left))  # noqa: TRY301 - one way back, below
        yield state
    except BaseException as error:
        if state.resumed is None and state.part.processes and sandbox.alive and sandbox.poll() is None:
            try:
                state.resume()
            except SnapshotError as second:
                raise SnapshotError(
                    f"{error or type(error).__name__}\nAnd then the original was lost: {second}"
                ) from error
        raise


def resume(sandbox: Sandbox, part: GpuPart) -> Resumed:
    """Bring the processes of a tree back to their GPUs; they sleep on. See `Resumption`.

    Raises:
        SnapshotError: the driver could not; the message names processes and calls. The sandbox was ended.
    """
    return Resumption(sandbox, part).finish()


class Resumption:
    """Brings the processes of a tree back to their GPUs, and can be begun before the tree is there.

    The program that makes the calls is started at once: it loads the driver's library and initialises it while CRIU still
    works. Kernels before 5.5 let CRIU choose pids only as long as nobody else starts anything, so
    there it is started by `finish`.

    Args:
        sandbox: with the tree, or about to get it.
        part: of the manifest.
        wait_s: seconds after which `finish` will have been called.
    """

    def __init__(self, sandbox: Sandbox, part: GpuPart, *, wait_s: float = 0.0) -> None:
        self._sandbox, self._part, self._wait_s = sandbox, part, wait_s
        self._go = sandbox.scratch / _GO
        self._answer: Answer | None = None
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        if part.processes and _kernel() >= _SET_TID:
            self._start()

    def finish(self) -> Resumed:
        """Bring the processes, which run by now, back to their GPUs; they sleep on.

        Raises:
            SnapshotError: the driver could not; the message names processes and calls. The sandbox was ended.
        """
        began = time.perf_counter()
        if not self._part.processes:
            return Resumed(seconds=0.0, init_s=0.0, processes=())
        go = self._sandbox.outside(self._sandbox.scratch) / _GO
        try:
            go.touch()
            answer = self._answered()
            go.unlink()
        except BaseException:
            self._sandbox.kill()
            raise
        return self._resumed(answer, began)

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

    def _resumed(self, answer: Answer, began: float) -> Resumed:
        commands = {one.pid: one.command for one in self._part.processes}
        if answer["failures"]:
            self._sandbox.kill()
            raise SnapshotError(
                f"The processes of sandbox {self._sandbox.name!r} could not be brought back to their GPUs:\n"
                f"{listed(answer['failures'], commands)}\n{advice(answer['failures'])}The sandbox was ended."
            )
        restored, unlocked = (answer["seconds"].get(f"cuCheckpointProcess{what}", {}) for what in ("Restore", "Unlock"))
        return Resumed(
            seconds=time.perf_counter() - began,
            init_s=answer["seconds"].get("cuInit", {}).get("0", 0.0),
            processes=tuple(
                ResumedProcess(pid=pid, restore_s=restored.get(str(pid), 0.0), unlock_s=unlocked.get(str(pid), 0.0))
                for pid in commands
            ),
        )


def _suspend(sandbox: Sandbox, images_in_memory: bool, devices: Sequence[str]) -> Suspended:
    began = time.perf_counter()
    found = holders(sandbox, devices)
    commands = {one.pid: one.command for one in found}
    before = gpu.look()
    if not found:
        part = GpuPart(processes=(), memory={})
        return Suspended(sandbox, part, before.version, (), time.perf_counter() - began)
    if not before.gpus:
        raise SnapshotError(
            f"Processes of the engine hold device files of the driver ({', '.join(found[0].files[:_SHOWN])}), but the driver "
            f"names no GPU ({before.against or 'it lists none'}), so nothing could be compared at a restore. Where its libraries "
            f"lie in a folder that the loader does not know, name that in {gpu.LIBRARIES_VARIABLE}. Nothing was changed."
        )
    held = before.held_by({one.host_pid for one in found})
    to_move = sum(held.values()) or sum(use.used_bytes for use in before.uses)
    _check_host_memory(to_move, expected_bytes(sandbox) + to_move if images_in_memory else 0)
    try:
        answer = run_calls("suspend", sandbox, tuple(commands), to_move)
    except BaseException as error:
        if isinstance(error, UnansweredError) or not isinstance(error, SnapshotError):
            sandbox.kill()
        raise
    if answer["failures"]:
        raise _not_suspended(sandbox, answer, commands)
    part = GpuPart(processes=_processes(answer, commands), memory=_memory(before, gpu.look(), held))
    gpus = tuple(one for one in before.gpus if one.uuid in part.memory) or before.gpus
    return Suspended(sandbox, part, before.version, gpus, time.perf_counter() - began)


def _processes(answer: Answer, commands: Mapping[int, str]) -> tuple[GpuProcess, ...]:
    locked, moved = (answer["seconds"][f"cuCheckpointProcess{what}"] for what in ("Lock", "Checkpoint"))
    return tuple(
        GpuProcess(pid=pid, command=command, lock_s=locked[str(pid)], checkpoint_s=moved[str(pid)])
        for pid, command in commands.items()
    )


def _memory(before: gpu.Driver, after: gpu.Driver, held: Mapping[str, int]) -> dict[str, int]:
    """What a restore will take of each GPU: what came free, or what the processes were said to hold if that is more.

    Where the driver lists the processes, their GPUs alone count: on another one somebody else may have freed something.
    """
    now = {use.gpu.uuid: use.used_bytes for use in after.uses}
    freed = {use.gpu.uuid: use.used_bytes - now.get(use.gpu.uuid, use.used_bytes) for use in before.uses}
    taken = {uuid: max(size, held.get(uuid, 0)) for uuid, size in freed.items()}
    return {uuid: size for uuid, size in taken.items() if size > 0 and (uuid in held or not held)}


def _check_host_memory(to_move: int, image_bytes: int) -> None:
    from torpor.snapshots.store.host_memory import MEMORY_VARIABLE, available_bytes  # noqa: PLC0415 - only at a capture

    available, wanted = available_bytes(), to_move + image_bytes
    if available < wanted:
        raise SnapshotError(
            f"A checkpoint moves {to_move / 1e9:.2f} GB of GPU memory to host memory"
            + (f", and images on a tmpfs take {image_bytes / 1e9:.2f} GB more of it" if image_bytes else "")
            + f"; {available / 1e9:.2f} GB are available (the least of MemAvailable and the limits of this process's control "
            "groups). Free host memory, choose a folder on a disk, or have the engine release more of its GPU memory before it "
            f"sleeps; for a virtual machine that gets more memory as it goes, say how much in {MEMORY_VARIABLE}. Nothing was "
            "changed."
        )


def _not_suspended(sandbox: Sandbox, answer: Answer, commands: Mapping[int, str]) -> SnapshotError:
    """The error for a suspension that failed; the sandbox is ended where its processes could not be put back."""
    if answer["hung"]:
        end = "What the driver has done cannot be told, so the sandbox was ended."
    elif answer["left"]:
        end = f"It could not be put back, so the sandbox was ended:\n{listed(answer['left'], commands)}"
    else:
        end = "What had been done was put back: the engine sleeps on as before, and can be woken."
    if answer["hung"] or answer["left"]:
        sandbox.kill()
    return SnapshotError(
        f"The GPU state of sandbox {sandbox.name!r} could not be moved to host memory:\n"
        f"{listed(answer['failures'], commands)}\n{advice(answer['failures'])}{end}"
    )


def _still_held(left: Sequence[Holder]) -> str:
    named = "\n".join(f"  - pid {one.pid} ({one.command}): {', '.join(one.files[:_SHOWN])}" for one in left[:_SHOWN])
    return (
        f"After the checkpoint there are still processes with device files of the driver, which CRIU cannot dump:\n{named}\n"
        "The driver lets go of its own and of NVML's; what else opens them (a profiler, a monitor inside the engine) has to close "
        "them before the capture."
    )


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return words.strip()[:120]
    return "gone meanwhile"


def _kernel() -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
