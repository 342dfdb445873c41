"""The stand-in's HTTP application: SGLang's dialect, as far as Torpor and its tests speak it.

Routes and their behaviour follow SGLang 0.5.6.post2, 0.5.16 and 0.5.23 (`srt/entrypoints/http_server.py`): the release
and the resume need a JSON body and take GET and POST; chats block while generation is paused; a health probe generates
a token, and thereby ends an engine that sleeps (measured on 0.5.16 and later).
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeAlias, cast

from torpor.testing.faults import CRASH_WORD, EXIT_CODE, FLOOD_BYTES, Fault

if TYPE_CHECKING:
    import socket

    from torpor.testing.scheduler import Answer, Command

__all__ = ["StandInApp", "StandInOptions"]

Scope: TypeAlias = MutableMapping[str, object]
Message: TypeAlias = MutableMapping[str, object]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

MEMORY_TAGS = ("kv_cache", "weights", "cuda_graph")
_DEFAULT_TOKENS = 128
_OK, _BAD_REQUEST, _NOT_FOUND, _WRONG_METHOD, _ERROR, _UNAVAILABLE = 200, 400, 404, 405, 500, 503


@dataclass(frozen=True, kw_only=True)
class StandInOptions:
    """How the stand-in behaves.

    Attributes:
        served_name: the model's name in answers.
        fault: what goes wrong, if anything.
        fault_s: seconds, for the faults that take some.
        token_s: seconds per token of an answer; requests stay in flight that long.
        journal: file that gets a JSON line per request that reached the engine itself; none by default.
    """

    served_name: str = "standin"
    fault: Fault | None = None
    fault_s: float = 1.0
    token_s: float = 0.0
    journal: str = ""


class StandInApp:
    """The ASGI application.

    Args:
        options: how it behaves.
        link: the socket to the scheduler.
    """

    def __init__(self, options: StandInOptions, link: socket.socket) -> None:
        self._options = options
        self._scheduler = _SchedulerLink(link)
        self._running = 0
        self._unpaused = asyncio.Event()
        self._unpaused.set()
        self._routes: dict[str, tuple[str, Callable[[_Request], Awaitable[None]]]] = {
            "/v1/chat/completions": ("POST", self._chat),
            "/v1/models": ("GET", self._models),
            "/model_info": ("GET", self._model_info),
            "/server_info": ("GET", self._server_info),
            "/metrics": ("GET", self._metrics),
            "/health": ("GET", self._health),
            "/health_generate": ("GET", self._health),
            "/flush_cache": ("GET POST", self._flush_cache),
            "/pause_generation": ("POST", self._pause),
            "/continue_generation": ("POST", self._continue),
            "/release_memory_occupation": ("GET POST", self._release),
            "/resume_memory_occupation": ("GET POST", self._resume),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; anything but HTTP is refused."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await receive()
                await send({"type": "websocket.close", "code": 1000})
            return
        request = _Request(scope, receive, send)
        self._note(request)
        methods, handler = self._routes.get(request.path, ("", None))
        if handler is None:
            await request.answer(_NOT_FOUND, {"detail": "Not Found"})
        elif request.method not in methods.split():
            await request.answer(_WRONG_METHOD, {"detail": "Method Not Allowed"})
        elif self._options.fault is Fault.NEVER_READY:
            await request.answer(_UNAVAILABLE, {"detail": "Server is starting"})
        else:
            await handler(request)

    async def _chat(self, request: _Request) -> None:
        body = await request.json()
        messages = body.get("messages") if isinstance(body, dict) else None
        if not isinstance(body, dict) or not isinstance(messages, list) or not messages:
            await request.answer(_BAD_REQUEST, {"object": "error", "message": "messages: a non-empty list is required"})
            return
        prompt = json.dumps(messages)
        await self._chat_fault(prompt)
        if self._options.fault is Fault.ERROR_IN_WARMUP:
            await request.answer(_ERROR, {"object": "error", "message": "CUDA error: an illegal memory access"})
            return
        await self._unpaused.wait()  # a paused request has not reached the scheduler, so it is none that runs
        self._running += 1
        try:
            answer = await self._scheduler.ask(
                op="generate",
                prompt=prompt,
                tokens=max(1, _as_int(body.get("max_tokens"), _DEFAULT_TOKENS)),
                greedy=body.get("temperature") == 0,
            )
            chat = _Chat(
                model=str(body.get("model") or self._options.served_name),
                words=answer["words"],
                prompt_tokens=len(prompt.split()),
                token_s=self._options.token_s,
            )
            await (chat.stream(request) if body.get("stream") is True else chat.whole(request))
        finally:
            self._running -= 1

    async def _chat_fault(self, prompt: str) -> None:
        match self._options.fault:
            case Fault.EXIT_IN_WARMUP:
                self._exit()
            case Fault.HANG_IN_WARMUP:
                await _hang()
            case Fault.LOG_FLOOD:
                _flood()
            case Fault.EXIT_WHILE_SERVING if CRASH_WORD in prompt:
                self._exit()

    async def _models(self, request: _Request) -> None:
        name = self._options.served_name
        await request.answer(_OK, {"object": "list", "data": [{"id": name, "object": "model", "root": name}]})

    async def _model_info(self, request: _Request) -> None:
        await request.answer(_OK, {"model_path": self._options.served_name, "is_generation": True})

    async def _server_info(self, request: _Request) -> None:
        await request.answer(_OK, {"served_model_name": self._options.served_name, "running": self._running})

    async def _metrics(self, request: _Request) -> None:
        await request.answer_text(_OK, f"sglang:num_running_reqs {self._running}\n")

    async def _health(self, request: _Request) -> None:
        await self._unpaused.wait()
        await self._scheduler.ask(op="generate", prompt="health", tokens=1, greedy=True)
        await request.answer_text(_OK, "")

    async def _flush_cache(self, request: _Request) -> None:
        idle = self._running == 0
        await request.answer_text(
            _OK if idle else _BAD_REQUEST, "Cache flushed.\n" if idle else "Requests are running.\n"
        )

    async def _pause(self, request: _Request) -> None:
        self._unpaused.clear()
        await request.answer(_OK, {"status": "ok", "message": "Generation paused successfully."})

    async def _continue(self, request: _Request) -> None:
        self._unpaused.set()
        await request.answer(_OK, {"status": "ok", "message": "Generation continued successfully."})

    async def _release(self, request: _Request) -> None:
        tags = await self._tags(request)
        if tags is None:
            return
        match self._options.fault:
            case Fault.REFUSE_SLEEP:
                await request.answer(_BAD_REQUEST, {"error": {"message": "memory saver is not enabled"}})
                return
            case Fault.HANG_IN_SLEEP:
                await _hang()
        await self._scheduler.ask(op="release", tags=tags, running=self._running)
        if self._options.fault is Fault.EXIT_WHILE_ASLEEP:
            asyncio.get_running_loop().call_later(self._options.fault_s, self._exit)
        await request.answer(_OK, None)

    async def _resume(self, request: _Request) -> None:
        tags = await self._tags(request)
        if tags is None:
            return
        match self._options.fault:
            case Fault.EXIT_AT_WAKE:
                self._exit()
            case Fault.HANG_IN_WAKE:
                await _hang()
        await self._scheduler.ask(op="resume", tags=tags)
        await request.answer(_OK, None)

    async def _tags(self, request: _Request) -> list[str] | None:
        """The tags of a release or resume; None when the request was answered with an error."""
        body = await request.json()
        if not isinstance(body, dict):
            await request.answer(_BAD_REQUEST, {"object": "error", "message": "a JSON body is required"})
            return None
        given = body.get("tags")
        return [str(tag) for tag in given] if isinstance(given, list) and given else list(MEMORY_TAGS)

    def _note(self, request: _Request) -> None:
        if self._options.journal:
            line = json.dumps({"at": time.time(), "method": request.method, "path": request.path})
            with Path(self._options.journal).open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def _exit(self) -> NoReturn:
        """End the server process alone, as a crash would; its children stay."""
        print(f"standin: fault {self._options.fault}: exiting with code {EXIT_CODE}", flush=True)
        os._exit(EXIT_CODE)


class _Request:
    """One HTTP request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method = str(scope["method"])
        self.path = str(scope["path"])
        self._receive = receive
        self._send = send

    async def json(self) -> object:
        """The body as JSON; None when it is none."""
        body = b""
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return None
            body += cast("bytes", message.get("body", b""))
            more = bool(message.get("more_body", False))
        try:
            return cast("object", json.loads(body))
        except ValueError:
            return None

    async def answer(self, status: int, value: object) -> None:
        """Send JSON."""
        await self._whole(status, "application/json", json.dumps(value).encode())

    async def answer_text(self, status: int, text: str) -> None:
        """Send plain text."""
        await self._whole(status, "text/plain; charset=utf-8", text.encode())

    async def begin(self, status: int, content_type: str, *extra: tuple[bytes, bytes]) -> None:
        """Send the status line and headers."""
        headers = [(b"content-type", content_type.encode()), *extra]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def chunk(self, data: bytes, *, more: bool) -> None:
        """Send a piece of the body."""
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def _whole(self, status: int, content_type: str, body: bytes) -> None:
        await self.begin(status, content_type, (b"content-length", str(len(body)).encode()))
        await self.chunk(body, more=False)


