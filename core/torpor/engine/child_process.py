"""Commands that Torpor starts beside engines. Each ends with this process, however that ends, and so does all it started.

The framework's process starts others only here, in `torpor.engine.process` (engines) and in
`torpor.snapshots.sandbox.first_process` (sandboxes). A test searches the sources for exceptions.
"""

from __future__ import annotations

import os
import secrets
import selectors
import subprocess
import time
from typing import TYPE_CHECKING

from torpor.engine.lifeline import Lifeline
from torpor.network.proxies import past_proxies

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["ends_with_this_process", "run_child"]

_RUN_ID_VARIABLE = "TORPOR_RUN_ID"
"""Set by Torpor for a build step or a check, so that all processes that it started can be found and ended."""

_MOST_BYTES, _PIECE_BYTES = 64 << 20, 1 << 16


def ends_with_this_process(gentle_s: float = 0.0) -> Lifeline:
    """Ends a command with everything that it started: when this process ends, and at the end of the `with` block.

    Args:
        gentle_s: see `Lifeline`.
    """
    return Lifeline(_RUN_ID_VARIABLE, secrets.token_hex(8), gentle_s=gentle_s)


def run_child(
    argv: Sequence[str], *, timeout_s: float, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end and keep its output. Nothing that it started is left afterwards.

    The first 64 MiB of each stream are kept. The rest is read and dropped, so that the command does not block.

    Args:
        argv: program and arguments; it gets no input.
        timeout_s: seconds that it may take.
        env: its environment; by default this process's.

    Raises:
        OSError: it cannot be started.
        TimeoutExpired: it took too long and was ended.
    """
    with ends_with_this_process() as lifeline:
        given = os.environ if env is None else env
        process = subprocess.Popen(
            argv,
            env={**given, **past_proxies(given), **lifeline.mark},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        with process:
            lifeline.tell(process.pid)
            try:
                output, errors = _outputs(process, timeout_s)
            except BaseException:
                lifeline.cut()  # first: a process that the command left behind may hold the pipes
                raise
    return subprocess.CompletedProcess(argv, process.returncode, output, errors)


def _outputs(process: subprocess.Popen[bytes], timeout_s: float) -> tuple[bytes, bytes]:
    """What a command prints on standard output and standard error until it ends, within a limit of memory.

    Raises:
        TimeoutExpired: it did not end.
    """
    deadline = time.monotonic() + timeout_s
    assert process.stdout is not None
    assert process.stderr is not None
    kept = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
    output, errors = kept.values()
    with selectors.DefaultSelector() as waiting:
        for descriptor in kept:
            waiting.register(descriptor, selectors.EVENT_READ)
        while waiting.get_map():
            if (left_s := deadline - time.monotonic()) <= 0:
                raise subprocess.TimeoutExpired(process.args, timeout_s)
            for key, _ in waiting.select(left_s):
                if data := os.read(key.fd, _PIECE_BYTES):
                    kept[key.fd] += data[: _MOST_BYTES - len(kept[key.fd])]
                else:
                    waiting.unregister(key.fd)
    process.wait(max(0.0, deadline - time.monotonic()))
    return bytes(output), bytes(errors)
