"""Runs the program that makes the driver's checkpoint calls inside a sandbox, and turns its answer into messages."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from typing import TYPE_CHECKING, cast

from torpor.errors import ConfigurationError, GpuSnapshotError
from torpor.snapshots.gpu import calls_program as cuda_calls
from torpor.snapshots.gpu.advice import LOCK_S
from torpor.snapshots.gpu.driver import library_candidates

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torpor.snapshots.gpu.calls_program import Answer
    from torpor.snapshots.sandbox.sandbox import Finished, Sandbox

__all__ = ["UnansweredError", "run_calls"]

_MOVE_S, _MOVE_BYTES_PER_S = 60.0, 5e8  # a quarter of the lowest rate measured (1.8 GB/s)
_GRACE_S = 10.0  # for a call that moves no memory
_SLACK_S = 15.0  # starting an interpreter and answering, on a loaded machine
_SHOWN = 4
_SHOWN_CHARACTERS = 500
_PASSED_ON = ("LD_LIBRARY_PATH", "TORPOR_")  # not secrets, and not CUDA_VISIBLE_DEVICES


class UnansweredError(GpuSnapshotError):
    """The state of the driver is unknown. The caller ends the sandbox, as the message says."""


def run_calls(
    action: str,
    sandbox: Sandbox,
    pids: Sequence[int],
    moved_bytes: int,
    *,
    go: Path | None = None,
    wait_s: float = 0.0,
) -> Answer:
    """Make the driver's calls for processes of a sandbox; the program's answer, which includes failed calls.

    Args:
        action: `suspend` or `resume`.
        sandbox: with the processes.
        pids: pids inside.
        moved_bytes: GPU memory of all of them; sets the deadlines of checkpoint and restore.
        go: file for which the program waits once the driver is initialised; see `torpor.snapshots.gpu.calls_program`.
        wait_s: seconds within which that file will exist.

    Raises:
        UnansweredError: there was no answer; the caller has to end the sandbox.
        GpuSnapshotError: the program did not start, so the driver was not called.
    """
    move_s = _MOVE_S + moved_bytes / _MOVE_BYTES_PER_S
    libraries = ":".join(library_candidates("libcuda.so.1"))
    argv = [sys.executable, "-I", "-S", cuda_calls.__file__, action, libraries]
    argv += [str(LOCK_S), str(move_s), str(_GRACE_S), str(go or "-"), *map(str, pids)]
    who = f"The CUDA calls ({action}) of sandbox {sandbox.name!r}"
    finished = _run(who, sandbox, argv, timeout_s=wait_s + LOCK_S + 2 * move_s + 12 * _GRACE_S + _SLACK_S)
    if (answer := _answer(finished)) is not None:
        return answer
    last_lines = finished.output.strip().splitlines()[-_SHOWN:] or ["nothing"]
    raise UnansweredError(
        f"{who} ended with code {finished.code} and no answer, so the sandbox was ended. The program's output:\n"
        + "\n".join(f"  {line[:_SHOWN_CHARACTERS]}" for line in last_lines)
    )


def _run(who: str, sandbox: Sandbox, argv: Sequence[str], *, timeout_s: float) -> Finished:
    env = {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}
    try:
        return sandbox.run(argv, env={"PATH": os.defpath, **env}, timeout_s=timeout_s)
    except TimeoutError:
        raise UnansweredError(
            f"{who} were killed: not even the program that makes them answered within {timeout_s:g} s. So the sandbox was ended."
        ) from None
    except ConfigurationError as error:
        raise GpuSnapshotError(f"{who} could not be made: {error} The driver was not called.") from error


def _answer(finished: Finished) -> Answer | None:
    """The last line that is a complete answer: the driver prints to the same output, and may cut a line."""
    for line in reversed(finished.output.splitlines()):
        _, mark, text = line.partition(cuda_calls.MARK)
        if mark:
            with contextlib.suppress(ValueError, RecursionError):
                answer = json.loads(text)
                if _is_answer(answer):
                    return cast("Answer", answer)
    return None


def _is_answer(answer: object) -> bool:
    """Whether it has every part of `torpor.snapshots.gpu.calls_program.Answer`, with the right types."""
    match answer:
        case {"seconds": dict() as seconds, "failures": list() as failures, "left": list() as left, "hung": bool()}:
            times = [
                taken for calls in seconds.values() for taken in (calls.values() if isinstance(calls, dict) else [""])
            ]
            return all(_is_time(taken) for taken in times) and all(map(_is_failure, [*failures, *left]))
    return False


def _is_time(taken: object) -> bool:
    return isinstance(taken, int | float) and not isinstance(taken, bool) and 0 <= taken < math.inf


def _is_failure(failure: object) -> bool:
    match failure:
        case {"pid": int(), "call": str(), "name": str(), "text": str()}:
            return True
    return False
