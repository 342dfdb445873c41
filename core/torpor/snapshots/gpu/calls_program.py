"""Makes the CUDA driver's checkpoint calls for processes of a sandbox, as a separate program that runs inside.

    python -I -S calls_program.py suspend LIBRARIES LOCK_S MOVE_S GRACE_S GO PID ...
    python -I -S calls_program.py resume  LIBRARIES LOCK_S MOVE_S GRACE_S GO PID ...

`suspend` locks every process, then checkpoints every process: the driver moves its GPU memory to its host memory and closes its
/dev/nvidia* files. If a call fails, it undoes the others. `resume` restores and unlocks every process, starting from the state in
which it is, and onto other GPUs if GO says so. Each process has a thread, each call a deadline. Afterwards the driver is asked for
the state of each process: a call that reports success and did nothing is a failure. The answer is one line of JSON on standard
output, after MARK, since the driver may print, too.

It runs inside because the driver expects pids of the caller's namespace, and these are the same after every restore. Standard
library only. The arguments:

    LIBRARIES  places to load libcuda from, separated by colons
    LOCK_S     deadline of a lock in seconds
    MOVE_S     deadline of a checkpoint or restore
    GRACE_S    deadline of all other calls (twice as much for cuInit), and an addition to the two above
    GO         a file: the driver is initialised at once, which takes long, and the calls wait until this file exists; so a
               resumption starts while CRIU works. "-" does not wait. Each line of the file is a pair of UUIDs: of a GPU that the
               processes could see at the checkpoint, and of the GPU to restore it onto. An empty file moves nothing. The file
               gets its name when it is complete.

Signatures, structures and states: `cydriver.pxd` of cuda-bindings 13.0.3 and "CUDA Driver API, 6.37 CUDA Checkpointing"
(https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__CHECKPOINT.html); in libcuda since driver 570:

    CUresult cuCheckpointProcessGetState(int pid, CUprocessState *state)
    CUresult cuCheckpointProcessLock(int pid, CUcheckpointLockArgs *args)                running -> locked; may be NULL
    CUresult cuCheckpointProcessCheckpoint(int pid, CUcheckpointCheckpointArgs *args)    locked -> checkpointed
    CUresult cuCheckpointProcessRestore(int pid, CUcheckpointRestoreArgs *args)          checkpointed -> locked
    CUresult cuCheckpointProcessUnlock(int pid, CUcheckpointUnlockArgs *args)            locked -> running

A restore needs persistence mode, or cuInit in the caller before it; so cuInit is always called. This program sees every GPU: with
CUDA_VISIBLE_DEVICES in its own environment the driver refuses pairs (NVIDIA/cuda-python#1983).
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import threading
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn, TypedDict

    class Failure(TypedDict):
        """A failed call: its process (0: none), its name, and the driver's name and text of the error."""

        pid: int
        call: str
        name: str
        text: str

    class Answer(TypedDict):
        """What is printed: seconds of each call by name and pid, the failures, and failures of undoing."""

        seconds: dict[str, dict[str, float]]
        failures: list[Failure]
        left: list[Failure]
        hung: bool


MARK = "torpor-cuda "
TIMEOUT = "TIMEOUT"
FORGOTTEN = "FORGOTTEN"
STATES = ("running", "locked", "checkpointed", "failed")  # CUprocessState
RUNNING, LOCKED, CHECKPOINTED, FAILED = range(4)

_POLL_S = 0.002
_GET_STATE, _LOCK, _CHECKPOINT, _RESTORE, _UNLOCK = (
    f"cuCheckpointProcess{what}" for what in ("GetState", "Lock", "Checkpoint", "Restore", "Unlock")
)


class LockArgs(ctypes.Structure):
    """`CUcheckpointLockArgs`, 64 bytes. With a timeout of 0 the driver would wait without end."""

    _fields_ = (
        ("timeoutMs", ctypes.c_uint),
        ("reserved0", ctypes.c_uint),
        ("reserved1", ctypes.c_uint64 * 7),
    )


class GpuPair(ctypes.Structure):
    """`CUcheckpointGpuPair`, 32 bytes: the UUID of a GPU at the checkpoint, and of the GPU to restore it onto."""

    _fields_ = (("oldUuid", ctypes.c_ubyte * 16), ("newUuid", ctypes.c_ubyte * 16))


