"""Modal's proxy token: how a client passes the door of a server that is deployed with `requires_proxy_auth`.

    TORPOR_MODAL_KEY      the token's id (wk-...), sent as `Modal-Key`
    TORPOR_MODAL_SECRET   its secret (ws-...), sent as `Modal-Secret`

The two are read from the environment alone: what stands in an argument is seen by everybody on the machine. They are sent by
https only, and only to the server that was named: a server on a custom domain gets them, and a redirect to another host,
another port or plain http does not take them along. Modal's own redirects stay on the server's host.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from torpor.errors import ConfigurationError
from torpor.values.client_keys import MODAL_KEY_VARIABLE, MODAL_SECRET_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    import httpx

__all__ = ["modal_keys", "refused_by_modal", "sent_to"]

_HEADERS = {"Modal-Key": MODAL_KEY_VARIABLE, "Modal-Secret": MODAL_SECRET_VARIABLE}
_UNAUTHORIZED = 401
_MODALS_DOOR = "modal-http:"  # how Modal's proxy begins what it says itself


def modal_keys(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """The headers of the proxy token that the environment holds; empty for none.

    Args:
        env: the environment; by default this process's.

    Raises:
        ConfigurationError: one half of the token is missing, or holds what no header can carry.
    """
    env = os.environ if env is None else env
    found = {header: env.get(variable, "") for header, variable in _HEADERS.items()}
    if not any(found.values()):
        return {}
    for header, variable in _HEADERS.items():
        if not found[header]:
            raise ConfigurationError(
                f"{variable} is not set, and the other half of Modal's proxy token is. Set both, {MODAL_KEY_VARIABLE} and "
                f"{MODAL_SECRET_VARIABLE}, or neither."
            )
        if not all("!" <= letter <= "~" for letter in found[header]):
            raise ConfigurationError(
                f"{variable} holds something else than visible ASCII characters. Put the {header} of a proxy token of Modal "
                "into it, without a line break."
            )
    return found


def sent_to(url: str, keys: Mapping[str, str]) -> Callable[[httpx.Request], Awaitable[None]]:
    """A hook of httpx that gives the keys to requests to the server of that URL, and takes them from all others.

    Args:
        url: of the server that was named.
        keys: headers of `modal_keys`.
    """
    import httpx  # noqa: PLC0415 - whoever sends has it

    def origin(of: httpx.URL) -> tuple[str, str, int | None]:
        return of.scheme, of.host, of.port  # httpx leaves a scheme's own port out

    async def hook(request: httpx.Request) -> None:
        for header, value in keys.items():
            request.headers.pop(header, None)
            if request.url.scheme == "https" and origin(request.url) == origin(httpx.URL(url)):
                request.headers[header] = value

    return hook


def refused_by_modal(status: int, said: str, *, sent: bool) -> str:
    """The next step for an answer of Modal's own door that wants a proxy token; empty for any other answer.

    Args:
        status: HTTP status.
        said: the answer's text.
        sent: whether a token was sent.
    """
    if status != _UNAUTHORIZED or _MODALS_DOOR not in said:
        return ""
    if sent:
        return (
            f" Modal refuses the proxy token in {MODAL_KEY_VARIABLE} and {MODAL_SECRET_VARIABLE}: "
            "it may be of another workspace."
        )
    return (
        f" The server is deployed with requires_proxy_auth: put a proxy token of the workspace into {MODAL_KEY_VARIABLE} "
        f"(wk-...) and {MODAL_SECRET_VARIABLE} (ws-...), and name the server by https."
    )
