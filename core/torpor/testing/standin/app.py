"""The stand-in's HTTP application, common to both dialects: chats, models, faults, the journal."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, NoReturn, TypeAlias

from torpor.tasks.routes import ROUTES
from torpor.testing.faults import CRASH_WORD, EXIT_CODE, FLOOD_BYTES, Fault, happens
from torpor.testing.standin.chat import Chat
from torpor.testing.standin.drafting import Drafting
from torpor.testing.standin.exchange import Exchange
from torpor.testing.standin.link import SchedulerGoneError, SchedulerLink
from torpor.testing.standin.logprobs import prompt_tokens
from torpor.testing.standin.looking import media_of
from torpor.testing.standin.tasks import TaskAnswers

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Mapping

    from torpor.tasks.routes import Task
    from torpor.testing.standin.commands import Answer, Command
    from torpor.testing.standin.exchange import Receive, Scope, Send
    from torpor.testing.standin.scheduler import Scheduler

__all__ = ["KERNELS_VARIABLE", "Routes", "StandInApp", "StandInOptions", "hang"]

KERNELS_VARIABLE = "TRITON_CACHE_DIR"
"""The stand-in's only kernel cache, for the fault that compiles."""

Routes: TypeAlias = dict[str, tuple[str, Callable[[Exchange], Awaitable[None]]]]
"""Path to the methods and the handler."""

_DEFAULT_TOKENS = 128
_OK, _BAD_REQUEST, _NOT_FOUND, _WRONG_METHOD, _ERROR, _UNAVAILABLE = 200, 400, 404, 405, 500, 503


@dataclass(frozen=True, kw_only=True)
class StandInOptions:
    """How the stand-in behaves.

    Attributes:
        served_name: the model's name in answers.
        adapters: further names that it answers to.
        fault: the fault to show, if any.
        fault_s: seconds, for faults that need a time.
        fault_once: for faults at a wake, see `torpor.testing.faults.happens`.
        token_s: seconds per token of an answer; requests stay in flight that long.
        drafts: tokens that a draft guesses for each step; 0 for none.
        task: what it serves; `chat` is always served as well.
        journal: file for one JSON line per request that reaches the engine; empty for none.
    """

    served_name: str = "standin"
    adapters: tuple[str, ...] = ()
    fault: Fault | None = None
    fault_s: float = 1.0
    fault_once: str = ""
    token_s: float = 0.0
    drafts: int = 0
    task: Task = "chat"
    journal: str = ""


class AdapterGoneError(Exception):
    """The scheduler has no such adapter any more."""


