"""A sandbox's first process, started before it is known what sandbox it is to make.

Its interpreter takes as long to get going as the one that starts it: a command that has much to import begins with this.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Self, cast

if TYPE_CHECKING:
    from typing import IO

    from torpor.snapshots.sandbox.pid1 import Config

__all__ = ["FirstProcess"]

_MESSAGE_VERSION = 2  # of `marshal`: every Python 3 reads it
_WORDS_BYTES = 256 * 1024
_PROGRAM = "import sys; sys.path.append(sys.argv[1]); import pid1; sys.path.pop(); pid1.main()"


class FirstProcess:
    """Runs `torpor.snapshots.sandbox.pid1`, which waits for its configuration, and ends when nobody will send one any more.

    As a context manager it is ended after the block, unless somebody told it what to make.

    Args:
        name: for ps.
        detached: whether the sandbox outlives this process.

    Attributes:
        process: the process; it reports on its standard output, which is the caller's to read and close.
        listener: a socket that it has, too: pid 1 listens on it. To be bound before it is told.
        owner: descriptors that it has, too, by which it notices the end of this process.
    """

    def __init__(self, name: str, *, detached: bool = False) -> None:
        self._told = False
        with contextlib.ExitStack() as unmade:
            self._said = os.memfd_create("stderr")
            unmade.callback(os.close, self._said)
            self._shared = unmade.enter_context(contextlib.ExitStack())
            self.listener = self._shared.enter_context(socket.socket(socket.AF_UNIX))
            self.owner = [] if detached else [os.pidfd_open(os.getpid())]
            for descriptor in self.owner:
                self._shared.callback(os.close, descriptor)
            self.process = self._start(name)
            self._undo = unmade.pop_all()
        self._undo.callback(self._kill)

    def tell(self, config: Config) -> None:
        """Say what to make; what it shares with this process is its own from then on."""
        self._told = True
        with (
            contextlib.suppress(BrokenPipeError),
            cast("IO[bytes]", self.process.stdin) as stdin,
        ):  # it has ended: seen later
            stdin.write(marshal.dumps(dict(config), _MESSAGE_VERSION))
        self._shared.close()

    def words(self) -> str:
        """What it wrote to standard error."""
        return os.pread(self._said, _WORDS_BYTES, 0).decode(errors="replace").strip()

    def let_go(self) -> None:
        """It has done its work: nothing of it is needed any more, and it runs on."""
        self._undo.pop_all()
        os.close(self._said)

    def end(self) -> None:
        """End it. Harmless to repeat, and after `let_go`."""
        self._undo.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._told:
            self.end()
            with self.process:  # closes its pipes
                pass

    def _start(self, name: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _PROGRAM, os.path.dirname(__file__), name],  # noqa: PTH120 - pathlib: 3 ms
            env={key: value for key, value in os.environ.items() if key == "LD_LIBRARY_PATH"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            pass_fds=(self.listener.fileno(), *self.owner),
            start_new_session=True,
        )

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # it leads a session; what it forked is in it
        self.process.wait()
