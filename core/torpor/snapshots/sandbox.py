"""One sandbox per replica: an engine's tree in pid, mount, net and ipc namespaces of its own.

    owner (this process)
    └── outer      makes the namespaces, then only waits; in the host's pid namespace
        └── pid 1  reaps, starts commands, hands out sockets; ends with its owner, and everything below ends with it
            ├── 1000  the engine's leader
            └── criu  for a dump or a restore: inside, so that the images hold no namespace data

Each sandbox has its own loopback device, /proc, /dev/shm and scratch folder. The same pids, ports, lock files and
shared-memory names can therefore exist in any number of sandboxes at once, which is what replicas of one image need.
The network namespace holds `lo` alone: an engine in it cannot open a connection to the outside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from socket import socket as Socket  # noqa: N812 - `socket` is a method here

__all__ = ["FIRST_PID", "Clock", "Finished", "Mode", "Sandbox"]

Mode = Literal["rootless", "root"]
"""`rootless`: in a user namespace, no privilege needed. `root`: without one; needs root (CAP_SYS_ADMIN)."""

FIRST_PID = 1000
"""The engine's leader inside every sandbox: above every process of our own and of CRIU's before it, so never taken."""


@dataclass(frozen=True, kw_only=True)
class Clock:
    """Two readings of a sandbox's clocks, in seconds (clock_gettime(2))."""

    monotonic_s: float
    boottime_s: float


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A command that ran in a sandbox.

    Attributes:
        code: its exit code; negative for a signal, as in `subprocess`.
        output: standard output and standard error, in the order written.
    """

    code: int
    output: str


class Sandbox:
    """A running sandbox. Safe to use from several threads. Use `create` or `attach`, never the constructor.

    Attributes:
        name: for messages.
        mode: how it was made.
        pid: pid 1 of the sandbox, as this process sees it.
        scratch: the private folder, the same path inside; TMPDIR of the engine is `scratch/tmp`.
        log: the engine's output, a path inside: `scratch/log/engine.log`. Read it with `log_tail`.
    """

    name: str
    mode: Mode
    pid: int
    scratch: Path
    log: Path

    @classmethod
    def create(
        cls,
        name: str,
        *,
        mode: Mode,
        scratch: Path,
        private: Sequence[Path] = (),
        clock: Clock | None = None,
        control: Path | None = None,
        timeout_s: float = 10.0,
    ) -> Sandbox:
        """Make a sandbox; nothing but pid 1 runs in it yet.

        It ends with this process, however that ends, SIGKILL included; with `control` it does not (a detached replica).

        Args:
            name: for messages.
            mode: with or without a user namespace; see `torpor.snapshots.probe.available`.
            scratch: mount point of the private scratch folder; made when missing, stays empty on the host. A restored
                tree has open files in it, so it must be the same path at the dump and at every restore.
            private: more folders that every replica sees empty and of its own; /dev/shm always is.
            clock: where its clocks begin (a time namespace); the host's clocks by default. Given the reading at the
                dump, a restored tree sees no jump.
            control: a socket path for `attach`; the sandbox then outlives this process. The folder must be private (0700).
            timeout_s: seconds for all of it.

        Raises:
            SnapshotError: the kernel refused, or it took too long; the message names the step and the cure.
        """
        raise NotImplementedError

    @classmethod
    def attach(cls, control: Path) -> Sandbox:
        """Take over a detached sandbox that another process made.

        Raises:
            SnapshotError: nobody answers there.
        """
        raise NotImplementedError

    def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path | None = None,
        files: Mapping[int, bytes] | None = None,
    ) -> None:
        """Start the engine as process `FIRST_PID`, leader of a session of its own.

        Standard input is /dev/null, output is appended to `log`; nothing else is inherited, so that no descriptor of
        the tree leads out of the sandbox.

        Args:
            argv: the command; the program is looked up in PATH of `env`.
            env: the whole environment; TMPDIR is set over it.
            cwd: working folder; `scratch` by default.
            files: content of unlinked files on the private scratch folder, open for reading at these descriptors (3 and up).

        Raises:
            ConfigurationError: there is no such program, or it may not be run.
            SnapshotError: the sandbox has a tree already, or is gone.
        """
        raise NotImplementedError

    def run(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Path | None = None, timeout_s: float
    ) -> Finished:
        """Run a command inside beside the tree (CRIU, `ss`, ...) and wait for its end; its umask is 077.

        Args:
            argv: the command.
            env: its whole environment; PATH alone by default.
            cwd: working folder; `/` by default.
            timeout_s: seconds after which its process group is killed.

        Raises:
            ConfigurationError: there is no such program.
            TimeoutError: it was killed at the deadline.
            SnapshotError: the sandbox is gone.
        """
        raise NotImplementedError

    def socket(self) -> Socket:
        """A TCP socket (IPv4, not connected, blocking) that belongs to the sandbox's network namespace.

        Works for root and rootless alike and from any thread: pid 1 makes it and passes it out. Connect it to 127.0.0.1.

        Raises:
            SnapshotError: the sandbox is gone.
        """
        raise NotImplementedError

    def connect(self, port: int, *, timeout_s: float) -> Socket:
        """A connection to a port on the sandbox's loopback; it keeps `timeout_s` as its time-out.

        Raises:
            OSError: nobody listens, or not in time.
            SnapshotError: the sandbox is gone.
        """
        raise NotImplementedError

    def poll(self) -> int | None:
        """Exit code of the tree's leader (negative: the signal; -9 when the whole sandbox ended), or None while it runs.

        Spawned and restored trees alike. None too while there is no tree yet.
        """
        raise NotImplementedError

    def wait(self, timeout_s: float) -> int | None:
        """Wait at most `timeout_s` seconds for the leader's end; its exit code, or None when it still runs."""
        raise NotImplementedError

    def fileno(self) -> int:
        """A descriptor that becomes readable when the leader or the sandbox ends; for select(2) and event loops only."""
        raise NotImplementedError

    @property
    def alive(self) -> bool:
        """Whether the sandbox itself still runs (its tree may have ended: see `poll`)."""
        raise NotImplementedError

    def signal_tree(self, number: int) -> None:
        """Send a signal to every process inside but pid 1."""
        raise NotImplementedError

    def host_pids(self) -> dict[int, int]:
        """Pid inside to pid outside, of every process inside, pid 1 included."""
        raise NotImplementedError

    def log_tail(self, lines: int = 200) -> tuple[str, ...]:
        """The engine's last output lines, oldest first; also after `kill`."""
        raise NotImplementedError

    def clock(self) -> Clock:
        """What the sandbox's clocks show."""
        raise NotImplementedError

    def pack_side_files(self, archive: Path) -> int:
        """Write what lies in the private folders to a tar archive (0600); bytes written.

        CRIU keeps open files by path only, so their content goes beside its images. Sockets are left out: CRIU binds
        them again. The engine's log is packed empty: a replica starts its own.

        Raises:
            SnapshotError: it cannot be written (disk full, ...); no partial archive stays.
        """
        raise NotImplementedError

    def unpack_side_files(self, archive: Path) -> None:
        """Lay a packed archive into the private folders of this sandbox, before a restore.

        Raises:
            SnapshotError: the archive is missing or damaged, or holds a path outside of the private folders.
        """
        raise NotImplementedError

    def kill(self, timeout_s: float = 10.0) -> None:
        """End the sandbox with everything inside, and make sure that no process of its namespaces is left. Harmless to repeat.

        Raises:
            SnapshotError: something is left after `timeout_s` seconds; each process is named.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Let go of a detached sandbox, which runs on; any other is ended."""
        raise NotImplementedError

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
