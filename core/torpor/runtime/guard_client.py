"""Core's side of the guard's protocol: drain, asleep, wake, serve (see `torpor.guard`)."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import httpx

from torpor.errors import DrainTimeoutError, GuardStateError, TorporError
from torpor.guard.keys import LifecycleKey
from torpor.guard.protocol import CONTROL, KEY_HEADER, LETS_GO_S
from torpor.runtime.transport import EngineTransport

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torpor.engine.handle import Engine

__all__ = ["GuardControl", "connect_failure", "no_answer", "open_client"]

_OK, _CONFLICT, _ERROR = 200, 409, 500
_ANSWER_MARGIN_S = 5.0


def open_client(engine: Engine, *, port: int, timeout_s: float, proof_timeout_s: float | None = None) -> httpx.Client:
    """An HTTP client of the engine for one stage. Close it at the end of the stage: a snapshot must contain no socket of it.

    It sends the lifecycle key only to an engine that has proven its identity on the same connection.

    Args:
        engine: whose guard key the client carries.
        port: where the engine listens on loopback.
        timeout_s: seconds per request, unless a call sets its own.
        proof_timeout_s: seconds for the engine's proof of its identity, at most those of the request; None for 10.
    """
    headers = {"connection": "close"}
    if engine.guard_key is not None:
        headers[KEY_HEADER] = engine.guard_key
    return httpx.Client(
        base_url=f"http://127.0.0.1:{port}",
        headers=headers,
        timeout=httpx.Timeout(timeout_s, connect=5.0),
        verify=False,  # noqa: S501 - loopback uses no TLS, and reading the certificates took 20 ms of every stage
        transport=EngineTransport(engine, proof_timeout_s=proof_timeout_s),
        trust_env=False,  # a proxy variable must not send loopback traffic and the key elsewhere
    )


def no_answer() -> tuple[type[Exception], ...]:
    """What a question to a guard raises that does not answer as it should."""
    return TorporError, httpx.HTTPError


def connect_failure() -> type[Exception]:
    """What a request raises if nobody took the connection: the guard has seen nothing of it."""
    return httpx.ConnectError


class GuardControl:
    """Moves the guard of one engine from state to state; does nothing for an engine without a guard."""

    def __init__(self, engine: Engine, client: httpx.Client) -> None:
        self._engine = engine
        self._client = client

    def drain(self, timeout_s: float, *, cut: bool = False) -> int:
        """Refuse new requests and wait until none is in flight.

        Args:
            timeout_s: seconds that requests in flight get.
            cut: close idle connections at once, and all others at the deadline; see `torpor.guard.connections`.

        Returns:
            How many requests were cut off at the deadline.

        Raises:
            DrainTimeoutError: some were still in flight at the deadline; the guard keeps serving.
        """
        if self._engine.guard_key is None:
            return 0
        response = self._client.post(
            f"{CONTROL}drain",
            json={"deadline_s": timeout_s, "cut": cut},
            timeout=timeout_s + LETS_GO_S + _ANSWER_MARGIN_S,
        )
        if response.status_code == _CONFLICT and "in_flight" in (left := _fields(response)):
            raise DrainTimeoutError(
                f"{left['in_flight']} request(s) were still in flight after {timeout_s:g} s; nothing was put to "
                "sleep and the server keeps serving. Try again later, or raise Deployment.drain_timeout_s."
            )
        self._expect(response, "drain")
        return _count(response, "cut") if "cut" in _fields(response) else 0

    def asleep(self, *, alone: bool = False, woken_by: str = "") -> None:
        """Refuse all requests, those of the lifecycle too.

        Args:
            alone: cut every open connection: a snapshot must contain none.
            woken_by: what wakes it, e.g. `kill -USR2 17 on its machine`; the guard repeats this to clients meanwhile.
        """
        options: dict[str, object] = {"alone": True} if alone else {}
        if woken_by:
            options["woken_by"] = woken_by
        self._post("asleep", options or None)

    def in_flight(self) -> int:
        """How many requests the engine works on; 0 without a guard: only a guard counts them."""
        if self._engine.guard_key is None:
            return 0
        response = self._client.get(f"{CONTROL}state")
        self._expect(response, "state")
        return _count(response, "in_flight")

    def answered(self) -> int:
        """How many public requests were answered since the guard serves; 0 without a guard."""
        if self._engine.guard_key is None:
            return 0
        response = self._client.get(f"{CONTROL}state")
        self._expect(response, "state")
        return _count(response, "answered")

    def wake(self, *, new_replica_id: str | None = None) -> None:
        """Accept requests of the lifecycle again, under a new key: every replica of the snapshot has the old one.

        Args:
            new_replica_id: the new id of a restored replica; None for a wake in place.
        """
        if self._engine.guard_key is not None:
            new_key = secrets.token_urlsafe(32)
            identity: dict[str, object] = {"key": LifecycleKey(new_key).digests}
            if new_replica_id is not None:
                identity["replica_id"] = new_replica_id
            self._expect(self._client.post(f"{CONTROL}wake", json=identity), "wake")
            self._engine.guard_key = new_key
            self._client.headers[KEY_HEADER] = new_key
        if new_replica_id is not None:
            self._engine.replica_id = new_replica_id

    def check_asleep(self) -> None:
        """Check that the engine sleeps and has no request in flight.

        Raises:
            GuardStateError: it is in another state, or a request is in flight.
        """
        if self._engine.guard_key is None:
            return
        response = self._client.get(f"{CONTROL}state")
        self._expect(response, "state")
        state, in_flight = _fields(response).get("state"), _count(response, "in_flight")
        if state != "asleep" or in_flight:
            raise GuardStateError(
                f"The engine is {state} with {in_flight} request(s) in flight; only a sleeping engine without "
                "requests can be captured."
            )

    def serve(self, *, reason: str = "") -> None:
        """Let public requests in.

        Args:
            reason: why this start is not a plain one; the guard sends it to clients, see `torpor.guard`.
        """
        self._post("serve", {"reason": reason} if reason else None)

    def _post(self, transition: str, options: Mapping[str, object] | None = None) -> None:
        if self._engine.guard_key is not None:
            self._expect(self._client.post(f"{CONTROL}{transition}", json=options), transition)

    def _expect(self, response: httpx.Response, transition: str) -> None:
        if response.status_code == _ERROR:
            raise GuardStateError(
                f"The engine could not {transition}: {response.text[:300]}. Its log has more. Correct the error, then start again."
            )
        if response.status_code != _OK:
            raise GuardStateError(
                f"The guard refused {transition!r} with {response.status_code}: {response.text[:300]}. "
                "Sleep and wake happen once each, in this order; end this engine and start again."
            )


def _fields(response: httpx.Response) -> dict[str, object]:
    """The JSON object in a guard's answer; empty if the answer is not one."""
    try:
        answer: object = response.json()
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}


def _count(response: httpx.Response, name: str) -> int:
    value = _fields(response).get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise GuardStateError(
            f"The guard answered {response.request.url.path} with {response.text[:300]!r}, where {name} should be a number: it is "
            "damaged or of another version. End this engine and start again."
        )
    return value