class RestoreArgs(ctypes.Structure):
    """`CUcheckpointRestoreArgs`, 64 bytes. CUDA 13.4 has a pointer in the reserved part, which may be NULL."""

    _fields_ = (
        ("gpuPairs", ctypes.POINTER(GpuPair)),
        ("gpuPairsCount", ctypes.c_uint),
        ("reserved", ctypes.c_char * (52 - ctypes.sizeof(ctypes.c_void_p))),
        ("reserved1", ctypes.c_uint64),
    )


class HungError(Exception):
    """A call did not return: the state of the driver in that process is unknown."""


class Calls:
    """The driver, with the times and failures of its calls.

    Args:
        libraries: places to load it from.
        lock_s: deadline of a lock, seconds.
        move_s: deadline of a checkpoint or restore.
        grace_s: deadline of all other calls, and an addition to the two above; twice as much for cuInit, which may have to
            wake every GPU.

    Attributes:
        pairs: what a restore passes on: old and new UUID of every GPU that the processes could see; empty moves nothing.
    """

    def __init__(self, libraries: Sequence[str], *, lock_s: float, move_s: float, grace_s: float) -> None:
        self._libraries = libraries
        self._lock_ms = int(lock_s * 1000)
        self._grace_s = grace_s
        self._limits = {"cuInit": grace_s, _LOCK: lock_s, _CHECKPOINT: move_s, _RESTORE: move_s}
        self._functions: dict[str, Callable[..., int]] = {}
        self.pairs: tuple[tuple[bytes, bytes], ...] = ()
        self.seconds: dict[str, dict[str, float]] = {}
        self.failures: list[Failure] = []
        self.left: list[Failure] = []
        self.hung = False

    def answer(self) -> Answer:
        """What to print."""
        return {
            "seconds": self.seconds,
            "failures": self.failures,
            "left": self.left,
            "hung": self.hung,
        }

    def load(self) -> bool:
        """Load and initialise the library; if that fails, note the failure and return False."""
        library, reasons = None, []
        for place in self._libraries:
            try:
                library = ctypes.CDLL(place)
                break
            except OSError as error:
                reasons.append(str(error))
        if library is None:
            self._note(self.failures, 0, "dlopen", "MISSING", "; ".join(reasons))
            return False
        for name in ("cuGetErrorName", "cuGetErrorString", "cuInit", _GET_STATE, _LOCK, _CHECKPOINT, _RESTORE, _UNLOCK):
            try:
                self._functions[name] = library[name]
            except AttributeError:
                self._note(
                    self.failures, 0, name, "MISSING", "this libcuda has no such function: its driver is too old"
                )
                return False
        return bool(self._on_each("cuInit", (0,), self._functions["cuInit"], self.failures))

    def states(self, pids: Sequence[int], failures: list[Failure]) -> dict[int, int]:
        """The state of each process for which the call succeeds."""
        found = {pid: ctypes.c_int(-1) for pid in pids}
        good = self._on_each(
            _GET_STATE, pids, lambda pid: self._functions[_GET_STATE](pid, ctypes.byref(found[pid])), failures
        )
        return {pid: found[pid].value for pid in good}

    def suspend(self, pids: Sequence[int]) -> None:
        """Lock all, then checkpoint all; undo everything if one fails."""
        states = self.states(pids, self.failures)
        for pid, state in states.items():
            if state != RUNNING:
                self._note(self.failures, pid, _LOCK, "NOT_RUNNING", f"it is {_state_name(state)} already")
        if self.failures:
            return
        locked = self._on_each(
            _LOCK, pids, lambda pid: self._functions[_LOCK](pid, ctypes.byref(LockArgs(self._lock_ms))), self.failures
        )
        if not self.failures:
            self._on_each(_CHECKPOINT, pids, lambda pid: self._functions[_CHECKPOINT](pid, None), self.failures)
        if not self.failures:
            self._demand(CHECKPOINTED, pids, _CHECKPOINT, self.failures)
        if self.failures and locked:
            self.resume(locked, self.left)

    def resume(self, pids: Sequence[int], failures: list[Failure]) -> None:
        """Restore and unlock each process, starting from its state."""
        states = self.states(pids, failures)
        for pid, state in states.items():
            if state not in (RUNNING, LOCKED, CHECKPOINTED):
                self._note(failures, pid, _RESTORE, "STATE", f"it is {_state_name(state)}")
        asleep = [pid for pid, state in states.items() if state == CHECKPOINTED]
        restored = self._on_each(_RESTORE, asleep, self._restore, failures)
        locked = [*restored, *(pid for pid, state in states.items() if state == LOCKED)]
        unlocked = self._on_each(_UNLOCK, locked, lambda pid: self._functions[_UNLOCK](pid, None), failures)
        self._demand(RUNNING, unlocked, _UNLOCK, failures)

    def _restore(self, pid: int) -> int:
        """Restore one process. Its arguments are its own and live until the call returns: shared ones were refused."""
        if not self.pairs:
            return self._functions[_RESTORE](pid, None)
        table = (GpuPair * len(self.pairs))()
        for entry, (old, new) in zip(table, self.pairs, strict=True):
            entry.oldUuid[:], entry.newUuid[:] = old, new
        return self._functions[_RESTORE](pid, ctypes.byref(RestoreArgs(table, len(self.pairs))))

    def _demand(self, wanted: int, pids: Sequence[int], call: str, failures: list[Failure]) -> None:
        """Note a failure for each process that is not in the state in which the call should have left it."""
        for pid, state in self.states(pids, failures).items():
            if state != wanted:
                text = f"the call succeeded, but the process is {_state_name(state)}, not {_state_name(wanted)}"
                self._note(failures, pid, call, FORGOTTEN, text)

    def _on_each(
        self, name: str, pids: Sequence[int], call: Callable[[int], int], failures: list[Failure]
    ) -> list[int]:
        """Make a call for all processes at once; the processes for which it succeeded.

        Raises:
            HungError: a call did not return.
        """
        codes: dict[int, int] = {}
        taken = self.seconds.setdefault(name, {})

        def run(pid: int) -> None:
            began = time.perf_counter()
            code = call(pid)
            taken[str(pid)] = time.perf_counter() - began
            codes[pid] = code

        limit_s = self._limits.get(name, 0.0) + self._grace_s
        deadline = time.perf_counter() + limit_s
        threads = [threading.Thread(target=run, args=(pid,), daemon=True) for pid in pids]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, deadline - time.perf_counter()))
        for pid in pids:
            if pid not in codes:
                self._note(self.failures, pid, name, TIMEOUT, f"it did not return within {limit_s:g} s{_seen(pid)}")
                self.hung = True
            elif codes[pid] != 0:
                self._note(failures, pid, name, *self._words(codes[pid]))
        if self.hung:
            raise HungError
        return [pid for pid in pids if codes[pid] == 0]

    def _words(self, code: int) -> tuple[str, str]:
        """The driver's name and description of an error."""
        said = []
        for ask in ("cuGetErrorName", "cuGetErrorString"):
            text = ctypes.c_char_p()
            known = self._functions[ask](code, ctypes.byref(text)) == 0 and text.value
            said.append(text.value.decode(errors="replace") if known and text.value else f"CUresult {code}")
        return said[0], said[1]

    @staticmethod
    def _note(failures: list[Failure], pid: int, call: str, name: str, text: str) -> None:
        failures.append({"pid": pid, "call": call, "name": name, "text": text})


