"""Pictures and sounds for models that see or hear: which the model takes, warm-up requests with them, a canary question for each.

What a model takes stands in its `config.json`: `vision_config`, `audio_config`, or the id of the token that stands for one. It is
read where the model's folder is known: `Model.path`, or the hub's cache that HF_HUB_CACHE names for this process. Otherwise the
engine's option `media` says so. All requests hold their media as data: URLs, which pass every limit of `media_domains`.
"""

from __future__ import annotations

import base64
import json
import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from torpor.engine_plugins.features import MEDIA
from torpor.errors import ConfigurationError, EngineRequestError
from torpor.tasks.picture import generated_picture
from torpor.tasks.sound import generated_sound
from torpor.telemetry.events import log
from torpor.telemetry.progress import tell
from torpor.values.adapters import HUB_CACHE_VARIABLE
from torpor.values.canary_answers import CanaryAnswer, CanaryQuestion
from torpor.values.finite import is_finite
from torpor.values.given_files import read_given
from torpor.values.model_source import hub_snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import httpx

    from torpor.deployment import Deployment, Model
    from torpor.engine_plugins.features import Medium

__all__ = ["media_question", "media_questions", "media_requests", "model_media", "warm_up_media"]

PATH = "/v1/chat/completions"
_SIGNS: dict[Medium, tuple[str, ...]] = {
    "image": ("vision_config", "vision_tower", "mm_vision_tower", "image_token_id", "image_token_index", "visual"),
    "audio": ("audio_config", "audio_token_id", "audio_token_index"),
}
"""Keys of a model's configuration, in the names of transformers 4.57 to 5.23."""
_PARTS = ("thinker_config",)  # of models that also speak
_CONFIG_BYTES = 4 << 20
_SIDES, _CANARY_SIDE = (64, 448), 112
_SECONDS, _CANARY_SECONDS = (1.0, 5.0), 1.0
_TOKENS, _CHOICES, _SHOWN = 8, 5, 300
_OK, _REFUSED = 200, range(400, 500)


class MediaRequest(NamedTuple):
    """One chat with a picture or a sound.

    Attributes:
        medium: what it holds.
        body: the JSON.
    """

    medium: Medium
    body: Mapping[str, object]


def model_media(model: Model) -> tuple[Medium, ...]:
    """What a model takes beside text, by its configuration; empty if that is not on this machine, or cannot be read."""
    folder = model.path
    if folder is None and (cache := os.environ.get(HUB_CACHE_VARIABLE)):
        folder = str(hub_snapshot(cache, model.repo_id or "", model.revision or ""))
    try:
        config = json.loads(read_given(Path(folder or "", "config.json"), "", most=_CONFIG_BYTES)) if folder else {}
    except (ConfigurationError, ValueError, RecursionError):
        config = {}
    given = config if isinstance(config, dict) else {}
    parts = [given, *(part for name in _PARTS if isinstance(part := given.get(name), dict))]
    return tuple(
        medium for medium in MEDIA if any(part.get(sign) is not None for part in parts for sign in _SIGNS[medium])
    )


def media_requests(deployment: Deployment, media: Sequence[Medium]) -> Iterator[MediaRequest]:
    """The requests of the warm-up: a small and a large picture, a short and a long sound."""
    for medium in media:
        for size in _SIDES if medium == "image" else _SECONDS:
            yield MediaRequest(medium, {**_asked(deployment, medium, size), "max_tokens": _TOKENS})


def warm_up_media(client: httpx.Client, deployment: Deployment, media: Sequence[Medium], *, timeout_s: float) -> None:
    """Ask with each medium. One that the engine refuses as it is configured is told in the log, and refused to clients as well.

    Args:
        client: bound to the engine.
        deployment: whose model is asked.
        media: what it takes.
        timeout_s: seconds without a byte for one request, which may compile.

    Raises:
        EngineRequestError: the engine failed.
    """
    for request in media_requests(deployment, media):
        tell(f"a request with {request.medium}")
        response = client.post(PATH, json=request.body, timeout=timeout_s)
        if response.status_code in _REFUSED:
            answer = response.text[:_SHOWN]
            log("info", "warmup_media_refused", medium=request.medium, status=response.status_code, answer=answer)
        elif response.status_code != _OK:
            raise EngineRequestError(
                f"A warm-up request with {request.medium} got {response.status_code}: {response.text[:_SHOWN]!r}. If the model "
                f"takes none, leave {request.medium!r} out of the engine's option media."
            )


def media_questions(deployment: Deployment, media: Sequence[Medium] | None) -> tuple[CanaryQuestion, ...]:
    """A question for each medium.

    Args:
        deployment: whose model is asked.
        media: what it takes; None asks its configuration.
    """
    return tuple(media_question(deployment, one) for one in (model_media(deployment.model) if media is None else media))


def media_question(deployment: Deployment, medium: Medium) -> CanaryQuestion:
    """The canary's question about a picture or a sound: a part of the model that no text uses has to come back, too.

    It compares the log probabilities of the five most likely first tokens; the text, where the engine gives none.
    """
    size = _CANARY_SIDE if medium == "image" else _CANARY_SECONDS
    body = {**_asked(deployment, medium, size), "temperature": 0.0}

    def ask(client: httpx.Client) -> CanaryAnswer:
        deployment.engine.forget_prompts(client)
        response = client.post(PATH, json={**body, "max_tokens": 1, "logprobs": True, "top_logprobs": _CHOICES})
        if response.status_code == _OK and (numbers := _first_choices(response)):
            return CanaryAnswer(numbers=numbers)
        response = client.post(PATH, json={**body, "max_tokens": _TOKENS})
        if response.status_code in _REFUSED:
            return CanaryAnswer(exact=(f"refused with {response.status_code}",))
        return CanaryAnswer(exact=(_text(response, medium),))

    return CanaryQuestion(name=medium, ask=ask)


def _asked(deployment: Deployment, medium: Medium, size: float) -> dict[str, object]:
    said = {"type": "text", "text": "Say what this is."}
    return {
        "model": deployment.model.served_name,
        "messages": [{"role": "user", "content": [_part(medium, size), said]}],
    }


@lru_cache(maxsize=8)
def _encoded(medium: Medium, size: float) -> str:
    data = generated_picture(int(size)) if medium == "image" else generated_sound(size)
    kind = "image/png" if medium == "image" else "audio/wav"
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _part(medium: Medium, size: float) -> dict[str, object]:
    """A content part as SGLang and vLLM take it: OpenAI's for pictures, and the same shape for sounds."""
    name = f"{medium}_url"
    return {"type": name, name: {"url": _encoded(medium, size)}}


def _first_choices(response: httpx.Response) -> tuple[float, ...]:
    """The log probabilities of the most likely first tokens, the highest first; empty if the answer has none."""
    try:
        first = response.json()["choices"][0]["logprobs"]["content"][0]
        numbers = [choice["logprob"] for choice in first["top_logprobs"]]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return ()
    return tuple(sorted(numbers, reverse=True)) if all(map(is_finite, numbers)) else ()


def _text(response: httpx.Response, medium: Medium) -> str:
    try:
        message = cast("Mapping[str, object]", response.json()["choices"][0]["message"])
        return f"{message.get('reasoning_content') or ''}{message.get('content') or ''}"
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise EngineRequestError(
            f"The canary's question with {medium} got {response.status_code} and no chat completion ({type(error).__name__}): "
            f"{response.text[:_SHOWN]!r}."
        ) from error
