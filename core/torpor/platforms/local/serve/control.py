"""The control paths at `/torpor/`, behind a key of their own; and the page for people.

    GET  /torpor/                       the page; it holds nothing secret, and asks for the key
    GET  /torpor/status                 every deployment: state, memory, queue, replicas, last starts
    GET  /torpor/metrics                the metrics, in Prometheus' format
    POST /torpor/deployments/NAME/wake  start or wake it
    POST /torpor/deployments/NAME/sleep let it fall one state, once no request is in flight
    POST /torpor/deployments/NAME/pin   keep it: neither idle time nor another deployment's need lets it fall
    POST /torpor/deployments/NAME/unpin

The key is in the header `Authorization: Bearer KEY`. No cookie counts, so a page of another site cannot act for a user.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import unquote

from torpor._version import __version__
from torpor.errors import ConfigurationError
from torpor.platforms.local.metrics.names import CONTENT_TYPE
from torpor.platforms.local.serve import lazy_page
from torpor.platforms.local.serve.budget import check_pinned
from torpor.serving.values import PageAnswer

if TYPE_CHECKING:
    from collections.abc import Callable

    from torpor.platforms.local.serve.conductor import Conductor
    from torpor.serving.states import DeploymentState
    from torpor.serving.values import PageRequest

__all__ = ["COMMANDS", "PREFIX", "Control"]

PREFIX = "/torpor/"
COMMANDS = ("wake", "sleep", "pin", "unpin")
"""What people can do to a deployment."""

_BEARER = "bearer "
_SAFE = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
}


class Control:
    """Answers the control paths, in the thread of the gateway.

    Args:
        conductor: whose deployments.
        key: a key that is allowed.
        key_sha256: SHA-256 digests of other keys, hex.

    Attributes:
        metrics: called in a thread of its own for the text of the metrics; None if there are none.
    """

    prefix = PREFIX

    def __init__(self, conductor: Conductor, *, key: str, key_sha256: tuple[str, ...] = ()) -> None:
        self._conductor = conductor
        self._own = hashlib.sha256(key.encode()).hexdigest()
        self._allowed = (self._own, *key_sha256)
        self._began = time.time() - time.monotonic()
        self.metrics: Callable[[], bytes] | None = None

    def allow(self, key_sha256: tuple[str, ...]) -> None:
        """Other keys are allowed from now on."""
        self._allowed = (self._own, *key_sha256)

    async def answer(self, request: PageRequest) -> PageAnswer:
        """Answer a request; nothing but the empty page without the key."""
        path = request.path.removeprefix(PREFIX)
        if not path:
            return self._page(request)
        if not self._may(request):
            return _error(401, "invalid_api_key", "The control paths need their key: Authorization: Bearer KEY.")
        if path == "status" or (path == "metrics" and self.metrics is not None):
            return await self._read(request, path)
        return self._command(request, path)

    async def _read(self, request: PageRequest, path: str) -> PageAnswer:
        if request.method != "GET":
            return _error(405, "method_not_allowed", f"Read the {path} by GET.")
        if path == "metrics" and self.metrics is not None:
            text = await asyncio.to_thread(self.metrics)  # it asks this thread for the states
            return PageAnswer(status=200, body=text, content_type=CONTENT_TYPE, headers=_SAFE)
        return _json(200, {"torpor": __version__, "deployments": self.deployments()})

    def deployments(self) -> list[dict[str, object]]:
        """Every deployment, for JSON."""
        fleet = self._conductor.fleet
        return [self._told(one) for one in fleet.deployments.values() if not one.removed]

    def _page(self, request: PageRequest) -> PageAnswer:
        if request.method not in ("GET", "HEAD"):
            return _error(405, "method_not_allowed", "Read the page by GET.")
        page = lazy_page.control_page()
        headers = {**_SAFE, "content-security-policy": page.policy}
        return PageAnswer(status=200, body=page.html.encode(), content_type="text/html; charset=utf-8", headers=headers)

    def _may(self, request: PageRequest) -> bool:
        given = request.headers.get("authorization", "")
        if given[: len(_BEARER)].lower() != _BEARER:
            return False
        digest = hashlib.sha256(given[len(_BEARER) :].strip().encode("utf-8", "surrogateescape")).hexdigest()
        fits = [hmac.compare_digest(digest, allowed) for allowed in self._allowed]
        return any(fits)

    def _command(self, request: PageRequest, path: str) -> PageAnswer:
        kind, _, rest = path.partition("/")
        quoted, _, what = rest.partition("/")
        if kind != "deployments" or what not in COMMANDS:
            return _error(404, "not_found", f"There is no such control path: {PREFIX}{path[:100]}")
        if request.method != "POST":
            return _error(405, "method_not_allowed", "Act by POST.")
        name = unquote(quoted)
        one = self._conductor.fleet.deployments.get(name)
        if one is None or one.removed:
            known = ", ".join(self._conductor.fleet.deployments)
            return _error(404, "not_found", f"There is no deployment {name[:100]!r}; there are: {known}.")
        acts: dict[str, Callable[[DeploymentState], None]] = {
            "wake": self._wake,
            "sleep": self._sleep,
            "pin": self._pin,
            "unpin": self._unpin,
        }
        try:
            acts[what](one)
        except ConfigurationError as error:
            return _error(409, "conflict", str(error))
        self._conductor.decide()
        self._conductor.changed()
        return _json(200, self._told(one))

    def _wake(self, one: DeploymentState) -> None:
        self._conductor.fleet.want(one.terms.name)

    def _sleep(self, one: DeploymentState) -> None:
        if one.terms.least:
            raise ConfigurationError(
                f"{one.terms.name!r} keeps {one.terms.least} replica(s) serving (min_containers); set that to 0 first."
            )
        self._conductor.fleet.let_fall(one.terms.name)

    def _pin(self, one: DeploymentState) -> None:
        fleet = self._conductor.fleet
        pinned = replace(one.terms, pinned=True)
        others = [(other.terms, other.size) for other in fleet.deployments.values() if other is not one]
        check_pinned(fleet.budget, [(pinned, one.size), *others])
        one.terms = pinned

    def _unpin(self, one: DeploymentState) -> None:
        one.terms = replace(one.terms, pinned=False)

    def _told(self, one: DeploymentState) -> dict[str, object]:
        fleet, terms = self._conductor.fleet, one.terms
        size, asleep = one.size, one.asleep_size
        return {
            "name": terms.name,
            "models": self._conductor.names(terms.name),
            "state": fleet.state(terms.name),
            "pinned": terms.pinned,
            "has_snapshot": one.has_snapshot,
            "waiting": len(one.queue),
            "in_flight": sum(replica.requests for replica in fleet.of(terms.name)),
            "size": size._asdict() if size else None,
            "size_asleep": asleep._asdict() if asleep else None,
            "replicas": [
                {
                    "name": f"{replica.deployment}-{replica.number}",
                    "state": replica.state,
                    "since": replica.since + self._began,
                    "boot": replica.kind,
                    "in_flight": replica.requests,
                    "memory_bytes": replica.taken.host,
                    "gpus": {str(card): held for card, held in replica.taken.gpus.items()},
                }
                for replica in fleet.of(terms.name)
            ],
            "starts": [
                {
                    "boot": start.kind,
                    "seconds": round(start.seconds, 4),
                    "at": start.at + self._began,
                    "error": start.error,
                }
                for start in reversed(one.starts)
            ],
            "error": one.failed,
        }


def _json(status: int, value: object) -> PageAnswer:
    return PageAnswer(status=status, body=json.dumps(value).encode(), headers=_SAFE)


def _error(status: int, code: str, message: str) -> PageAnswer:
    return _json(status, {"error": {"message": message, "type": "invalid_request_error", "code": code}})
