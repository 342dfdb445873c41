"""`torpor wake`, `sleep` and `pin`: ask the `torpor serve` of this user on this machine."""

from __future__ import annotations

import http.client
import json
from typing import TYPE_CHECKING, cast
from urllib.parse import quote, urlsplit

from torpor.cli.terminal import result
from torpor.errors import ServerUnavailableError, TorporError
from torpor.platforms.local.running import RunningServer, servers
from torpor.values.addresses import nearest
from torpor.values.plain_text import plain

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ask_control", "run_control"]

_ASKED_FOR_S = 5.0
_ANSWER_BYTES = 4 << 20
_OK = 200


def run_control(deployment: str, what: str) -> None:
    """Have a deployment woken, put to sleep or pinned, and say its state.

    Args:
        deployment: its name.
        what: `wake`, `sleep`, `pin` or `unpin`.

    Raises:
        ServerUnavailableError: no `torpor serve` of this user serves it here, or it does not answer.
        TorporError: it refused.
    """
    found = [one for one in servers() if isinstance(one, RunningServer) and one.control_key]
    server = next((one for one in found if one.deployment == deployment), None)
    if server is None:
        known = ", ".join(sorted({one.deployment for one in found}))
        there = f"there are: {known}" if known else "none runs; start one with `torpor serve APP`"
        raise ServerUnavailableError(f"No `torpor serve` here serves a deployment {deployment!r}; {there}.")
    status, answer = ask_control(server, "POST", f"/torpor/deployments/{quote(deployment, safe='')}/{what}")
    if status != _OK:
        error = answer.get("error")
        said = error.get("message") if isinstance(error, dict) else None
        raise TorporError(plain(str(said or f"The server answered {status}.")))
    pinned = ", pinned" if answer.get("pinned") else ""
    result(plain(f"{deployment}: {answer.get('state')}{pinned}"))


def ask_control(server: RunningServer, method: str, path: str) -> tuple[int, Mapping[str, object]]:
    """Send a request to the control paths of a `torpor serve`; returns the status and the JSON object of the answer.

    Raises:
        ServerUnavailableError: it does not answer, or not with JSON.
    """
    where = urlsplit(server.url)
    connection = http.client.HTTPConnection(nearest(where.hostname or ""), where.port, timeout=_ASKED_FOR_S)
    try:
        headers = {"Authorization": f"Bearer {server.control_key}", "Connection": "close"}
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        value: object = json.loads(answer.read(_ANSWER_BYTES))
    except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
        raise ServerUnavailableError(
            f"The server on {server.url} does not answer: {error or type(error).__name__}."
        ) from error
    finally:
        connection.close()
    if not isinstance(value, dict):
        raise ServerUnavailableError(f"The server on {server.url} answered something else than JSON.")
    return answer.status, cast("dict[str, object]", value)
