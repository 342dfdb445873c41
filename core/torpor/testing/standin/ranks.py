"""Several ranks of the stand-in: one scheduler process each, which share the model and what they keep on each other's GPUs.

Rank 0 gets every command from the server and hands it to the others, as engines do. A sleep and a wake have one order on all of
them: release, then suspend (let go of what the others share); take back, then resume. A rank that is called out of order raises
the error that a GPU would.

Faults of one rank (`--rank-fault`, `--fault-rank`):

    fails_at_sleep, fails_at_wake    the rank raises an error
    hangs_at_sleep, hangs_at_wake    the rank never answers; rank 0 waits for `--rank-deadline-s`
    forgets_sleep                    the rank answers that it released, and did not
    other_weights                    the rank comes back with other weights
"""

from __future__ import annotations

import json
import os
import select
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import TextIO

    from torpor.testing.standin.commands import Answer, Command

__all__ = ["Group", "RankError", "RankFault", "RankOptions"]


class RankFault(StrEnum):
    """A fault that one rank shows."""

    FAILS_AT_SLEEP = "fails_at_sleep"
    HANGS_AT_SLEEP = "hangs_at_sleep"
    FORGETS_SLEEP = "forgets_sleep"
    FAILS_AT_WAKE = "fails_at_wake"
    HANGS_AT_WAKE = "hangs_at_wake"
    OTHER_WEIGHTS = "other_weights"


class RankError(RuntimeError):
    """A rank failed, gave no answer, or is in another state than the others."""


@dataclass(frozen=True, kw_only=True)
class RankOptions:
    """The ranks of an engine.

    Attributes:
        size: how many there are.
        fault: what one of them does wrong, if anything.
        fault_rank: which one.
        deadline_s: seconds that rank 0 waits for another rank's answer.
    """

    size: int = 1
    fault: RankFault | None = None
    fault_rank: int = 0
    deadline_s: float = 20.0


class Group:
    """What one rank knows of the others.

    Args:
        options: the engine's ranks.
        rank: this one's.
        links: rank 0's sockets to the others, in their order.
    """

    def __init__(self, options: RankOptions, rank: int = 0, links: tuple[socket.socket, ...] = ()) -> None:
        self.options = options
        self.rank = rank
        self.suspended = False
        self._links = links

    @property
    def alone(self) -> bool:
        """Whether the engine has only one rank."""
        return self.options.size == 1

    def faulty(self, *faults: RankFault) -> bool:
        """Whether this rank shows one of these faults."""
        return self.options.fault in faults and self.rank == self.options.fault_rank

    def say(self, what: str) -> None:
        """Write a line of this rank to the log."""
        if not self.alone:
            os.write(
                2, f"standin: rank {self.rank}: {what}\n".encode()
            )  # one call, so that lines of two ranks stay whole

    def act(self, *, asleep: bool) -> None:
        """Show a fault of a sleep or a wake.

        Raises:
            RankError: this rank fails.
        """
        fails, hangs = (
            (RankFault.FAILS_AT_SLEEP, RankFault.HANGS_AT_SLEEP)
            if asleep
            else (RankFault.FAILS_AT_WAKE, RankFault.HANGS_AT_WAKE)
        )
        if self.faulty(fails):
            raise RankError(f"rank {self.rank}: CUDA error: unspecified launch failure")
        if self.faulty(hangs):
            time.sleep(3600)

    def suspend(self, held: list[str]) -> None:
        """Let go of what this rank shares with the others.

        Args:
            held: memory that it has not released.

        Raises:
            RankError: out of order.
        """
        if self.suspended:
            raise RankError(f"rank {self.rank}: suspended twice")
        if held and not self.faulty(RankFault.FORGETS_SLEEP):
            raise RankError(f"rank {self.rank}: suspended before {', '.join(held)} was released")
        self.suspended = True
        self.say("suspended")

    def take_back(self) -> None:
        """Take it back.

        Raises:
            RankError: out of order.
        """
        if not self.suspended:
            raise RankError(f"rank {self.rank}: taken back, and nothing was suspended")
        self.suspended = False
        self.say("taken back")

    def together(self, command: Command, own: Callable[[Command], Answer]) -> list[Answer]:
        """Have every rank execute a command; return the answers by rank.

        Raises:
            RankError: a rank other than 0 failed, ended, or gave no answer in time.
        """
        for rank, link in enumerate(self._links, 1):
            try:
                link.sendall(json.dumps(command).encode() + b"\n")
            except OSError:
                raise RankError(f"rank {rank} has ended") from None
        answers = [own(command)]
        deadline = time.monotonic() + self.options.deadline_s
        for rank, link in enumerate(self._links, 1):
            answer = self._answer(rank, link, command, deadline)
            if error := answer.get("error"):
                raise RankError(error)
            answers.append(answer)
        return answers

    def follow(self, link: socket.socket, own: Callable[[Command], Answer]) -> None:
        """Execute rank 0's commands until it ends; a failure is an answer, after which this rank waits for its end."""
        with link.makefile("rw", encoding="utf-8") as lines:
            for line in lines:
                self._reply(lines, own, cast("Command", json.loads(line)))

    def _reply(self, lines: TextIO, own: Callable[[Command], Answer], command: Command) -> None:
        try:
            answer = own(command)
        except Exception as error:  # rank 0 tells the server
            text = str(error)
            answer = {
                "error": text if text.startswith("rank ") else f"rank {self.rank}: {type(error).__name__}: {text}"
            }
        lines.write(json.dumps(answer) + "\n")
        lines.flush()

    def _answer(self, rank: int, link: socket.socket, command: Command, deadline: float) -> Answer:
        received = b""
        while not received.endswith(b"\n"):
            ready, _, _ = select.select([link], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise RankError(
                    f"rank {rank} gave no answer to {command['op']} within {self.options.deadline_s:g} s; the other ranks wait "
                    "for it"
                )
            if not (piece := os.read(link.fileno(), 65536)):
                raise RankError(f"rank {rank} has ended")
            received += piece
        return cast("Answer", json.loads(received))
