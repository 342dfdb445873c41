"""An engine or a guard answers without JSON or with unexpected JSON: one clear error, no traceback of the parser."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import httpx
import pytest

from torpor import EngineRequestError, GuardStateError
from torpor.engine_plugins.chat_server import call_object
from torpor.runtime.guard_client import GuardControl

if TYPE_CHECKING:
    from torpor.engine.handle import Engine

ANSWERS = [b"", b"OK", b"<html>", b"[]", b"7", b"null", b"[" * 100_000, b"\xff\xfe"]


def client(body: bytes, status: int = 200) -> httpx.Client:
    """A client that gets this answer to every request."""
    transport = httpx.MockTransport(lambda _: httpx.Response(status, content=body))
    return httpx.Client(base_url="http://127.0.0.1:1", transport=transport)


def control(body: bytes, status: int = 200) -> GuardControl:
    """A guard's control with such a client."""
    return GuardControl(cast("Engine", SimpleNamespace(guard_key="k")), client(body, status))


@pytest.mark.fault("an engine answers a management call with no JSON object", area="answers", outcome="refused")
@pytest.mark.parametrize("body", ANSWERS, ids=lambda body: ascii(body)[:12])
def test_an_engines_answer_that_is_no_object_is_an_error(body: bytes) -> None:
    """The error holds the beginning of the answer."""
    with pytest.raises(EngineRequestError, match=r"vLLM answered POST /sleep with no JSON object"):
        call_object(client(body), "/sleep", engine="vLLM")
    assert call_object(client(b'{"status": "sleeping"}'), "/sleep", engine="vLLM") == {"status": "sleeping"}


@pytest.mark.fault("a guard answers with no JSON object", area="answers", outcome="refused")
@pytest.mark.parametrize(
    "body",
    [*ANSWERS, b'{"in_flight": "1"}', b'{"in_flight": -1}', b'{"state": "asleep"}'],
    ids=lambda body: ascii(body)[:22],
)
def test_a_guards_answer_that_is_no_object_is_an_error(body: bytes) -> None:
    """Such an answer never counts as "asleep" or "no request in flight"."""
    with pytest.raises(GuardStateError, match="in_flight should be a number"):
        control(body).in_flight()
    with pytest.raises(GuardStateError):
        control(body).check_asleep()
    with pytest.raises(GuardStateError, match="refused 'drain' with 409"):
        control(body if b"in_flight" not in body else b"", 409).drain(1.0)
    assert control(b'{"in_flight": 3, "state": "serving"}').in_flight() == 3
