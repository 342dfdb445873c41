"""`python -m torpor_transformers.serve --model PATH --served-name NAME --port PORT`: the model behind Torpor's guard.

It serves chat completions in OpenAI's format, whole or streamed, to everybody, and `/sleep` and `/wake` to Torpor only: the
guard enforces that. The model is in `torpor_transformers.model`; its methods may block.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeAlias

import uvicorn
from torpor.guard import Guard, read_boot
from torpor.launcher import apply_patches, limit_uvicorn, snapshot_patches

from torpor_transformers.model import Model

if TYPE_CHECKING:
    from collections.abc import Sequence

Message: TypeAlias = MutableMapping[str, object]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

_OK, _BAD_REQUEST, _NOT_FOUND, _ERROR = 200, 400, 404, 500


class App:
    """The ASGI application.

    Args:
        model: answers the requests.
        parallel: requests that it answers at once; more requests wait.
    """

    def __init__(self, model: Model, parallel: int) -> None:
        self._model = model
        self._pool = ThreadPoolExecutor(parallel, thread_name_prefix="model")

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        match (scope["method"], scope["path"]):
            case ("POST", "/v1/chat/completions"):
                await self._chat(receive, send)
            case ("GET", "/v1/models"):
                model = {"id": self._model.served_name, "object": "model"}
                await _answer(send, _OK, {"object": "list", "data": [model]})
            case ("POST", "/sleep"):
                await self._change(self._model.unload, send)
            case ("POST", "/wake"):
                await self._change(self._model.load, send)
            case _:
                await _answer(send, _NOT_FOUND, {"error": {"message": "no such route"}})

    async def _change(self, change: Callable[[], None], send: Send) -> None:
        """Load or unload in a thread, because it takes long and would block the event loop."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._pool, change)
        except (OSError, RuntimeError) as error:
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
            try:
                self._model.chat(body, on_answer)
            finally:
                loop.call_soon_threadsafe(answers.put_nowait, None)

        working = loop.run_in_executor(self._pool, work)
        watching = asyncio.create_task(_note_disconnect(receive, gone))
        try:
            await _send_all(answers, send, stream=body.get("stream") is True)
        finally:
            gone.set()  # nobody reads the answer any more, so the model stops at the next token
            watching.cancel()
            await working


async def _send_all(answers: asyncio.Queue[dict[str, object] | None], send: Send, *, stream: bool) -> None:
    first = await answers.get()
    if first is None or "error" in first or not stream:
        await _answer(send, _status(first), first or {"error": {"message": "the model failed; see the server's log"}})
        return
    await send(_start(_OK, b"text/event-stream"))
    answer: dict[str, object] | None = first
    while answer is not None:
        event = f"data: {json.dumps(answer)}\n\n"
        await send({"type": "http.response.body", "body": event.encode(), "more_body": True})
        answer = await answers.get()
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})


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
    """Serve until SIGTERM and return the exit code."""
    boot = read_boot()  # first, so that the pipe is closed before anything starts
    if boot is None and os.environ.get("TORPOR_UNGUARDED") != "1":
        print("no boot document (TORPOR_BOOT_FD): Torpor has to start this server", file=sys.stderr)
        return 2
    apply_patches(os.environ, snapshot_patches())  # every engine in Python needs these to be captured
    parser = argparse.ArgumentParser(
        prog="python -m torpor_transformers.serve",
        allow_abbrev=False,
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--served-name", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--parallel", type=int, default=4)
    Model.add_options(parser)
    args = parser.parse_args(argv)
    model = Model(args)
    model.load()
    app = App(model, args.parallel)
    guarded: App | Guard = app
    if boot is not None:
        guarded = Guard(app, boot.rules, key=boot.key, replica_id=boot.replica_id, on_wake=model.renew)
    limit_uvicorn()  # limits size and time of request heads: uvicorn's own parsers have few limits
    uvicorn.run(guarded, host=args.host, port=args.port, lifespan="off", ws="none", log_level="warning")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
