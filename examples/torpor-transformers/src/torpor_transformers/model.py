"""Runs a causal language model of `transformers` in this process. Asleep, neither weights nor KV cache are in memory.

Checked with transformers 5.19: `generate` with a streamer, stopping criteria that are asked before each token.
"""

from __future__ import annotations

import ctypes
import gc
import json
import threading
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torpor.launcher import TilePermission
from transformers import AutoModelForCausalLM, AutoTokenizer, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

__all__ = ["Model"]

_MOST_TOKENS = 4096
_DEFAULT_TOKENS = 256


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a request asks for.

    Attributes:
        messages: of the chat.
        max_tokens: most tokens of the answer.
        temperature: 0 for a greedy answer.
        top_p: share of the probability that is sampled from.
        seed: of this answer; None for a new one.
        stream: whether the answer comes in chunks.
    """

    messages: list[dict[str, str]]
    max_tokens: int
    temperature: float
    top_p: float
    seed: int | None
    stream: bool


class Model:
    """A model in memory or not.

    Args:
        args: the parsed command line, with the options of `torpor_transformers.serve` and `add_options`.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.served_name: str = args.served_name
        self._folder: str = args.model
        self._device: str = args.device
        if args.threads:
            torch.set_num_threads(args.threads)
        self._tokenizer = AutoTokenizer.from_pretrained(self._folder)
        self._model: torch.nn.Module | None = None
        self._tiles = (
            TilePermission()
        )  # torch chose the CPU's matrix registers, and a restored process may not use them
        self._one_at_a_time = threading.Lock()  # `generate` of one model object is not safe for threads

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        """Add the engine's options to the server's."""
        parser.add_argument("--threads", type=int, default=0)
        parser.add_argument("--device", default="cpu")

    def load(self) -> None:
        """Read the weights, unless they are loaded.

        Raises:
            OSError: the folder holds no model that can be read.
        """
        if self._model is None:
            self._tiles.renew()
            self._model = AutoModelForCausalLM.from_pretrained(self._folder, dtype="auto").to(self._device).eval()

    def unload(self) -> None:
        """Free the weights, and give freed memory back to the system."""
        self._tiles.note()
        self._model = None
        gc.collect()
        if self._device != "cpu":
            torch.cuda.empty_cache()
        ctypes.CDLL("libc.so.6").malloc_trim(0)

    def renew(self) -> None:
        """Nothing to do: each sampled answer without a seed gets a new one from the kernel."""

    def chat(self, body: dict[str, object], on_answer: Callable[[dict[str, object]], bool]) -> None:
        """Answer one chat request. This blocks.

        Args:
            body: the request, in OpenAI's format.
            on_answer: called with the answer, with each chunk of a streamed answer, or with an error. If it returns True, the
                method stops.
        """
        try:
            asked = _asked(body)
            prompt = self._prompt(asked.messages)
        except ValueError as error:
            on_answer({"error": {"code": 400, "message": str(error), "type": "invalid_request_error"}})
            return
        with self._one_at_a_time:
            self._generate(asked, prompt, on_answer)

    def _prompt(self, messages: list[dict[str, str]]) -> torch.Tensor:
        """The chat as tokens, of shape (1, length).

        Raises:
            ValueError: the template refuses the chat.
        """
        try:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # a template is a program of the model's, which raises what it likes
            raise ValueError(f"the model's chat template refuses the messages: {error}") from error
        ids = self._tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        assert isinstance(ids, torch.Tensor)
        return ids.to(self._device)

    def _generate(self, asked: Asked, prompt: torch.Tensor, on_answer: Callable[[dict[str, object]], bool]) -> None:
        model = self._model
        if model is None:  # does not happen: the guard closes this route while asleep
            on_answer({"error": {"code": 503, "message": "the model is not loaded"}})
            return
        writer = _Writer(self, asked, on_answer)
        sampling = (
            {"do_sample": True, "temperature": asked.temperature, "top_p": asked.top_p}
            if asked.temperature
            else {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        )
        if asked.temperature:
            torch.manual_seed(int.from_bytes(uuid.uuid4().bytes[:8]) >> 1 if asked.seed is None else asked.seed)
        with torch.inference_mode():
            model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=asked.max_tokens,
                streamer=writer,
                stopping_criteria=StoppingCriteriaList([_Left(writer)]),
                pad_token_id=self._tokenizer.pad_token_id or self._tokenizer.eos_token_id,
                **sampling,
            )
        writer.finish(prompt.shape[1])

    def text_of(self, tokens: list[int]) -> str:
        """Tokens of an answer as text."""
        text: object = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return str(text)

    @property
    def end_token(self) -> object:
        """The token that ends an answer."""
        return self._tokenizer.eos_token_id


