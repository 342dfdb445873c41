"""The owner's end of the connection to a sandbox's pid 1 (see `torpor.snapshots.sandbox.pid1`)."""

from __future__ import annotations

import contextlib
import marshal
import os
import select
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Self

from torpor.errors import SnapshotError
from torpor.snapshots.sandbox.pid1 import LENGTH_BYTES, MESSAGE_VERSION, StepError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torpor.snapshots.sandbox.pid1 import Message

__all__ = ["Channel", "readable"]

_MOST_DESCRIPTORS = 32
_CREDENTIALS = struct.Struct("3i")


class Channel:
    """The socket on which pid 1 listens; its file has no name, so only this process reaches it, through a descriptor.

    Args:
        name: the sandbox's, for messages.
        socket_fd: descriptor of the socket's file (O_PATH); closed by `close`.
    """

    def __init__(self, name: str, socket_fd: int) -> None:
        self.name = name
        self._socket_fd = socket_fd

    @classmethod
    def bound(cls, name: str, listener: socket.socket) -> Self:
        """Bind the socket on which pid 1 will listen, and return the channel to it.

        Raises:
            SnapshotError: there is no place for the socket's file.
        """
        # `tempfile` would make the folder, too, but takes 8 ms to import.
        folder = Path(os.environ.get("TMPDIR") or "/tmp", f"torpor-{os.urandom(8).hex()}")  # noqa: S108 - 0700
        path = folder / "control"
        try:
            folder.mkdir(mode=0o700)
            try:
                _bind(listener, path)
                return cls(name, os.open(path, os.O_PATH))
            finally:
                path.unlink(missing_ok=True)
                folder.rmdir()
        except OSError as error:
            raise SnapshotError(f"Sandbox {name!r}: cannot bind its socket {path}: {error.strerror}.") from error

    def peer_pid(self) -> int:
        """Pid of pid 1, as this process sees it."""
        with self._connected(1.0) as connection:
            raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, _, _ = _CREDENTIALS.unpack(raw)
        return int(pid)

    def ask(
        self, request: Message, *, descriptors: Sequence[int] = (), timeout_s: float | None
    ) -> tuple[Message, list[int]]:
        """Send a request and wait for its answer.

        Returns:
            The answer and the descriptors that came with it; the caller closes them.

        Raises:
            StepError: pid 1 could not do it.
            SnapshotError: pid 1 has ended.
            TimeoutError: no answer in time; if the request runs a command, pid 1 kills it.
        """
        body = marshal.dumps(request, MESSAGE_VERSION)
        try:
            with self._connected(timeout_s) as connection:
                head = len(body).to_bytes(LENGTH_BYTES, "little")
                socket.send_fds(connection, [head], list(descriptors))
                connection.sendall(body)
                answer, received = _receive(connection)
        except TimeoutError:
            raise
        except (OSError, EOFError) as error:
            raise SnapshotError(f"Sandbox {self.name!r} has ended: its pid 1 does not answer ({error}).") from error
        if "step" in answer:
            number = answer["errno"]
            raise StepError(str(answer["step"]), number if isinstance(number, int) else 0)
        return answer, received

    def close(self) -> None:
        """Close the descriptor. Harmless to repeat."""
        if self._socket_fd >= 0:
            os.close(self._socket_fd)
            self._socket_fd = -1

    @contextlib.contextmanager
    def _connected(self, timeout_s: float | None) -> Iterator[socket.socket]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(f"/proc/self/fd/{self._socket_fd}")
            connection.settimeout(timeout_s)
            yield connection


def readable(descriptor: int, timeout_s: float) -> bool:
    """Wait at most `timeout_s` seconds until a descriptor can be read from, or its other end was closed; whether that happened."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def _bind(listener: socket.socket, path: Path) -> None:
    """Bind through a descriptor of the folder: a socket's address holds 108 bytes at most, TMPDIR may be longer."""
    folder_fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        listener.bind(f"/proc/self/fd/{folder_fd}/{path.name}")
    finally:
        os.close(folder_fd)


def _receive(connection: socket.socket) -> tuple[Message, list[int]]:
    data, descriptors, _, _ = socket.recv_fds(connection, 65536, _MOST_DESCRIPTORS)
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    while data and len(data) < LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "little"):
        more = connection.recv(65536)
        if not more:
            data = b""
        data += more
    if not data:
        raise EOFError("it closed the connection")
    answer: Message = marshal.loads(data[LENGTH_BYTES:])  # noqa: S302 - pid 1 is our own program
    return answer, list(descriptors)