@dataclass(frozen=True, kw_only=True)
class _Chat:
    """One chat completion, in either form."""

    model: str
    words: list[str]
    prompt_tokens: int
    token_s: float

    async def whole(self, request: _Request) -> None:
        await asyncio.sleep(self.token_s * len(self.words))
        message = {"role": "assistant", "content": " ".join(self.words)}
        choice = {"index": 0, "message": message, "finish_reason": "length"}
        await request.answer(_OK, {**self._head("chat.completion"), "choices": [choice], "usage": self._usage()})

    async def stream(self, request: _Request) -> None:
        await request.begin(_OK, "text/event-stream")
        await self._event(request, {"role": "assistant", "content": ""}, None)
        for number, word in enumerate(self.words):
            await asyncio.sleep(self.token_s)
            await self._event(request, {"content": word if number == 0 else f" {word}"}, None)
        await self._event(request, {}, "length", usage=self._usage())
        await request.chunk(b"data: [DONE]\n\n", more=False)

    async def _event(self, request: _Request, delta: object, finish: str | None, **extra: object) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        value = {**self._head("chat.completion.chunk"), "choices": [choice], **extra}
        await request.chunk(f"data: {json.dumps(value)}\n\n".encode(), more=True)

    def _head(self, kind: str) -> dict[str, object]:
        return {"id": "standin", "object": kind, "created": int(time.time()), "model": self.model}

    def _usage(self) -> dict[str, int]:
        tokens = len(self.words)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": self.prompt_tokens + tokens,
        }


