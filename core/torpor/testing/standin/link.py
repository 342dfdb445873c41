"""The server's end of the socket to the scheduler."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

    from torpor.testing.standin.commands import Answer, Command

__all__ = ["SchedulerGoneError", "SchedulerLink"]

_LONGEST_ANSWER = 2**24


class SchedulerGoneError(Exception):
    """The scheduler's process has ended."""


class SchedulerLink:
    """Asks the scheduler, one command at a time.

    Args:
        reader: the socket's reader.
        writer: the socket's writer.

    Attributes:
        gone: set once the scheduler has ended.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.gone = asyncio.Event()
        self._writer = writer
        self._lock = asyncio.Lock()
        self._answer: asyncio.Future[Answer] | None = None  # the answer that `ask` waits for
        self._listener = asyncio.create_task(self._listen(reader))

    @classmethod
    async def open(cls, link: socket.socket) -> SchedulerLink:
        """Open a link on this socket, in the running loop."""
        return cls(*await asyncio.open_unix_connection(sock=link, limit=_LONGEST_ANSWER))

    async def ask(self, command: Command) -> Answer:
        """Send a command once the earlier ones are answered, and wait for its answer.

        Raises:
            SchedulerGoneError: the scheduler ended before it answered.
        """
        async with self._lock:
            if self.gone.is_set():
                raise SchedulerGoneError
            self._answer = asyncio.get_running_loop().create_future()
            self._writer.write(json.dumps(command).encode() + b"\n")
            return await self._answer

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        # One listener notices the scheduler's end even if no command is waiting.
        with contextlib.suppress(ConnectionError):
            async for line in reader:
                if self._answer is not None:
                    self._answer.set_result(json.loads(line))
                    self._answer = None
        self.gone.set()
        if self._answer is not None:
            self._answer.set_exception(SchedulerGoneError())
