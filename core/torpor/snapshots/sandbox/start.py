"""Starts sandboxes: at once with `create_sandbox`, or in two steps, so that a restore can do other things meanwhile."""

from __future__ import annotations

import contextlib
import marshal
import math
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, cast

from torpor.errors import ConfigurationError, SnapshotError
from torpor.snapshots.sandbox import pid1
from torpor.snapshots.sandbox.channel import Channel, readable
from torpor.snapshots.sandbox.first_process import FirstProcess
from torpor.snapshots.sandbox.pid1 import StepError
from torpor.snapshots.sandbox.sandbox import ENGINE_LOG, Clock, Sandbox

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import IO

    from torpor.snapshots.sandbox.pid1 import Config
    from torpor.snapshots.store.manifest import Mode

    Pipe = IO[bytes]

__all__ = ["StartingSandbox", "create_sandbox"]

DEV_SHM = Path("/dev/shm")  # noqa: S108 - private to every sandbox


def create_sandbox(
    name: str,
    *,
    mode: Mode,
    scratch: Path,
    private: Sequence[Path] = (),
    clock: Clock | None = None,
    timeout_s: float = 60.0,
) -> Sandbox:
    """Start a sandbox and wait until it is ready; only pid 1 runs in it. It ends with this process, even on SIGKILL.

    Args:
        name: for messages.
        mode: with or without a user namespace; see `torpor.snapshots.criu.probe.available`.
        scratch: mount point of the private scratch folder; made when missing, stays empty on the host. It must be the same
            path at the dump and at every restore, since a restored tree has open files in it.
        private: more folders of which every sandbox has its own, empty at first; /dev/shm always is one.
        clock: where its clocks start (a time namespace); by default the host's clocks. With the reading of the dump, a
            restored tree sees no jump. As root CRIU does this by itself, rootless it does not (4.2.1). Without effect on
            kernels without time namespaces (before 5.6).
        timeout_s: seconds for everything.

    Raises:
        SnapshotError: the kernel refused a step, which the message names, or it took too long.
    """
    return StartingSandbox(name, mode=mode, scratch=scratch, private=private, clock=clock).ready(timeout_s)


