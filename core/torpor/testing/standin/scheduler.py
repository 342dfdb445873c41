"""The stand-in's scheduler: the child process that holds the "memory" and generates the answers.

The dialect decides how the memory behaves and which errors end the process. It uses only the standard library and is forked
before the server starts, so it is ready within a millisecond.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import socket
import sys
import traceback
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NoReturn, TypedDict, cast

from torpor.testing.faults import Fault, happens

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Answer", "Command", "Scheduler", "fork_children", "wait_for_ever"]

_WORDS = (
    *("amber", "basin", "cedar", "delta", "ember", "fjord", "grove", "harbor", "island", "juniper", "kelp", "lagoon"),
    *("meadow", "nectar", "orchard", "prairie", "quartz", "river", "summit", "thicket", "upland", "valley", "willow"),
    *("yarrow", "zephyr", "bay", "cliff", "dune", "estuary", "forest", "glacier", "heath"),
)


class Command(TypedDict, total=False):
    """A command from the server: one JSON line. `op` is `generate` or specific to the dialect."""

    op: str
    prompt: str
    tokens: int
    greedy: bool
    running: int
    tags: list[str]
    level: int
    method: str
    args: list[str]


class Answer(TypedDict, total=False):
    """The answer: one JSON line."""

    words: list[str]
    asleep: bool
    results: list[str | None]
    error: str


class Scheduler(ABC):
    """Answers one command after another; each dialect has a subclass.

    Args:
        fault: the fault to show, if any.
        fault_once: see `torpor.testing.faults.happens`.
    """

    def __init__(self, fault: Fault | None, fault_once: str = "") -> None:
        self._fault = fault
        self._fault_once = fault_once
        self._random = random.Random()  # noqa: S311 - sampled text, no secret; the same in every replica of a snapshot
        self._captured: object = None  # the random state of the first sleep, for a fault
        self._wakes = 0
        self._faulty = False

    def _fell_asleep(self) -> None:
        self._captured = self._captured or self._random.getstate()

    def _seed(self, seed: int | None = None) -> None:
        """Seed the random state, by default from the kernel."""
        if self._fault is not Fault.REPEATS_SAMPLES:
            self._random.seed(seed)

    def _woke(self) -> None:
        self._wakes += 1
        if self._fault is Fault.REPEATS_SAMPLES:
            self._random.setstate(cast("tuple[object, ...]", self._captured))
        if self._fault in (Fault.DIFFERENT_AFTER_WAKE, Fault.SHORTER_AFTER_WAKE) and not self._faulty:
            self._faulty = happens(self._fault_once)

    def run(self, link: socket.socket) -> None:
        """Serve until the server's end of the socket is closed."""
        with link.makefile("rw", encoding="utf-8") as lines:
            for line in lines:
                lines.write(json.dumps(self.answer(json.loads(line))) + "\n")
                lines.flush()

    def answer(self, command: Command) -> Answer:
        """Execute a command.

        Raises:
            Exception: an error that ends the real engine's scheduler.
        """
        if command["op"] != "generate":
            return self.change(command)
        self.check_memory()
        return {"words": self._generate(command["prompt"], command["tokens"], greedy=command["greedy"])}

    @abstractmethod
    def change(self, command: Command) -> Answer:
        """Execute a command of the dialect: sleep, wake and others."""

    @abstractmethod
    def check_memory(self) -> None:
        """Raise the error that a forward pass would raise now."""

    @abstractmethod
    def fail(self) -> None:
        """Run after the traceback is printed, before the process exits with code 1."""

    @property
    def garbled(self) -> bool:
        """Whether the weights hold garbage, so that every answer is wrong."""
        return self._faulty and self._fault is Fault.DIFFERENT_AFTER_WAKE

    def _generate(self, prompt: str, tokens: int, *, greedy: bool) -> list[str]:
        if not greedy:
            return self._random.choices(_WORDS, k=tokens)
        if self._faulty and self._fault is Fault.SHORTER_AFTER_WAKE:
            tokens = (tokens + 1) // 2
        salt = "garbled" if self.garbled else ""
        return [_word(f"{salt}{prompt}/{number}") for number in range(tokens)]


def fork_children(scheduler: Scheduler, *, deaf: bool) -> tuple[socket.socket, tuple[int, int]]:
    """Fork a scheduler and a second child.

    The second one stands for a detokenizer, a worker or a resource tracker. It does nothing and does not notice its parent's
    end, so Torpor has to end it with the engine.

    Args:
        scheduler: what the first child runs.
        deaf: whether both ignore SIGTERM.

    Returns:
        The server's end of the scheduler's socket, and both process ids.
    """
    ours, theirs = socket.socketpair()
    first = os.fork()
    if first == 0:
        ours.close()
        _child(lambda: scheduler.run(theirs), scheduler.fail, deaf=deaf)
    second = os.fork()
    if second == 0:
        ours.close()
        theirs.close()
        _child(wait_for_ever, scheduler.fail, deaf=deaf)
    theirs.close()
    return ours, (first, second)


def wait_for_ever() -> NoReturn:
    """Do nothing until a signal ends the process."""
    while True:
        signal.pause()


def _child(work: Callable[[], None], fail: Callable[[], None], *, deaf: bool) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN if deaf else signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    code = 1
    try:
        work()
        code = 0
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        fail()
    finally:
        os._exit(code)


def _word(text: str) -> str:
    return _WORDS[hashlib.sha256(text.encode()).digest()[0] % len(_WORDS)]
