"""The ways in which the stand-in engine fails on request: one name per fault."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

__all__ = ["CRASH_WORD", "EXIT_CODE", "FLOOD_BYTES", "Fault", "happens"]

EXIT_CODE = 21
"""What the stand-in exits with when its fault is an exit, so that a test knows it from any other end."""

CRASH_WORD = "crash-now"
"""A chat with this word ends an engine with the fault `exit_while_serving`."""

FLOOD_BYTES = 100_000_000
"""What the fault `log_flood` prints, bytes; a tenth of it is one line without an end."""


class Fault(StrEnum):
    """A fault of the stand-in engine.

    `fault_s` below is the stand-in's option of that name.
    """

    SLOW_START = "slow_start"
    """The port opens `fault_s` seconds late; everything else is as it should be."""
    EXIT_AT_START = "exit_at_start"
    """Ends before its port opens."""
    HANG_AT_START = "hang_at_start"
    """Lives, but its port never opens."""
    NEVER_READY = "never_ready"
    """The port opens, and every engine route answers 503."""
    EXIT_IN_WARMUP = "exit_in_warmup"
    """Ends on the first chat request, without an answer."""
    ERROR_IN_WARMUP = "error_in_warmup"
    """Answers every chat request with 500."""
    HANG_IN_WARMUP = "hang_in_warmup"
    """Never answers a chat request."""
    LOG_FLOOD = "log_flood"
    """Prints 100 MB on the first chat request, then answers."""
    EXIT_WHILE_SERVING = "exit_while_serving"
    """Ends on a chat request that holds `CRASH_WORD`."""
    HANG_WHILE_SERVING = "hang_while_serving"
    """Its scheduler works for ever on a chat that holds `CRASH_WORD`; the server process lives on."""
    REFUSE_SLEEP = "refuse_sleep"
    """Answers the call that puts it to sleep with an error."""
    HANG_IN_SLEEP = "hang_in_sleep"
    """Never answers the call that puts it to sleep."""
    EXIT_WHILE_ASLEEP = "exit_while_asleep"
    """Ends `fault_s` seconds after it fell asleep."""
    EXIT_AT_WAKE = "exit_at_wake"
    """Ends on the call that wakes it, without an answer."""
    REFUSE_WAKE = "refuse_wake"
    """Answers the call that wakes it with an error."""
    HANG_IN_WAKE = "hang_in_wake"
    """Never answers the call that wakes it."""
    DIFFERENT_AFTER_WAKE = "different_after_wake"
    """Answers with other words after a wake."""
    SHORTER_AFTER_WAKE = "shorter_after_wake"
    """Answers with half the words after a wake."""
    ADAPTER_LOST = "adapter_lost"
    """After a wake every request to an adapter is a KeyError: it answers 500."""
    ADAPTERS_SWAPPED = "adapters_swapped"
    """After a wake each adapter answers as the next one did."""
    ADAPTERS_IGNORED = "adapters_ignored"
    """After a wake each adapter answers as the model itself."""
    REPEATS_SAMPLES = "repeats_samples"
    """Samples after every wake the same as after the wake before, like replicas that do not renew their random state."""
    REPEATS_IDS = "repeats_ids"
    """Gives its answers the same ids after every wake."""
    SIGHT_LOST_AFTER_WAKE = "sight_lost_after_wake"
    """Answers chats with a picture or a sound with other words after a wake; those of text alone stay as they were."""
    DRAFT_LOST_AFTER_WAKE = "draft_lost_after_wake"
    """With a draft: after a wake every guess is wrong. The answers stay as they are, and come one token a step."""
    COMPILES_AT_FIRST_SCHEMA = "compiles_at_first_schema"
    """Compiles when the first request asks for a JSON schema: a file in its kernel cache, and a line in its log."""
    CHILDREN_IGNORE_SIGTERM = "children_ignore_sigterm"
    """The server process ends on SIGTERM, its children do not."""
    IGNORE_SIGTERM = "ignore_sigterm"
    """No process of the tree ends on SIGTERM."""


def happens(once: str) -> bool:
    """Whether a fault happens now.

    Args:
        once: a file; the fault happens in the process that makes it, and in no other after that. Empty: always.
    """
    if not once:
        return True
    try:
        Path(once).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