class _SchedulerLink:
    """Asks the scheduler, one command at a time."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._lock = asyncio.Lock()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(
        self,
        *,
        op: str,
        prompt: str = "",
        tokens: int = 0,
        greedy: bool = True,
        running: int = 0,
        tags: list[str] | None = None,
    ) -> Answer:
        command: Command = {
            "op": op,
            "prompt": prompt,
            "tokens": tokens,
            "greedy": greedy,
            "running": running,
            "tags": tags or [],
        }
        async with self._lock:
            reader, writer = self._streams or await asyncio.open_unix_connection(sock=self._link, limit=2**24)
            self._streams = reader, writer
            writer.write(json.dumps(command).encode() + b"\n")
            await writer.drain()
            line = await reader.readline()
        if not line:
            await _hang()  # the scheduler is gone; whoever watches the tree ends this process too
        return cast("Answer", json.loads(line))


async def _hang() -> None:
    await asyncio.Event().wait()


def _flood() -> None:
    """Print as an engine does whose log level was left on debug; the last tenth has no line end."""
    line = b"standin: " + b"x" * 990 + b"\n"
    for _ in range(FLOOD_BYTES * 9 // 10 // len(line)):
        sys.stdout.buffer.write(line)
    for _ in range(FLOOD_BYTES // 10 // 1000):
        sys.stdout.buffer.write(b"y" * 1000)
    sys.stdout.buffer.write(b"\nstandin: the flood is over\n")
    sys.stdout.buffer.flush()


def _as_int(value: object, default: int) -> int:
    return value if isinstance(value, int) else default
