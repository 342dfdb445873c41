"""How many tokens a step of the model gives with a draft, from vLLM's own counters (v1/spec_decode/metrics.py of 0.32.0).

vLLM's answers do not tell; its metrics do, for all requests together. The canary asks while nobody else does. The counters follow a
moment after the answer. An engine has them from its start on if it guesses, whoever asked for it: `Model.draft`, `extra_args` or a
plugin.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, NamedTuple

from torpor import EngineRequestError

if TYPE_CHECKING:
    import httpx

__all__ = ["Counters", "acceptance_since", "counters"]

_OK = 200
_LINE = re.compile(r"^vllm:spec_decode_num_(drafts|accepted_tokens)_total(?:\{[^}]*\})? (\S+)$", re.MULTILINE)
_SETTLED_S, _DEADLINE_S = 0.03, 2.0


class Counters(NamedTuple):
    """What vLLM has counted since its start.

    Attributes:
        drafts: steps in which the draft model guessed.
        accepted: guesses that the model took.
    """

    drafts: float
    accepted: float


def counters(client: httpx.Client) -> Counters | None:
    """Read the counters; None for an engine that does not guess: it has none.

    Raises:
        EngineRequestError: vLLM gives no metrics.
    """
    response = client.get("/metrics")
    if response.status_code != _OK:
        raise EngineRequestError(f"vLLM answered GET /metrics with {response.status_code}: {response.text[:300]!r}.")
    found = _LINE.findall(response.text)
    if not found:
        return None
    totals = {"drafts": 0.0, "accepted_tokens": 0.0}
    for name, value in found:
        totals[name] += float(value)
    return Counters(totals["drafts"], totals["accepted_tokens"])


def acceptance_since(before: Counters, client: httpx.Client) -> float:
    """Tokens for each step since then: one of the model's own, and the accepted guesses. 1 if nothing was guessed."""
    deadline = time.monotonic() + _DEADLINE_S
    now = counters(client) or before
    while time.monotonic() < deadline:
        time.sleep(_SETTLED_S)
        then, now = now, counters(client) or before
        if now == then and now.drafts > before.drafts:
            break
    drafts = now.drafts - before.drafts
    return 1.0 + (now.accepted - before.accepted) / drafts if drafts > 0 else 1.0
