"""The first process of a sandbox, started before the sandbox's configuration is known.

Its interpreter needs as long to start as the command's own imports, so a command starts it first of all.
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
    """Runs `torpor.snapshots.sandbox.pid1`, which waits for its configuration.

    It ends by itself if this process ends without sending one. As a context manager it is ended after the block, unless
    `configure` was called.

    Args:
        name: for ps.

    Attributes:
        process: the process; it reports on its standard output, which the caller reads and closes.
        listener: the socket on which pid 1 will listen; bind it before `configure`. The process has it, too.
        owner: descriptor by which the process notices the end of this one. The process has it, too.
    """

    def __init__(self, name: str) -> None:
        self._configured = False
        with contextlib.ExitStack() as undo:
            self._stderr = os.memfd_create("stderr")
            undo.callback(os.close, self._stderr)
            self._shared = undo.enter_context(contextlib.ExitStack())
            self.listener = self._shared.enter_context(socket.socket(socket.AF_UNIX))
            self.owner = os.pidfd_open(os.getpid())
            self._shared.callback(os.close, self.owner)
            self.process = self._start(name)
            self._undo = undo.pop_all()
        self._undo.callback(self._kill)

    def configure(self, config: Config) -> None:
        """Send the configuration; `listener` and `owner` are closed here and stay open in the process."""
        self._configured = True
        with (
            contextlib.suppress(BrokenPipeError),  # the process has ended; its missing report will show that
            cast("IO[bytes]", self.process.stdin) as stdin,
        ):
            stdin.write(marshal.dumps(dict(config), _MESSAGE_VERSION))
        self._shared.close()

    def words(self) -> str:
        """What the process wrote to standard error."""
        return os.pread(self._stderr, _WORDS_BYTES, 0).decode(errors="replace").strip()

    def release(self) -> None:
        """Let the process run on without this object: the sandbox is ready."""
        self._undo.pop_all()
        os.close(self._stderr)

    def end(self) -> None:
        """End the process. Harmless to repeat; without effect after `release`."""
        self._undo.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._configured:
            self.end()
            with self.process:  # closes its pipes
                pass

    def _start(self, name: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _PROGRAM, os.path.dirname(__file__), name],  # noqa: PTH120 - pathlib: 3 ms
            env={key: value for key, value in os.environ.items() if key == "LD_LIBRARY_PATH"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            pass_fds=(self.listener.fileno(), self.owner),
            start_new_session=True,
        )

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # it leads a session, which includes its forks
        self.process.wait()
