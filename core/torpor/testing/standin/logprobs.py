"""Log probabilities of the stand-in: numbers that follow from the words it answers with, so that other words have other numbers."""

from __future__ import annotations

import hashlib

__all__ = ["as_completion", "as_generated", "prompt_tokens"]

_CHOICES = 2


def prompt_tokens(prompt: str) -> int:
    """How many tokens the stand-in takes a prompt for; never none."""
    return max(2, len(prompt.split()))


def as_generated(words: list[str], length: int, *, acceptance: float | None = None) -> dict[str, object]:
    """The answer of SGLang's `/generate` (`tokenizer_manager.py` of 0.5.23).

    Args:
        words: one for each token of the prompt, then those of the answer.
        length: tokens of the prompt.
        acceptance: tokens for each step of the model; None for an engine without a draft.
    """
    of_prompt, of_answer = words[:length], words[length:]
    entries = [[_logprob(word), _token_id(word), None] for word in of_prompt]
    entries[0][0] = None
    return {
        "text": " ".join(of_answer),
        "meta_info": {
            "prompt_tokens": length,
            "completion_tokens": len(of_answer),
            "input_token_logprobs": entries,
            "output_token_logprobs": [[_logprob(word), _token_id(word), None] for word in of_answer],
            "output_top_logprobs": [[[number, 0, None] for number in _choices(word)] for word in of_answer],
            **({} if acceptance is None else {"spec_accept_length": acceptance}),
        },
    }


def as_completion(words: list[str], length: int, model: str) -> dict[str, object]:
    """The answer of `/v1/completions` with `echo` and `logprobs`; arguments as for `as_generated`, and the model's name."""
    numbers: list[float | None] = [None, *map(_logprob, words[1:])]
    tops = [None, *({f"{word}{rank}": number for rank, number in enumerate(_choices(word))} for word in words[1:])]
    logprobs = {"tokens": words, "token_logprobs": numbers, "top_logprobs": tops}
    usage = {"prompt_tokens": length, "completion_tokens": len(words) - length, "total_tokens": len(words)}
    choice = {"index": 0, "text": " ".join(words), "logprobs": logprobs, "finish_reason": "length"}
    return {"object": "text_completion", "model": model, "choices": [choice], "usage": usage}


def _token_id(word: str) -> int:
    return int.from_bytes(hashlib.sha256(word.encode()).digest()[:2])


def _logprob(word: str) -> float:
    return -_token_id(word) / 10_000


def _choices(word: str) -> list[float]:
    return [_logprob(word) - rank for rank in range(_CHOICES)]
