"""The warm-up by task. Chats are `torpor.engine_plugins.warmup`; all others: one text, several, short and long, a small burst.

Then come the requests for what else a request may ask (`torpor.engine_plugins.feature_warmup`).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import TYPE_CHECKING

from torpor.engine_plugins.feature_warmup import warm_up_features
from torpor.engine_plugins.media import model_media, warm_up_media
from torpor.engine_plugins.warmup import send_burst, warm_up
from torpor.errors import EngineRequestError
from torpor.tasks.questions import question
from torpor.tasks.sound import generated_sound
from torpor.telemetry.progress import tell

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import httpx

    from torpor.deployment import Deployment
    from torpor.engine_plugins.features import Feature, Medium
    from torpor.tasks.questions import TaskRequest

__all__ = ["task_requests", "warm_up_deployment"]

TOKENS = 16
_OK = 200
_SOUNDS_S = (1.0, 5.0)
_QUERY = "Tell me about rivers."


def task_requests(deployment: Deployment, prompt_words: tuple[int, ...], *, model: str = "") -> Iterator[TaskRequest]:
    """The requests, one after the other.

    Args:
        deployment: of a task other than `chat`.
        prompt_words: lengths of the texts, words.
        model: one of its served names; the model's own by default.
    """
    task, model = deployment.task, model or deployment.model.served_name
    route = deployment.engine.task_route(task)
    if task == "transcribe":
        for seconds in _SOUNDS_S:
            yield question(task, route, model=model, sound=generated_sound(seconds))
        return
    texts = [" ".join(["Rivers"] + ["and lakes"] * (words // 2)) for words in prompt_words]
    if task == "generate":
        for sampling in ({"temperature": 0}, {"temperature": 0.8, "top_p": 0.9, "stream": True}):
            for text in texts:
                yield question(task, route, model=model, texts=[text], max_tokens=TOKENS, **sampling)
        return
    for text in texts:
        yield question(task, route, model=model, texts=[text], query=_QUERY)
    yield question(task, route, model=model, texts=[*texts, *texts], query=_QUERY)


def warm_up_deployment(
    client: httpx.Client,
    deployment: Deployment,
    *,
    prompt_words: tuple[int, ...],
    burst: int,
    timeout_s: float,
    features: tuple[Feature, ...] = (),
    regex: Mapping[str, object] = MappingProxyType({}),
    media: Sequence[Medium] | None = (),
) -> None:
    """Send all requests to each served name, a burst of the first to all names at once, and those for features.

    Args:
        client: bound to the engine.
        deployment: whose task is warmed up.
        prompt_words: lengths of the texts, words.
        burst: requests sent at once at the end.
        timeout_s: seconds without a byte for one request, which may compile kernels.
        features: what is asked for beside text.
        regex: as for `feature_requests`.
        media: what a model of chats takes beside text; None asks its configuration.

    Raises:
        EngineRequestError: the engine answered with an error or with nothing. A feature that it refuses is only logged.
    """
    _warm_up_task(client, deployment, prompt_words=prompt_words, burst=burst, timeout_s=timeout_s)
    warm_up_features(client, deployment, features, regex=regex, timeout_s=timeout_s)
    if deployment.task == "chat":
        taken = model_media(deployment.model) if media is None else media
        warm_up_media(client, deployment, taken, timeout_s=timeout_s)


def _warm_up_task(
    client: httpx.Client, deployment: Deployment, *, prompt_words: tuple[int, ...], burst: int, timeout_s: float
) -> None:
    """Send the requests of the deployment's task to each served name."""
    for model in deployment.model.served_names:
        if deployment.model.adapters:
            tell(f"the adapter {model}" if model in deployment.model.adapters else f"the model {model}")
        if deployment.task == "chat":
            warm_up(client, model=model, prompt_words=prompt_words, burst=0, timeout_s=timeout_s)
        else:
            requests = tuple(task_requests(deployment, prompt_words, model=model))
            for number, request in enumerate(requests, start=1):
                tell(f"request {number} of {len(requests)}")
                _send(client, request, timeout_s)
    _send_burst(client, deployment, prompt_words, burst=burst, timeout_s=timeout_s)


def _send_burst(
    client: httpx.Client, deployment: Deployment, prompt_words: tuple[int, ...], *, burst: int, timeout_s: float
) -> None:
    """Send `burst` requests at once, in turn to each served name: an engine with adapters runs mixed batches."""
    if burst < 2:  # noqa: PLR2004 - one at a time is what the other requests were
        return
    names = deployment.model.served_names
    tell(f"{burst} requests at once")
    if deployment.task == "chat":
        send_burst(client, burst, models=names, timeout_s=timeout_s)
        return
    firsts = [next(task_requests(deployment, prompt_words, model=name)) for name in names[:burst]]
    with ThreadPoolExecutor(burst, thread_name_prefix="warmup") as pool:
        for future in [pool.submit(_send, client, firsts[turn % len(firsts)], timeout_s) for turn in range(burst)]:
            future.result()


def _send(client: httpx.Client, request: TaskRequest, timeout_s: float) -> None:
    """Send one request and read its answer to the end."""
    headers = {"content-type": request.content_type}
    with client.stream("POST", request.path, content=request.content, headers=headers, timeout=timeout_s) as response:
        body = b"".join(response.iter_bytes())
    if response.status_code != _OK or not body:
        raise EngineRequestError(
            f"A warm-up request to {request.path} got {response.status_code} and {len(body)} bytes: {body[:300]!r}. The task is "
            "not what this model serves, or the engine does not run it here."
        )
