"""The acceptance of a draft model, from vLLM's counters."""

from __future__ import annotations

import httpx
import pytest

from torpor import Deployment, EngineRequestError, Model
from torpor_vllm import VLLM
from torpor_vllm.acceptance import Counters, acceptance_since, counters

COMPLETION = {
    "choices": [
        {"logprobs": {"tokens": ["a", "b"], "token_logprobs": [None, -1.0], "top_logprobs": [None, {"b": -1.0}]}}
    ],
    "usage": {"prompt_tokens": 1},
}


def metrics(drafts: float, accepted: float) -> str:
    """The lines of vLLM's metrics, with others between them."""
    labels = '{engine="0",model_name="m"}'
    return (
        "# TYPE vllm:spec_decode_num_drafts_total counter\n"
        f"vllm:spec_decode_num_drafts_total{labels} {drafts}\n"
        f'vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine="0",position="0"}} 99.0\n'
        f"vllm:spec_decode_num_accepted_tokens_total{labels} {accepted}\n"
    )


def engine_with(*pages: str) -> httpx.Client:
    """A client of a vLLM whose metrics are these pages, one after the other; the last one for ever."""
    left = list(pages)

    def respond(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/metrics":
            return httpx.Response(200, text=left.pop(0) if len(left) > 1 else left[0])
        return httpx.Response(200, json=COMPLETION)

    return httpx.Client(base_url="http://engine", transport=httpx.MockTransport(respond))


def test_the_acceptance_is_of_the_canarys_request_alone() -> None:
    """The counters' differences count, and the last ones: they follow a moment after the answer."""
    client = engine_with(metrics(10, 20), metrics(14, 25), metrics(18, 44), metrics(18, 44))
    before = counters(client)
    assert before == Counters(10, 20)
    assert acceptance_since(before, client) == 1 + 24 / 8


def test_nothing_guessed_is_one_token_for_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A draft model that no longer works counts nothing; that is told after a deadline, not waited for."""
    monkeypatch.setattr("torpor_vllm.acceptance._DEADLINE_S", 0.05)
    assert acceptance_since(Counters(10, 20), engine_with(metrics(10, 20))) == 1.0
    assert counters(engine_with("vllm:num_requests_running 0\n")) is None


def test_an_engine_without_metrics_is_told() -> None:
    """With its status."""
    client = httpx.Client(base_url="http://engine", transport=httpx.MockTransport(lambda _: httpx.Response(404)))
    with pytest.raises(EngineRequestError, match="GET /metrics with 404"):
        counters(client)


@pytest.mark.parametrize(
    ("options", "pages", "acceptance"),
    [
        ({}, (metrics(1, 1), metrics(2, 3), metrics(2, 3)), 3.0),
        ({"metrics": False}, (metrics(1, 1), metrics(2, 3), metrics(2, 3)), None),
        ({}, ("vllm:num_requests_running 0\n",), None),
    ],
)
def test_the_canary_asks_for_it_where_there_is_a_draft_model(
    options: dict[str, object], pages: tuple[str, ...], acceptance: float | None
) -> None:
    """The engine's counters tell, whoever asked for the draft: the model, extra flags, a plugin."""
    plugin = VLLM(**options)  # type: ignore[arg-type] # options of several types
    deployment = Deployment(name="d", model=Model(path="/m", served_name="m"), gpu="H100", plugins=(plugin,))
    client = engine_with(*pages)
    seen = plugin.ask_logprobs(deployment, client, model="m", prompt="a", tokens=1)
    assert seen.acceptance == acceptance
    assert seen.generated[0].token == "b"
