"""The stand-in's scheduler: the child process that holds the "memory" and makes the answers.

It dies of what SGLang's scheduler dies of (0.5.6.post2 to 0.5.23): a release with requests running (AssertionError), a
release of released memory, a resume of memory that is there (KeyError), a forward pass on released memory. As there,
its traceback goes to standard error and its parent gets SIGQUIT, upon which the parent kills the whole tree.

Standard library only, and forked before the server imports anything, so that it starts in a millisecond.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import socket
import sys
import traceback
from typing import TYPE_CHECKING, NoReturn, TypedDict

from torpor.testing.faults import Fault

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Answer", "Command", "fork_children"]

_WORDS = (
    *("amber", "basin", "cedar", "delta", "ember", "fjord", "grove", "harbor", "island", "juniper", "kelp", "lagoon"),
    *("meadow", "nectar", "orchard", "prairie", "quartz", "river", "summit", "thicket", "upland", "valley", "willow"),
    *("yarrow", "zephyr", "bay", "cliff", "dune", "estuary", "forest", "glacier", "heath"),
)


class Command(TypedDict, total=False):
    """What the server asks: one JSON line."""

    op: str
    prompt: str
    tokens: int
    greedy: bool
    running: int
    tags: list[str]


class Answer(TypedDict):
    """What comes back: one JSON line."""

    words: list[str]


def fork_children(fault: Fault | None) -> tuple[socket.socket, tuple[int, ...]]:
    """Fork a scheduler and a detokenizer.

    The detokenizer does nothing and notices nothing, not even its parent's end: whoever ends the engine has to end it.

    Returns:
        The server's end of the scheduler's socket, and both process ids.
    """
    ours, theirs = socket.socketpair()
    deaf = fault in (Fault.CHILDREN_IGNORE_SIGTERM, Fault.IGNORE_SIGTERM)
    scheduler = os.fork()
    if scheduler == 0:
        ours.close()
        _child(lambda: _Scheduler(fault).run(theirs), deaf=deaf)
    detokenizer = os.fork()
    if detokenizer == 0:
        ours.close()
        theirs.close()
        _child(_wait_for_ever, deaf=deaf)
    theirs.close()
    return ours, (scheduler, detokenizer)


def _child(work: Callable[[], None], *, deaf: bool) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN if deaf else signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    code = 1
    try:
        work()
        code = 0
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        with contextlib.suppress(ProcessLookupError):
            os.kill(os.getppid(), signal.SIGQUIT)
        _wait_for_ever()  # as SGLang's: the parent's SIGKILL is what ends it
    finally:
        os._exit(code)


def _wait_for_ever() -> None:
    while True:
        signal.pause()


class _Scheduler:
    """Answers one command after another."""

    def __init__(self, fault: Fault | None) -> None:
        self._fault = fault
        self._released: set[str] = set()
        self._wakes = 0

    def run(self, link: socket.socket) -> None:
        with link.makefile("rw", encoding="utf-8") as lines:
            for line in lines:
                command: Command = json.loads(line)
                answer = self._answer(command)
                lines.write(json.dumps(answer) + "\n")
                lines.flush()

    def _answer(self, command: Command) -> Answer:
        words: list[str] = []
        match command["op"]:
            case "generate":
                words = self._generate(command["prompt"], command["tokens"], greedy=command["greedy"])
            case "release":
                self._release(command["tags"], command["running"])
            case "resume":
                self._resume(command["tags"])
        return {"words": words}

    def _generate(self, prompt: str, tokens: int, *, greedy: bool) -> list[str]:
        if self._released:
            raise RuntimeError(f"Pointer argument cannot be accessed: {sorted(self._released)} is unmapped")
        if not greedy:
            return random.choices(_WORDS, k=tokens)  # noqa: S311 - sampled text, no secret
        if self._wakes and self._fault is Fault.SHORTER_AFTER_WAKE:
            tokens = (tokens + 1) // 2
        salt = "garbled" if self._wakes and self._fault is Fault.DIFFERENT_AFTER_WAKE else ""
        return [_word(f"{salt}{prompt}/{number}") for number in range(tokens)]

    def _release(self, tags: list[str], running: int) -> None:
        assert running == 0, "release_memory_occupation should be called only when server is idle."
        for tag in tags:
            if tag in self._released:
                raise RuntimeError(f"Cannot pause allocation that is not active: {tag}")
        self._released.update(tags)

    def _resume(self, tags: list[str]) -> None:
        for tag in tags:
            self._released.remove(tag)
        self._wakes += 1


def _word(text: str) -> str:
    return _WORDS[hashlib.sha256(text.encode()).digest()[0] % len(_WORDS)]
