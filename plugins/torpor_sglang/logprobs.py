"""SGLang's log probabilities, by its own route: `/v1/completions` refuses them for a prompt in its log and gives them all the same.

Fields and answer as in `srt/managers/io_struct.py` (`GenerateReqInput`) and `tokenizer_manager.py` of 0.5.6.post2 to 0.5.23.
`logprob_start_len=0` has the whole prompt computed, whatever is in the prefix cache. With a draft model the answer has
`spec_accept_length`, the tokens for each step of the model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from torpor.engine_plugins import TOP_CHOICES, GeneratedToken, TokenLogprobs, finite_or_nan, read_logprobs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import httpx

    Choice = Sequence[object]

__all__ = ["ask"]


def ask(client: httpx.Client, *, prompt: str, tokens: int, adapter: str | None) -> TokenLogprobs:
    """Ask `/generate`.

    Args:
        client: bound to the engine, with the lifecycle key.
        prompt: plain text.
        tokens: length of the answer.
        adapter: the adapter's name; None asks the model itself.

    Raises:
        NotImplementedError: SGLang refuses to give any, as it is configured.
        EngineRequestError: it gave any other answer.
    """
    body: dict[str, object] = {
        "text": prompt,
        "sampling_params": {"temperature": 0.0, "max_new_tokens": tokens, "ignore_eos": True},
        "return_logprob": True,
        "logprob_start_len": 0,
        "top_logprobs_num": TOP_CHOICES,
    }
    if adapter is not None:
        body["lora_path"] = adapter
    return read_logprobs(_read, client.post("/generate", json=body), engine="SGLang")


def _read(answer: object) -> TokenLogprobs:
    facts = cast("Mapping[str, object]", cast("Mapping[str, object]", answer)["meta_info"])
    of_prompt = cast("Sequence[Choice]", facts["input_token_logprobs"])
    chosen = cast("Sequence[Choice]", facts["output_token_logprobs"])
    tops = cast("Sequence[Sequence[Choice]]", facts["output_top_logprobs"])
    acceptance = facts.get("spec_accept_length")
    return TokenLogprobs(
        tuple(finite_or_nan(token[0]) for token in of_prompt[1:]),
        tuple(
            GeneratedToken(str(token[1]), tuple(sorted((finite_or_nan(choice[0]) for choice in top), reverse=True)))
            for token, top in zip(chosen, tops, strict=True)
        ),
        None if acceptance is None else finite_or_nan(acceptance),
    )
