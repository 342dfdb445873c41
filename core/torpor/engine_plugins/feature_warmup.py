"""Warm-up requests for what a request may ask beside its text: grammars, tools, log probabilities, several answers, sampling.

An engine loads and compiles for many of them when the first request comes that asks for it. Measured on a CPU: SGLang 0.5.23
compiles its repetition penalty (`srt/sampling/penaltylib/repetition_penalty.py`, torch.compile) for 31 s, and vLLM 0.32.0 its
count for log probabilities (`v1/sample/ops/logprobs.py`) for some 50 s. So each is asked once before the snapshot.

A feature that the engine refuses as it is configured (tools without a parser, log probabilities with some draft models) is
refused to clients as well: the warm-up says so in the log and goes on.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from torpor.telemetry.events import log
from torpor.telemetry.progress import tell

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import httpx

    from torpor.deployment import Deployment
    from torpor.engine_plugins.features import Feature

__all__ = ["FeatureRequest", "feature_requests", "warm_up_features"]

TOKENS = 8
_OK, _REFUSED = 200, range(400, 500)
_SHOWN = 300
_GENERATING = ("chat", "generate")
_SCHEMA: Mapping[str, object] = MappingProxyType(
    {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "people": {"type": "integer"},
            "share": {"type": "number"},
            "coast": {"type": "boolean"},
            "kind": {"enum": ["town", "village"]},
            "rivers": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["city", "people"],
    }
)
"""One property of each kind, so that every kind of rule is met."""


class FeatureRequest(NamedTuple):
    """One request.

    Attributes:
        feature: what it asks for.
        path: the engine's route.
        body: the JSON.
    """

    feature: Feature
    path: str
    body: Mapping[str, object]


def feature_requests(
    deployment: Deployment, features: tuple[Feature, ...], *, regex: Mapping[str, object]
) -> Iterator[FeatureRequest]:
    """The requests of the features, in their order; none for a task that generates no text by a prompt.

    Args:
        deployment: whose task and name are asked.
        features: which.
        regex: the engine's fields of a request whose answer has to match a pattern; empty if it has none.
    """
    task = deployment.task
    if task not in _GENERATING:
        return
    asked: dict[str, object] = {"model": deployment.model.served_name, "max_tokens": TOKENS}
    said = "Name a town on a river."
    asked |= {"messages": [{"role": "user", "content": said}]} if task == "chat" else {"prompt": said}
    path = deployment.engine.task_route(task).path
    for feature in features:
        for fields in _fields(feature, chat=task == "chat", regex=regex):
            yield FeatureRequest(feature, path, {**asked, **fields})


def _fields(feature: Feature, *, chat: bool, regex: Mapping[str, object]) -> tuple[Mapping[str, object], ...]:
    """The fields of each request of a feature. Two answers at once are another shape of the batch than one."""
    sampled: dict[str, object] = {"temperature": 0.8}
    schema = {"type": "json_schema", "json_schema": {"name": "town", "schema": dict(_SCHEMA)}}
    tool = {"type": "function", "function": {"name": "town", "description": "A town.", "parameters": dict(_SCHEMA)}}
    logprobs: dict[str, object] = {"logprobs": True, "top_logprobs": 5} if chat else {"logprobs": 5}
    by_feature: dict[Feature, tuple[Mapping[str, object], ...]] = {
        "json_schema": ({"response_format": schema}, {"response_format": schema, "n": 2, **sampled}),
        "json_object": ({"response_format": {"type": "json_object"}},),
        "regex": (regex,) if regex else (),
        "tools": ({"tools": [tool]}, {"tools": [tool], "tool_choice": "required"}) if chat else (),
        "logprobs": (logprobs, {**logprobs, "n": 2, **sampled}, {**logprobs, "n": 3, **sampled}),
        "n": ({"n": 2, **sampled},),
        "stop": ({"stop": ["\n\n\n"]},),
        "seed": ({"seed": 7, **sampled}, {"seed": 7, "n": 2, **sampled}),
        "penalties": ({"frequency_penalty": 0.2, "presence_penalty": 0.2},),
        "repetition": ({"repetition_penalty": 1.1}, {"repetition_penalty": 1.1, "n": 2, **sampled}),
        "sampling": ({"top_k": 20, "top_p": 0.9, **sampled}, {"min_p": 0.05, **sampled}),  # vLLM: no min_p with a draft
        "logit_bias": ({"logit_bias": {"5": 1.0}},),
        "min_tokens": ({"min_tokens": 2},),
    }
    return by_feature[feature]


def warm_up_features(
    client: httpx.Client,
    deployment: Deployment,
    features: tuple[Feature, ...],
    *,
    regex: Mapping[str, object],
    timeout_s: float,
) -> tuple[Feature, ...]:
    """Ask for each feature once or twice.

    Args:
        client: bound to the engine.
        deployment: whose task and name are asked.
        features: which.
        regex: as for `feature_requests`.
        timeout_s: seconds without a byte for one request, which may compile.

    Returns:
        The features that the engine refuses, or does not serve. The log has each with the engine's answer.
    """
    not_served: dict[Feature, None] = {}
    for request in feature_requests(deployment, features, regex=regex):
        if request.feature in not_served:
            continue
        tell(f"a request with {request.feature}")
        response = client.post(request.path, json=request.body, timeout=timeout_s)
        if response.status_code != _OK:
            not_served[request.feature] = None
            refused = response.status_code in _REFUSED
            log(
                "info" if refused else "warning",
                "warmup_feature_refused" if refused else "warmup_feature_failed",
                feature=request.feature,
                status=response.status_code,
                answer=response.text[:_SHOWN],
            )
    return tuple(not_served)
