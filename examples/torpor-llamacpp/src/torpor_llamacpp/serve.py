"""`python -m torpor_llamacpp.serve --model FILE.gguf --port PORT`: llama.cpp's chat route behind Torpor's guard.

llama.cpp's server object runs in this process and is called directly. It insists on a listener of its own (loopback, a port
of its choice); a random key that nobody keeps shuts that one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import sys
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol, TypeAlias

import uvicorn
import xllamacpp

from torpor.guard import Guard, read_boot

if TYPE_CHECKING:
    from collections.abc import Sequence

Message: TypeAlias = MutableMapping[str, object]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

_OK, _BAD_REQUEST, _NOT_FOUND, _ERROR, _UNAVAILABLE = 200, 400, 404, 500, 503


class Server(Protocol):
    """What is used of llama.cpp's server object."""

    def handle_chat_completions(
        self, body: dict[str, object], on_chunk: Callable[[dict[str, object]], bool] | None = None
    ) -> dict[str, object]:
        """Answer a chat request; with `on_chunk` in pieces, until it returns True."""


class Llama:
    """The model: loaded, or not.

    Args:
        args: the command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.served_name: str = args.served_name
        self.pool = ThreadPoolExecutor(args.parallel, thread_name_prefix="llama")
        self._params = xllamacpp.CommonParams()
        self._params.model.path = args.model
        self._params.n_ctx = args.context_tokens
        self._params.n_parallel = args.parallel
        self._params.api_keys = [secrets.token_urlsafe(32)]
        if args.threads:
            self._params.cpuparams.n_threads = args.threads
        self._server: Server | None = None

    def load(self) -> None:
        """Read the weights and make a KV cache, unless they are there.

        Raises:
            RuntimeError: the file is no model that llama.cpp can read.
        """
        if self._server is None:
            self._server = xllamacpp.Server(self._params)

    def unload(self) -> None:
        """Give all of the model's memory back."""
        self._server = None

    def chat(self, body: dict[str, object], on_answer: Callable[[dict[str, object]], bool]) -> None:
        """Answer one chat request; blocks.

        Args:
            body: the request, in OpenAI's form.
            on_answer: gets the answer, or every chunk of a streamed one; it returns whether to stop.
        """
        server = self._server
        if server is None:  # the guard lets nobody come here asleep
            on_answer({"error": {"code": _UNAVAILABLE, "message": "the model is not loaded"}})
            return
        try:
            if body.get("stream") is True:
                server.handle_chat_completions(body, on_answer)
            else:
                on_answer(server.handle_chat_completions(body))
        except (ValueError, RuntimeError) as error:  # what llama.cpp refuses comes as an exception or as an answer
            on_answer({"error": {"code": _BAD_REQUEST, "message": str(error), "type": "invalid_request_error"}})


class App:
    """The ASGI application.

    Args:
        llama: the model.
    """

    def __init__(self, llama: Llama) -> None:
        self._llama = llama

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        match (scope["method"], scope["path"]):
            case ("POST", "/v1/chat/completions"):
                await self._chat(receive, send)
            case ("GET", "/v1/models"):
                model = {"id": self._llama.served_name, "object": "model"}
                await _answer(send, _OK, {"object": "list", "data": [model]})
            case ("POST", "/sleep"):
                await self._change(self._llama.unload, send)
            case ("POST", "/wake"):
                await self._change(self._llama.load, send)
            case _:
                await _answer(send, _NOT_FOUND, {"error": {"message": "no such route"}})

    async def _change(self, change: Callable[[], None], send: Send) -> None:
        """Load or unload, outside the event loop: weights take their time."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._llama.pool, change)
        except RuntimeError as error:
            await _answer(send, _ERROR, {"error": {"message": str(error)}})
        else:
            await _answer(send, _OK, {})

    async def _chat(self, receive: Receive, send: Send) -> None:
        body = await _body(receive)
        if body is None:
            await _answer(send, _BAD_REQUEST, {"error": {"message": "the body has to be a JSON object"}})
            return
        answers: asyncio.Queue[dict[str, object] | None] = asyncio.Queue()
        loop, gone = asyncio.get_running_loop(), threading.Event()

        def on_answer(answer: dict[str, object]) -> bool:
            loop.call_soon_threadsafe(answers.put_nowait, answer)
            return gone.is_set()

        def work() -> None:
            self._llama.chat(body, on_answer)
            loop.call_soon_threadsafe(answers.put_nowait, None)

        working = loop.run_in_executor(self._llama.pool, work)
        watching = asyncio.create_task(_note_disconnect(receive, gone))
        try:
            await self._send_all(answers, send, stream=body.get("stream") is True)
        finally:
            gone.set()  # nobody reads any more: let llama.cpp stop at the next token
            watching.cancel()
            await working

    async def _send_all(self, answers: asyncio.Queue[dict[str, object] | None], send: Send, *, stream: bool) -> None:
        first = await answers.get()
        if first is None or "error" in first or not stream:
            await _answer(send, _status(first), self._named(first or {}))
            return
        await send(_start(_OK, b"text/event-stream"))
        answer: dict[str, object] | None = first
        while answer is not None:
            event = f"data: {json.dumps(self._named(answer))}\n\n"
            await send({"type": "http.response.body", "body": event.encode(), "more_body": True})
            answer = await answers.get()
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})

    def _named(self, answer: dict[str, object]) -> dict[str, object]:
        """llama.cpp names the file; clients know the served name."""
        return answer | ({"model": self._llama.served_name} if "model" in answer else {})


async def _note_disconnect(receive: Receive, gone: threading.Event) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    gone.set()


async def _body(receive: Receive) -> dict[str, object] | None:
    data, more = b"", True
    while more:
        message = await receive()
        chunk = message.get("body", b"")
        data += chunk if isinstance(chunk, bytes) else b""
        more = bool(message.get("more_body"))
    try:
        body = json.loads(data)
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


def _status(answer: dict[str, object] | None) -> int:
    error = (answer or {"error": {}}).get("error")
    if error is None:
        return _OK
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) else _ERROR


def _start(status: int, content_type: bytes) -> Message:
    return {"type": "http.response.start", "status": status, "headers": [(b"content-type", content_type)]}


async def _answer(send: Send, status: int, value: object) -> None:
    await send(_start(status, b"application/json"))
    await send({"type": "http.response.body", "body": json.dumps(value).encode()})


def main(argv: Sequence[str]) -> int:
    """Serve until SIGTERM; the process's exit code."""
    boot = read_boot()  # first of all: the pipe is closed before anything is started
    if boot is None and os.environ.get("TORPOR_UNGUARDED") != "1":
        print("no boot document (TORPOR_BOOT_FD): this server is started by Torpor", file=sys.stderr)
        return 2
    parser = argparse.ArgumentParser(prog="python -m torpor_llamacpp.serve", allow_abbrev=False)
    parser.add_argument("--model", required=True)
    parser.add_argument("--served-name", required=True)
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--context-tokens", type=int, default=4096)
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args(argv)
    llama = Llama(args)
    llama.load()
    app = App(llama)
    guarded = app if boot is None else Guard(app, boot.rules, key=boot.key, boot_id=boot.boot_id)
    uvicorn.run(guarded, host=args.host, port=args.port, lifespan="off", ws="none", log_level="warning")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
