"""What every launcher does around its engine's own server: the boot document, the tree's end, the line in the log."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING

from torpor.errors import ConfigurationError, TorporError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from torpor.guard import BootDocument

__all__ = ["UNGUARDED_VARIABLE", "end_tree_on_sigterm", "exit_code_of", "log", "take_boot_document"]

UNGUARDED_VARIABLE = "TORPOR_UNGUARDED"


def take_boot_document() -> BootDocument | None:
    """Read the boot document before any other process exists that could hold its pipe.

    Returns:
        The document; None for a start without a guard that TORPOR_UNGUARDED=1 asked for.

    Raises:
        ConfigurationError: there is none, or it is damaged.
    """
    from torpor.guard import read_boot  # noqa: PLC0415 - spawned processes have no use for it

    try:
        boot = read_boot()
    except ValueError as error:
        raise ConfigurationError(f"The guard's boot document cannot be used, so nothing is started: {error}.") from None
    if boot is None and os.environ.get(UNGUARDED_VARIABLE) != "1":
        raise ConfigurationError(
            "No boot document for the guard (TORPOR_BOOT_FD is not set), so nothing is started: the engine's management "
            f"routes would be open. Torpor's start_engine(..., guard=...) hands one over; for debugging set {UNGUARDED_VARIABLE}=1."
        )
    return boot


def end_tree_on_sigterm() -> None:
    """End the whole tree on SIGTERM while the engine has no handler of its own.

    That is during its start (uvicorn's handlers come with the first request's event loop) and after uvicorn's graceful
    end, which raises the signal again: without this the process would end there, before its `finally`.
    """
    import psutil  # noqa: PLC0415 - spawned processes have no use for it

    def end_tree(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        while children := psutil.Process().children(recursive=True):
            for child in children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            psutil.wait_procs(children, timeout=1.0)
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, end_tree)


def exit_code_of(start: Callable[[], None], *, launcher: str) -> int:
    """Run a launcher's start; what Torpor refuses becomes one line of the log and the error's exit code."""
    try:
        start()
    except TorporError as error:
        log(launcher, str(error))
        return error.exit_code
    return 0


def log(launcher: str, message: str) -> None:
    """Write one line into the engine's log."""
    print(f"{launcher}: {message}", file=sys.stderr, flush=True)