class StartingSandbox:
    """A sandbox whose first process makes it ready by itself, which takes 30 ms. Call `ready` or `end`.

    The arguments are those of `create_sandbox`, and two more:

        first: a first process that was started before.
        moved: folders that are to be seen at other paths: path inside, path on this machine. Parents that are missing, or closed
            to this user, are made inside of the sandbox only.

    Attributes:
        name: for messages.
        ended: whether `end` was called.

    Raises:
        SnapshotError: there is no place for the scratch folder or for the socket.
    """

    def __init__(
        self,
        name: str,
        *,
        mode: Mode,
        scratch: Path,
        private: Sequence[Path] = (),
        clock: Clock | None = None,
        first: FirstProcess | None = None,
        moved: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.name = name
        self._moved = [*moved]
        self.ended = False
        self._mode, self._scratch = mode, scratch
        # An outer folder comes before the folders in it, which would be hidden otherwise.
        self._private = sorted({*private, DEV_SHM, scratch}, key=lambda folder: len(folder.parts))
        self._lock = threading.Lock()
        self._waited_for = False
        self._sandbox: Sandbox | None = None
        self._first = first or FirstProcess(name)
        with self._first:
            _make_mount_point(name, _on_this_machine(scratch, moved))
            self._channel = Channel.bound(name, self._first.listener)
            self._first.configure(self._config(clock))
            self._outer = self._first.process
            self._undo = contextlib.ExitStack()
            self._undo.callback(self._channel.close)
            self._undo.callback(self._first.end)

    def ready(self, timeout_s: float) -> Sandbox:
        """Wait until pid 1 listens.

        Raises:
            SnapshotError: the kernel refused a step, it took too long, or another thread ended it.
        """
        with self._lock:
            self._check_not_ended()
            self._waited_for = True
        with cast("Pipe", self._outer.stdout) as stdout:
            report = os.read(stdout.fileno(), 4096) if readable(stdout.fileno(), timeout_s) else None
        with self._lock:
            self._check_not_ended()
            if report != pid1.READY:
                error = self._failure(report, timeout_s)
                self._undo.close()
                raise error
            with self._undo:
                sandbox = Sandbox(
                    self._channel, self._outer, mode=self._mode, scratch=self._scratch, private=self._private
                )
                self._undo.pop_all()
            self._first.release()
            self._sandbox = sandbox
        return sandbox

    def end(self) -> None:
        """End the sandbox at any time, even after `ready`: another thread that uses it gets an error. Harmless to repeat."""
        with self._lock:
            self.ended = True
            self._undo.close()
            if not self._waited_for:
                cast("Pipe", self._outer.stdout).close()
            if self._sandbox is not None:
                self._sandbox.end()

    def _config(self, clock: Clock | None) -> Config:
        return {
            "rootless": self._mode == "rootless",
            "clock": _clock_offsets(clock) if clock else "",
            "moved": self._moved,
            "private": [(str(folder), "0700" if folder == self._scratch else "1777") for folder in self._private],
            "folders": [str(self._scratch / "tmp"), str(self._scratch / "log")],
            "log": str(self._scratch / ENGINE_LOG),
            "listener": self._first.listener.fileno(),
            "owner": self._first.owner,
        }

    def _check_not_ended(self) -> None:
        if self.ended:
            raise SnapshotError(f"Sandbox {self.name!r} was ended before it was ready.")

    def _failure(self, report: bytes | None, timeout_s: float) -> SnapshotError:
        """The error for a report that is not `READY`: None after the deadline, empty when the process ended."""
        if report is None:
            return SnapshotError(f"Sandbox {self.name!r} was not ready after {timeout_s:g} s and was ended.")
        if report:
            step, number = marshal.loads(report)  # noqa: S302 - pid 1 is our own program
            error = SnapshotError(
                f"Sandbox {self.name!r} cannot be made: the kernel refused to {step}: {os.strerror(number)}."
            )
            error.__cause__ = StepError(step, number)
            return error
        self._outer.wait()
        return SnapshotError(
            f"Sandbox {self.name!r} cannot be made: its first process ended at once. Its output: {self._first.words()}"
        )


def _on_this_machine(scratch: Path, moved: Sequence[tuple[str, str]]) -> Path:
    """Where a path inside of the sandbox lies on this machine."""
    for inside, here in moved:
        if scratch.is_relative_to(inside):
            return here / scratch.relative_to(inside)
    return scratch


def _make_mount_point(name: str, scratch: Path) -> None:
    if not scratch.is_absolute():
        raise ConfigurationError(
            f"Sandbox {name!r}: the scratch folder must be an absolute path, not {str(scratch)!r}."
        )
    try:
        scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SnapshotError(
            f"Sandbox {name!r}: cannot make the scratch folder's mount point {scratch}: {error.strerror}."
        ) from error


def _clock_offsets(clock: Clock) -> str:
    """The text for timens_offsets (time_namespaces(7)); empty without time namespaces. Offsets count from the host's clocks."""
    if not Path("/proc/self/ns/time").exists():
        return ""
    own: dict[str, float] = {"monotonic": 0.0, "boottime": 0.0}
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/timens_offsets").read_text().splitlines():
            kind, whole, nanoseconds = line.split()
            own[kind] = int(whole) + int(nanoseconds) / 1e9
    wanted = {
        "monotonic": clock.monotonic_s - time.clock_gettime(time.CLOCK_MONOTONIC),
        "boottime": clock.boottime_s - time.clock_gettime(time.CLOCK_BOOTTIME),
    }
    lines = []
    for kind, offset_s in wanted.items():
        total = offset_s + own[kind]
        seconds = math.floor(total)
        lines.append(f"{kind} {seconds} {int((total - seconds) * 1e9)}\n")
    return "".join(lines)
