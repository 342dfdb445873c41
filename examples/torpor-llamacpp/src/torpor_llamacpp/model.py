"""llama.cpp: its own server object, called directly in this process.

It insists on a listener of its own (loopback, a port of its choice); a random key that nobody keeps shuts that one.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Protocol

import xllamacpp

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

__all__ = ["Model"]

_BAD_REQUEST, _UNAVAILABLE = 400, 503


class Server(Protocol):
    """What is used of llama.cpp's server object."""

    def handle_chat_completions(
        self, body: dict[str, object], on_chunk: Callable[[dict[str, object]], bool] | None = None
    ) -> dict[str, object]:
        """Answer a chat request; with `on_chunk` in pieces, until it returns True."""


class Model:
    """A GGUF file's weights and a KV cache: loaded, or not.

    Args:
        args: the command line, as `torpor_llamacpp.serve` and `add_options` read it.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.served_name: str = args.served_name
        self._params = xllamacpp.CommonParams()
        self._params.model.path = args.model
        self._params.n_ctx = args.context_tokens
        self._params.n_parallel = args.parallel
        if args.threads:
            self._params.cpuparams.n_threads = args.threads
        self._server: Server | None = None

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        """Add llama.cpp's options to the server's."""
        parser.add_argument("--context-tokens", type=int, default=4096)
        parser.add_argument("--threads", type=int, default=0)

    def load(self) -> None:
        """Read the weights and make a KV cache, unless they are there.

        Raises:
            RuntimeError: the file is no model that llama.cpp can read.
        """
        if self._server is None:
            self._params.api_keys = [secrets.token_urlsafe(32)]  # another one in each replica
            self._server = xllamacpp.Server(self._params)

    def unload(self) -> None:
        """Give all of the model's memory back."""
        self._server = None

    def renew(self) -> None:
        """Do nothing: every wake makes a new server object, and llama.cpp seeds each request's sampler from the kernel.

        That is its default seed, `LLAMA_DEFAULT_SEED` (`llama-sampler.cpp`, `get_rng_seed`); ids come from there, too.
        """

    def chat(self, body: dict[str, object], on_answer: Callable[[dict[str, object]], bool]) -> None:
        """Answer one chat request; blocks.

        Args:
            body: the request, in OpenAI's form.
            on_answer: gets the answer, or every chunk of a streamed one, or an error; it returns whether to stop.
        """
        server = self._server
        if server is None:  # the guard lets nobody come here asleep
            on_answer({"error": {"code": _UNAVAILABLE, "message": "the model is not loaded"}})
            return

        def on_named(answer: dict[str, object]) -> bool:
            """llama.cpp names the file; clients know the served name."""
            return on_answer(answer | ({"model": self.served_name} if "model" in answer else {}))

        try:
            if body.get("stream") is True:
                server.handle_chat_completions(body, on_named)
            else:
                on_named(server.handle_chat_completions(body))
        except (ValueError, RuntimeError) as error:  # what llama.cpp refuses comes as an exception or as an answer
            on_answer({"error": {"code": _BAD_REQUEST, "message": str(error), "type": "invalid_request_error"}})