def _state_name(state: int) -> str:
    return STATES[state] if 0 <= state < len(STATES) else f"in state {state}"


def _seen(pid: int) -> str:
    """The kernel's state of a process that does not answer: a stopped one never does."""
    try:
        with open(f"/proc/{pid}/status") as status:  # noqa: PTH123
            lines = [line for line in status if line.startswith("State:")]
    except OSError:
        return "; the process is gone" if pid else ""
    return f"; its state is {lines[0].partition(':')[2].strip()}" if lines else ""


def _pairs(go: str) -> tuple[tuple[bytes, bytes], ...]:
    """The pairs of UUIDs in the file `GO`."""
    if go == "-":
        return ()
    with open(go) as lines:  # noqa: PTH123
        words = [[bytes.fromhex(uuid[4:].replace("-", "")) for uuid in line.split()] for line in lines]
    return tuple((old, new) for old, new in words)


def main(argv: Sequence[str]) -> NoReturn:
    """Make the calls and print the answer; exit code 0 if all succeeded."""
    action, libraries, lock_s, move_s, grace_s, go, *pids = argv
    calls = Calls(libraries.split(":"), lock_s=float(lock_s), move_s=float(move_s), grace_s=float(grace_s))
    numbers = [int(pid) for pid in pids]
    try:
        if calls.load():
            while go != "-" and not os.path.exists(go):  # noqa: PTH110 - the caller ends this program if the file never comes
                time.sleep(_POLL_S)
            calls.pairs = _pairs(go)
            if action == "suspend":
                calls.suspend(numbers)
            else:
                calls.resume(numbers, calls.failures)
    except HungError:
        pass
    print(MARK + json.dumps(calls.answer()), flush=True)
    os._exit(1 if calls.failures else 0)  # skips threads that hang in the driver, and its clean-up


if __name__ == "__main__":
    main(sys.argv[1:])
