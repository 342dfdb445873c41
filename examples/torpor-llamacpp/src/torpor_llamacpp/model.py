"""Runs llama.cpp's server object in this process and calls it directly.

The object always opens its own listener on loopback, at a random port. A random key that is stored nowhere else closes it.
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
    """The part of llama.cpp's server object that this module uses."""

    def handle_chat_completions(
        self, body: dict[str, object], on_chunk: Callable[[dict[str, object]], bool] | None = None
    ) -> dict[str, object]:
        """Answer a chat request; with `on_chunk` in chunks, until it returns True."""


class Model:
    """The weights of a GGUF file and a KV cache, loaded or not.

    Args:
        args: the parsed command line, with the options of `torpor_llamacpp.serve` and `add_options`.
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
        """Read the weights and allocate a KV cache, unless they are loaded.

        Raises:
            RuntimeError: llama.cpp cannot read the file as a model.
        """
        if self._server is None:
            self._params.api_keys = [secrets.token_urlsafe(32)]  # different in each replica
            self._server = xllamacpp.Server(self._params)

    def unload(self) -> None:
        """Free all memory of the model."""
        self._server = None

    def renew(self) -> None:
        """Do nothing: every wake creates a new server object, and llama.cpp seeds each request's sampler from the kernel.

        It does so with its default seed, `LLAMA_DEFAULT_SEED` (`llama-sampler.cpp`, `get_rng_seed`), and for ids, too.
        """

    def chat(self, body: dict[str, object], on_answer: Callable[[dict[str, object]], bool]) -> None:
        """Answer one chat request. This blocks.

        Args:
            body: the request, in OpenAI's format.
            on_answer: called with the answer, with each chunk of a streamed answer, or with an error. If it returns True, the
                method stops.
        """
        server = self._server
        if server is None:  # does not happen: the guard closes this route while asleep
            on_answer({"error": {"code": _UNAVAILABLE, "message": "the model is not loaded"}})
            return

        def on_named(answer: dict[str, object]) -> bool:
            """Replace the file name, which llama.cpp gives, by the served name, which clients know."""
            return on_answer(answer | ({"model": self.served_name} if "model" in answer else {}))

        try:
            if body.get("stream") is True:
                server.handle_chat_completions(body, on_named)
            else:
                on_named(server.handle_chat_completions(body))
        except (
            ValueError,
            RuntimeError,
        ) as error:  # llama.cpp reports a refused request as an exception or as an answer
            on_answer({"error": {"code": _BAD_REQUEST, "message": str(error), "type": "invalid_request_error"}})
