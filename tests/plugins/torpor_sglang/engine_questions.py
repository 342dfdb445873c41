"""Answers questions about one real SGLang: a line of JSON in, a line of JSON out.

Run by an engine's Python, with the version in question first on its path. Nothing of SGLang's is replaced; the patches are
the launcher's own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import sys
from importlib import metadata
from typing import Any


def parser() -> argparse.ArgumentParser:
    """Return SGLang's own argument parser."""
    from sglang.srt.server_args import ServerArgs

    made = argparse.ArgumentParser()
    ServerArgs.add_cli_args(made)
    return made


def ask_version(_: dict[str, Any]) -> object:
    """Give the version that is really imported."""
    import sglang

    return {"distribution": metadata.version("sglang"), "file": sglang.__file__}


def ask_options(_: dict[str, Any]) -> object:
    """Give every option's spellings."""
    return [list(action.option_strings) for action in parser()._actions]


def ask_parse(question: dict[str, Any]) -> object:
    """Parse a command line; give the values as text, or the parser's complaint."""
    complaint = io.StringIO()
    with contextlib.redirect_stderr(complaint):
        try:
            parsed = parser().parse_args(question["argv"])
        except SystemExit:
            return {"error": complaint.getvalue()}
    return {"values": {name: str(value) for name, value in vars(parsed).items()}}


def ask_checked(question: dict[str, Any]) -> object:
    """Let the launcher judge a command line as SGLang has parsed it."""
    from sglang.srt.server_args import prepare_server_args

    from torpor import ConfigurationError
    from torpor_sglang.reserved import check_parsed_args

    try:
        check_parsed_args(metadata.version("sglang"), prepare_server_args(question["argv"]))
    except ConfigurationError as error:
        return {"refused": str(error)}
    return {}


def ask_routes(_: dict[str, Any]) -> object:
    """Give the paths of the real application, those of included routers too."""
    from sglang.srt.entrypoints import http_server

    return sorted(set(paths(http_server.app.routes)))


def paths(routes: list[Any]) -> list[str]:
    """Flatten a route table."""
    found: list[str] = []
    for route in routes:
        included = getattr(route, "original_router", None)  # how newer FastAPI keeps an included router
        found += paths(included.routes) if included is not None else [route.path]
    return found


def ask_guarded(question: dict[str, Any]) -> object:
    """Put the guard before the real application, then add layers as SGLang's launch does, then send requests."""
    from sglang.srt.entrypoints import http_server

    from torpor.guard import BootDocument, GuardRules
    from torpor_sglang.patches.guard import install_guard

    listed = {name: tuple(found) for name, found in question["rules"].items()}
    rules = GuardRules(public=listed["public"], keyed=listed["keyed"], sleep=listed["sleep"], wake=listed["wake"])
    install_guard(http_server.app, BootDocument(key=question["key"], boot_id="0123456789abcdef", rules=rules))
    http_server.app.add_middleware(KeyLayer)
    return [asyncio.run(answer(http_server.app, *request)) for request in question["requests"]]


class KeyLayer:
    """A layer as SGLang's own key check is: it answers 401 before any route sees the request."""

    def __init__(self, app: object) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer 401."""
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 401, "headers": []})
            await send({"type": "http.response.body", "body": b""})


async def answer(app: Any, path: str, key: str) -> int:
    """Send one GET to an ASGI application; return the status."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"localhost"), *([(b"torpor-key", key.encode())] if key else [])],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000),
    }
    seen: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            seen.append(message["status"])

    await app(scope, receive, send)
    return seen[0]


def main() -> None:
    """Answer until the input ends; whatever SGLang prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from torpor_sglang.patches import apply_patches

    os.environ["SGLANG_USE_CPU_ENGINE"] = "1"
    apply_patches(os.environ)
    for line in sys.stdin:
        question = json.loads(line)
        print(json.dumps(globals()[f"ask_{question['ask']}"](question)), file=answers, flush=True)


if __name__ == "__main__":
    main()
