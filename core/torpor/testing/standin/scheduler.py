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
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, cast

from torpor.testing.faults import CRASH_WORD, Fault, happens
from torpor.testing.standin.ranks import Group, RankFault, RankOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torpor.testing.standin.commands import Answer, Command

__all__ = ["AS_LOADED", "Scheduler", "fork_children", "wait_for_ever"]

_WORDS = (
    *("amber", "basin", "cedar", "delta", "ember", "fjord", "grove", "harbor", "island", "juniper", "kelp", "lagoon"),
    *("meadow", "nectar", "orchard", "prairie", "quartz", "river", "summit", "thicket", "upland", "valley", "willow"),
    *("yarrow", "zephyr", "bay", "cliff", "dune", "estuary", "forest", "glacier", "heath"),
)


_AFTER_WAKE = (
    Fault.DIFFERENT_AFTER_WAKE,
    Fault.SHORTER_AFTER_WAKE,
    Fault.ADAPTER_LOST,
    Fault.ADAPTERS_SWAPPED,
    Fault.ADAPTERS_IGNORED,
)

AS_LOADED = "as loaded"
"""What stands for a rank's weights; anything else is other weights."""


class Scheduler(ABC):
    """Answers one command after another; each dialect has a subclass.

    Args:
        fault: the fault to show, if any.
        fault_once: see `torpor.testing.faults.happens`.

    Attributes:
        adapters: the weights of each adapter, by its name.
    """

    def __init__(self, fault: Fault | None, fault_once: str = "") -> None:
        self._fault = fault
        self._fault_once = fault_once
        self._random = random.Random()  # noqa: S311 - sampled text, no secret; the same in every replica of a snapshot
        self._captured: object = None  # the random state of the first sleep, for a fault
        self._wakes = 0
        self._faulty = False
        self.adapters: Mapping[str, str] = {}
        self.group = Group(RankOptions())
        self.weights = AS_LOADED

    def _fell_asleep(self) -> None:
        self._captured = self._captured or self._random.getstate()

    def _seed(self, seed: int | None = None) -> None:
        """Seed the random state, by default from the kernel."""
        if self._fault is not Fault.REPEATS_SAMPLES:
            self._random.seed(seed)

    def _woke(self) -> None:
        self._wakes += 1
        if self.group.faulty(RankFault.OTHER_WEIGHTS):
            self.weights = "others"
        if self._fault is Fault.REPEATS_SAMPLES:
            self._random.setstate(cast("tuple[object, ...]", self._captured))
        if self._fault in _AFTER_WAKE and not self._faulty:
            self._faulty = happens(self._fault_once)
            if self._faulty:
                self.adapters = _damaged(self.adapters, self._fault)

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
            return self.change(command) if self.group.alone else self.change_all(command)
        if command.get("adapter", "") not in ("", *self.adapters):
            return {"error": f"KeyError: {command['adapter']!r}"}
        if self._fault is Fault.HANG_WHILE_SERVING and CRASH_WORD in command["prompt"]:
            wait_for_ever()
        answers = self.group.together(command, self.own)
        garbled = self.garbled or len({answer["weights"] for answer in answers}) > 1
        return {"words": self._generate(command, garbled=garbled)}

    def own(self, command: Command) -> Answer:
        """Execute this rank's part of a command."""
        if command["op"] != "generate":
            return self.change(command)
        self.check_memory()
        return {"weights": self.weights}

    @abstractmethod
    def change_all(self, command: Command) -> Answer:
        """Execute a command of the dialect on every rank, in the order that several ranks need."""

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

    def _generate(self, command: Command, *, garbled: bool) -> list[str]:
        prompt, tokens = command["prompt"], command["tokens"]
        if not command["greedy"]:
            return self._random.choices(_WORDS, k=tokens)
        if self._faulty and self._fault is Fault.SHORTER_AFTER_WAKE:
            tokens = (tokens + 1) // 2
        adapter = command.get("adapter", "")
        salt = ("garbled" if garbled else "") + (self.adapters[adapter] if adapter else "")
        return [_word(f"{salt}{prompt}/{number}") for number in range(tokens)]


def fork_children(scheduler: Scheduler, ranks: RankOptions, *, deaf: bool) -> tuple[socket.socket, tuple[int, ...]]:
    """Fork a scheduler for each rank and one more child.

    The last one stands for a detokenizer or a resource tracker. It does nothing and does not notice its parent's end, so Torpor
    has to end it with the engine.

    Args:
        scheduler: what rank 0 runs, and the other ranks for their part.
        ranks: how many there are.
        deaf: whether all ignore SIGTERM.

    Returns:
        The server's end of the socket of rank 0, and all process ids, by rank; the last is the other child.
    """
    ours, theirs = socket.socketpair()
    pairs = [socket.socketpair() for _ in range(1, ranks.size)]
    pids = [_fork_rank(scheduler, ranks, 0, theirs, (ours, *(far for _, far in pairs)), deaf=deaf, pairs=pairs)]
    for rank, (near, far) in enumerate(pairs, 1):
        others = [end for pair in pairs for end in pair if end is not far]
        pids.append(_fork_rank(scheduler, ranks, rank, far, (ours, theirs, *others), deaf=deaf))
        near.close()
        far.close()
    last = os.fork()
    if last == 0:
        ours.close()
        theirs.close()
        _child(wait_for_ever, scheduler.fail, deaf=deaf)
    theirs.close()
    return ours, (*pids, last)


def _fork_rank(
    scheduler: Scheduler,
    ranks: RankOptions,
    rank: int,
    link: socket.socket,
    foreign: Iterable[socket.socket],
    *,
    deaf: bool,
    pairs: Sequence[tuple[socket.socket, socket.socket]] = (),
) -> int:
    pid = os.fork()
    if pid:
        return pid
    for end in foreign:
        end.close()
    scheduler.group = Group(ranks, rank, tuple(near for near, _ in pairs))
    Path("/proc/self/comm").write_text(f"standin:rank{rank}", encoding="ascii")
    work = (lambda: scheduler.run(link)) if rank == 0 else (lambda: scheduler.group.follow(link, scheduler.own))
    return _child(work, scheduler.fail, deaf=deaf)


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


def _damaged(adapters: Mapping[str, str], fault: Fault | None) -> Mapping[str, str]:
    """The adapters after a wake with a fault."""
    weights = [*adapters.values()]
    match fault:
        case Fault.ADAPTER_LOST:
            return {}
        case Fault.ADAPTERS_SWAPPED:
            return dict(zip(adapters, [*weights[1:], *weights[:1]], strict=True))
        case Fault.ADAPTERS_IGNORED:
            return dict.fromkeys(adapters, "")
    return adapters


def _word(text: str) -> str:
    return _WORDS[hashlib.sha256(text.encode()).digest()[0] % len(_WORDS)]