class StandInApp(ABC):
    """The ASGI application; each dialect has a subclass.

    Args:
        options: how it behaves.
        link: the socket to the scheduler.
    """

    scheduler: ClassVar[type[Scheduler]]
    """The scheduler, which the first child process runs."""
    task_paths: ClassVar[Mapping[Task, str]] = MappingProxyType({})
    """The tasks' paths that differ from `torpor.tasks.routes.ROUTES`."""
    bare_list: ClassVar[bool] = True
    """Whether a ranking is a list, as SGLang's; vLLM's is in an object."""

    def __init__(self, options: StandInOptions, link: socket.socket) -> None:
        self._options = options
        self._socket = link
        # The guard renews the process's generator at each wake. With the fault, the engine uses its own generator instead.
        self._ids = random.Random() if options.fault is Fault.REPEATS_IDS else random  # noqa: S311
        self._captured_ids: tuple[object, ...] | None = None
        self._link: SchedulerLink | None = None
        self._running = 0
        self.draft = Drafting(options.drafts)
        self._blind = False
        self._idle, self._unpaused = asyncio.Event(), asyncio.Event()
        self._idle.set()
        self._unpaused.set()
        self._routes = {
            "/v1/chat/completions": ("POST", self._chat),
            "/v1/models": ("GET", self._models),
            **self._dialect(),
            **self._of_task(),
        }

    def _of_task(self) -> Routes:
        """The route of a task other than `chat`."""
        if self._options.task == "chat":
            return {}
        answers = TaskAnswers(
            self._options.task,
            words=self._words_for,
            refuse=self._refuse,
            knows=lambda model: self._knows(model or self._options.served_name),
            bare_list=self.bare_list,
        )
        return {self.task_paths.get(self._options.task, ROUTES[self._options.task].path): ("POST", answers.answer)}

    async def _words_for(self, prompt: str, tokens: int, greedy: bool, model: object = None) -> list[str]:
        if self._options.fault is Fault.ERROR_IN_WARMUP:
            raise SchedulerGoneError
        await self._until_unpaused()
        with self._counted():
            answer = await self._generated(prompt, tokens, greedy=greedy, model=model)
            await self._next_token()
            return answer["words"]

    @classmethod
    @abstractmethod
    def prepare_process(cls, children: tuple[int, ...]) -> None:
        """Prepare the server's process for the failure of a child."""

    @abstractmethod
    def _dialect(self) -> Routes:
        """The routes that only this dialect has, or that differ in the other one."""

    @abstractmethod
    async def _refuse(self, exchange: Exchange, status: int, message: str) -> None:
        """Answer with an error in this engine's format."""

    @abstractmethod
    async def _scheduler_is_gone(self, exchange: Exchange) -> None:
        """Answer a request that needed the scheduler, which has ended."""

    def _knows(self, model: object) -> bool:
        """Whether the engine answers a chat with this model name; by default it asks only if it has adapters."""
        adapters = self._options.adapters
        return not adapters or model == self._options.served_name or model in adapters

    async def _generated(self, prompt: str, tokens: int, *, greedy: bool, model: object) -> Answer:
        """Words of the scheduler.

        Raises:
            AdapterGoneError: it has lost the adapter.
        """
        adapter = model if isinstance(model, str) and model in self._options.adapters else ""
        answer = await self._ask(
            {"op": "generate", "prompt": prompt, "tokens": tokens, "greedy": greedy, "adapter": adapter}
        )
        if "error" in answer:
            raise AdapterGoneError(answer["error"])
        return answer

    async def _next_token(self) -> bool:
        """Wait for the time of one token; return False if the request is aborted meanwhile."""
        await asyncio.sleep(self._options.token_s)
        return True

    async def _started(self, link: SchedulerLink) -> None:
        """Store the link to the scheduler, once the server's loop runs."""
        self._link = link

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; refuse everything but HTTP."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1000})
        elif scope["type"] == "http":
            await self._answer(Exchange(scope, receive, send))

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        await self._started(await SchedulerLink.open(self._socket))
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def _answer(self, exchange: Exchange) -> None:
        self._note(exchange)
        methods, handler = self._routes.get(exchange.path, ("", None))
        if handler is None:
            await exchange.answer(_NOT_FOUND, {"detail": "Not Found"})
        elif exchange.method not in methods.split():
            await exchange.answer(_WRONG_METHOD, {"detail": "Method Not Allowed"})
        elif self._options.fault is Fault.NEVER_READY:
            await exchange.answer(_UNAVAILABLE, {"detail": "Server is starting"})
        else:
            try:
                await handler(exchange)
            except SchedulerGoneError:
                await self._scheduler_is_gone(exchange)
            except AdapterGoneError as error:
                await self._refuse(exchange, _ERROR, str(error))

    async def _ask(self, command: Command) -> Answer:
        assert self._link is not None, "the server answers only once it has started"
        return await self._link.ask(command)

    async def _chat(self, exchange: Exchange) -> None:
        body = await exchange.json()
        messages = body.get("messages") if isinstance(body, dict) else None
        if not isinstance(body, dict) or not isinstance(messages, list) or not messages:
            await self._refuse(exchange, _BAD_REQUEST, "messages: a non-empty list is required")
            return
        model = body.get("model") or self._options.served_name
        if not self._knows(model):
            there = f"; there are: {', '.join((self._options.served_name, *self._options.adapters))}"
            known = there if self._options.adapters else ""
            await self._refuse(exchange, _NOT_FOUND, f"The model `{model}` does not exist{known}.")
            return
        media = media_of(messages)
        if media is None:
            await self._refuse(exchange, _BAD_REQUEST, "media: PNG pictures and WAV sounds in data: URLs are taken")
            return
        prompt = json.dumps(messages) + ("blind" if media and self._blind else "")
        await self._chat_fault(prompt)
        if self._options.fault is Fault.COMPILES_AT_FIRST_SCHEMA and "response_format" in body:
            _compile()
        if self._options.fault is Fault.ERROR_IN_WARMUP:
            await self._refuse(exchange, _ERROR, "CUDA error: an illegal memory access")
            return
        await self._until_unpaused()  # a paused request has not reached the scheduler, so it does not count as running
        with self._counted():
            tokens = max(1, _as_int(body.get("max_tokens"), _DEFAULT_TOKENS))
            answer = await self._generated(prompt, tokens, greedy=body.get("temperature") == 0, model=model)
            chat = Chat(
                answer_id=f"chatcmpl-{self._ids.getrandbits(64):016x}",
                model=str(model),
                words=answer["words"],
                prompt_tokens=len(prompt.split()),
                next_token=self._next_token,
            )
            async with exchange.watched():
                await (chat.stream(exchange) if body.get("stream") is True else chat.whole(exchange))

    async def _words_of(self, prompt: str, tokens: int, model: object) -> tuple[list[str], int]:
        """A word for each token of a prompt and of its greedy answer, and the prompt's length in tokens."""
        await self._until_unpaused()
        length = prompt_tokens(prompt)
        with self._counted():
            answer = await self._generated(prompt, length + tokens, greedy=True, model=model)
            return answer["words"], length

    async def _until_unpaused(self) -> None:
        while not self._unpaused.is_set():  # the engine may be paused again before this task runs
            await self._unpaused.wait()

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        self._running += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._running -= 1
            if self._running == 0:
                self._idle.set()

    async def _chat_fault(self, prompt: str) -> None:
        match self._options.fault:
            case Fault.EXIT_IN_WARMUP:
                self._exit()
            case Fault.HANG_IN_WARMUP:
                await hang()
            case Fault.LOG_FLOOD:
                _flood()
            case Fault.EXIT_WHILE_SERVING if CRASH_WORD in prompt:
                self._exit()

    async def _sleep_fault(self, exchange: Exchange, status: int, message: str) -> bool:
        """Show a fault instead of the sleep; return whether that answered the request."""
        match self._options.fault:
            case Fault.REFUSE_SLEEP:
                await self._refuse(exchange, status, message)
                return True
            case Fault.HANG_IN_SLEEP:
                await hang()
        return False

    def _fell_asleep(self) -> None:
        if self._options.fault is Fault.REPEATS_IDS:
            self._captured_ids = self._captured_ids or self._ids.getstate()
        if self._options.fault is Fault.EXIT_WHILE_ASLEEP:
            asyncio.get_running_loop().call_later(self._options.fault_s, self._exit)

    async def _wake_fault(self, exchange: Exchange, status: int, message: str) -> bool:
        """Show a fault instead of the wake; return whether that answered the request."""
        if self._options.fault is Fault.SIGHT_LOST_AFTER_WAKE and happens(self._options.fault_once):
            self._blind = True
        if self._options.fault is Fault.DRAFT_LOST_AFTER_WAKE and happens(self._options.fault_once):
            self.draft.lose()
        if self._captured_ids is not None:
            self._ids.setstate(self._captured_ids)
        faults = (Fault.EXIT_AT_WAKE, Fault.REFUSE_WAKE, Fault.HANG_IN_WAKE)
        if self._options.fault not in faults or not happens(self._options.fault_once):
            return False
        match self._options.fault:
            case Fault.EXIT_AT_WAKE:
                self._exit()
            case Fault.HANG_IN_WAKE:
                await hang()
        await self._refuse(exchange, status, message)
        return True

    async def _models(self, exchange: Exchange) -> None:
        name = self._options.served_name
        cards = [{"id": name, "object": "model", "root": name}]
        cards += [{"id": one, "object": "model", "root": one, "parent": name} for one in self._options.adapters]
        await exchange.answer(_OK, {"object": "list", "data": cards})

    def _note(self, exchange: Exchange) -> None:
        if self._options.journal:
            line = json.dumps({"at": time.time(), "method": exchange.method, "path": exchange.path})
            with Path(self._options.journal).open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def _exit(self) -> NoReturn:
        """End the server process alone, as a crash would; its children stay."""
        print(f"standin: fault {self._options.fault}: exiting with code {EXIT_CODE}", flush=True)
        os._exit(EXIT_CODE)


def _compile() -> None:
    """Compile a kernel, as the variable of the kernel cache says; a kernel that is there already is not compiled again."""
    kernel = Path(os.environ[KERNELS_VARIABLE]) / "json-schema" / "kernel.so"
    if not kernel.exists():
        kernel.parent.mkdir(parents=True, exist_ok=True)
        kernel.write_bytes(b"compiled")
        print("standin: JIT compilation during inference: json_schema. This causes a latency spike", flush=True)


async def hang() -> None:
    """Never return."""
    await asyncio.Event().wait()


def _flood() -> None:
    """Print as much as an engine with log level debug; the last tenth has no line end."""
    line = b"standin: " + b"x" * 990 + b"\n"
    for _ in range(FLOOD_BYTES * 9 // 10 // len(line)):
        sys.stdout.buffer.write(line)
    for _ in range(FLOOD_BYTES // 10 // 1000):
        sys.stdout.buffer.write(b"y" * 1000)
    sys.stdout.buffer.write(b"\nstandin: the flood is over\n")
    sys.stdout.buffer.flush()


def _as_int(value: object, default: int) -> int:
    return value if isinstance(value, int) else default