class _Writer(BaseStreamer):  # type: ignore[misc] # transformers has no types
    """Turns tokens into answers in OpenAI's format.

    Attributes:
        left: whether nobody reads the answer any more.
    """

    def __init__(self, model: Model, asked: Asked, on_answer: Callable[[dict[str, object]], bool]) -> None:
        self.left = False
        self._model = model
        self._asked = asked
        self._on_answer = on_answer
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._tokens: list[int] = []
        self._told = ""
        self._prompt_is_next = True

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt first, then each token."""
        if self._prompt_is_next:
            self._prompt_is_next = False
            return
        self._tokens += value.flatten().tolist()
        text = self._model.text_of(self._tokens)
        if self._asked.stream and not text.endswith("\N{REPLACEMENT CHARACTER}"):  # half of a character's bytes
            self._tell(text)

    def end(self) -> None:
        """Nothing to do: `finish` knows the prompt's length."""

    def finish(self, prompt_tokens: int) -> None:
        """Send the end of a streamed answer, or the whole of another one."""
        ended = bool(self._tokens) and self._tokens[-1] == self._model.end_token
        reason = "stop" if ended else "length"
        text, count = self._model.text_of(self._tokens), len(self._tokens)
        usage = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": count,
            "total_tokens": prompt_tokens + count,
        }
        if self._asked.stream:
            self._tell(text)
            self._on_answer(self._answer(delta={}, finish_reason=reason) | {"usage": usage})
        else:
            message = {"role": "assistant", "content": text}
            self._on_answer(self._answer(message=message, finish_reason=reason) | {"usage": usage})

    def _tell(self, text: str) -> None:
        if len(text) > len(self._told):
            delta = {"role": "assistant", "content": text[len(self._told) :]}
            self._told = text
            self.left = self._on_answer(self._answer(delta=delta, finish_reason=None)) or self.left

    def _answer(self, **choice: object) -> dict[str, object]:
        kind = "chat.completion.chunk" if self._asked.stream else "chat.completion"
        head = {"id": self._id, "object": kind, "created": int(time.time()), "model": self._model.served_name}
        return head | {"choices": [{"index": 0, **choice}]}


class _Left(StoppingCriteria):  # type: ignore[misc] # as above
    """Ends an answer that nobody reads any more."""

    def __init__(self, writer: _Writer) -> None:
        self._writer = writer

    def __call__(self, input_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:  # noqa: ARG002 - transformers passes it
        """Whether to stop, for each sequence."""
        return torch.full((input_ids.shape[0],), self._writer.left, dtype=torch.bool, device=input_ids.device)


def _asked(body: dict[str, object]) -> Asked:
    """What a request asks for.

    Raises:
        ValueError: a field has a value that cannot be used; the message names it.
    """
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ValueError("messages has to be a list that is not empty")
    wanted = body.get("max_completion_tokens", body.get("max_tokens"))
    length = _DEFAULT_TOKENS if wanted is None else wanted
    if not isinstance(length, int) or isinstance(length, bool) or not 1 <= length <= _MOST_TOKENS:
        raise ValueError(f"max_tokens is {json.dumps(length)[:50]}; allowed are 1 to {_MOST_TOKENS}")
    seed = body.get("seed")
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63):
        raise ValueError(f"seed is {json.dumps(seed)[:50]}; allowed are whole numbers from 0 on")
    return Asked(
        messages=[_message(message) for message in messages],
        max_tokens=length,
        temperature=_number(body, "temperature", highest=2.0),
        top_p=_number(body, "top_p", highest=1.0),
        seed=seed,
        stream=body.get("stream") is True,
    )


def _message(message: object) -> dict[str, str]:
    if isinstance(message, dict):
        role, content = message.get("role"), message.get("content")
        if isinstance(role, str) and isinstance(content, str):
            return {"role": role, "content": content}
    raise ValueError("each of messages has a role and a content, both text")


def _number(body: dict[str, object], name: str, *, highest: float) -> float:
    value = body.get(name)
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= highest:
        raise ValueError(f"{name} is {json.dumps(value)[:50]}; allowed are 0 to {highest:g}")
    return float(value)
