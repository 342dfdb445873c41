"""The owner's end of the conversation with a sandbox's pid 1 (see `torpor.snapshots.sandbox.pid1`)."""

from __future__ import annotations

import contextlib
import marshal
import os
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from torpor.errors import SnapshotError
from torpor.snapshots.sandbox.pid1 import LENGTH_BYTES, MESSAGE_VERSION, StepError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torpor.snapshots.sandbox.pid1 import Message

__all__ = ["Channel"]

_MOST_DESCRIPTORS = 32
_CREDENTIALS = struct.Struct("3i")


class Channel:
    """Where pid 1 listens: a socket file, or one that has lost its name and is reached through a descriptor.

    Args:
        name: the sandbox's, for messages.
        control: the socket's path.
        keep_path: whether the file stays, for `Sandbox.attach`.
    """

    def __init__(self, name: str, control: Path, *, keep_path: bool) -> None:
        self.name = name
        self._inode = os.open(control, os.O_PATH)
        self._path = control if keep_path else None

    @classmethod
    @contextlib.contextmanager
    def bound(cls, name: str, control: Path | None, listener: socket.socket) -> Iterator[Channel]:
        """Give the socket that pid 1 will listen on an address, and make the channel to it.

        Raises:
            SnapshotError: something lies at `control` already, or others may write in its folder.
        """
        with contextlib.ExitStack() as stack:
            if control is None:
                folder = Path(os.environ.get("TMPDIR") or "/tmp", f"torpor-{os.urandom(8).hex()}")  # noqa: S108 - 0700
                try:
                    folder.mkdir(mode=0o700)  # `tempfile` would do, but takes 8 ms to import
                except OSError as error:
                    raise SnapshotError(
                        f"Sandbox {name!r} cannot be made: no folder for its socket ({error})."
                    ) from error
                path = folder / "control"
                stack.callback(folder.rmdir)
                stack.callback(path.unlink, missing_ok=True)
            else:
                folder, path = control.parent, control
                _check_private(folder)
            folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                listener.bind(f"/proc/self/fd/{folder_fd}/{path.name}")  # a socket's address holds 108 bytes at most
            except OSError as error:
                raise SnapshotError(f"Sandbox {name!r} cannot listen at {path}: {error.strerror}.") from error
            finally:
                os.close(folder_fd)
            yield cls(name, path, keep_path=control is not None)

    def peer(self) -> tuple[int, int]:
        """Pid and user of pid 1, as this process sees them."""
        with self._connected(1.0) as connection:
            raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, _ = _CREDENTIALS.unpack(raw)
        return pid, uid

    def ask(
        self, request: Message, *, descriptors: Sequence[int] = (), timeout_s: float | None
    ) -> tuple[Message, list[int]]:
        """Send a request and wait for its answer.

        Returns:
            The answer and the descriptors that came with it; they are the caller's to close.

        Raises:
            StepError: pid 1 could not do it.
            SnapshotError: pid 1 is gone.
            TimeoutError: no answer in time; pid 1 ends the command if it was one.
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
            raise SnapshotError(f"Sandbox {self.name!r} is gone: its pid 1 does not answer ({error}).") from error
        if "step" in answer:
            number = answer["errno"]
            raise StepError(str(answer["step"]), number if isinstance(number, int) else 0)
        return answer, received

    def close(self, *, ended: bool) -> None:
        """Let go; with `ended`, the socket file goes too. Harmless to repeat."""
        if self._inode >= 0:
            os.close(self._inode)
            self._inode = -1
            if ended and self._path:
                self._path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _connected(self, timeout_s: float | None) -> Iterator[socket.socket]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(f"/proc/self/fd/{self._inode}")
            connection.settimeout(timeout_s)
            yield connection


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
        raise EOFError("it hung up")
    answer: Message = marshal.loads(data[LENGTH_BYTES:])  # noqa: S302 - pid 1 is our own program
    return answer, list(descriptors)


def _check_private(folder: Path) -> None:
    facts = folder.stat()
    if facts.st_uid != os.geteuid() or facts.st_mode & 0o077:
        raise SnapshotError(
            f"The control socket's folder {folder} has mode {facts.st_mode & 0o777:03o} and owner {facts.st_uid}: whoever "
            f"reaches the socket commands the sandbox, so it must be your own and private (chmod 700 {folder})."
        )
