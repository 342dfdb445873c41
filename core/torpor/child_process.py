"""Commands that Torpor starts beside engines: each ends with this process, however that ends, with all that it started.

Every `subprocess` of the framework's process goes through here, through `torpor.process` (engines) or through
`torpor.snapshots.first_process` (sandboxes); a test reads the sources for others.
"""

from __future__ import annotations

import os
import secrets
import subprocess
from typing import TYPE_CHECKING

from torpor.lifeline import Lifeline
from torpor.proxies import past_proxies

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["ends_with_this_process", "run_child"]

_RUN_ID_VARIABLE = "TORPOR_RUN_ID"


def ends_with_this_process(gentle_s: float = 0.0) -> Lifeline:
    """What ends a command with everything that it started: with this process, and with the `with` block.

    Args:
        gentle_s: see `Lifeline`.
    """
    return Lifeline(_RUN_ID_VARIABLE, secrets.token_hex(8), gentle_s=gentle_s)


def run_child(
    argv: Sequence[str], *, timeout_s: float, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end and keep its output. Nothing that it started is left afterwards, whatever happens.

    Args:
        argv: program and arguments; it gets no input.
        timeout_s: seconds that it may take.
        env: its environment; by default this process's.

    Raises:
        OSError: it cannot be started.
        TimeoutExpired: it took too long, and was ended.
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
                output, errors = process.communicate(timeout=timeout_s)
            except BaseException:
                lifeline.cut()  # first, as a process that it left behind may hold the pipes
                raise
    return subprocess.CompletedProcess(argv, process.returncode, output, errors)
