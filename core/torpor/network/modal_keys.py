"""Modal's proxy token, which a server with `requires_proxy_auth` demands.

    TORPOR_MODAL_KEY      the token's id (wk-...), sent as `Modal-Key`
    TORPOR_MODAL_SECRET   its secret (ws-...), sent as `Modal-Secret`

Both are read from the environment only, because everybody on the machine sees the arguments of a command. They are sent by
https only, and only to the server that was named, which may be on a custom domain. A request that follows a redirect to
another host, another port or plain http does not have them. Modal's own redirects stay on the server's host.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import httpx

from torpor.errors import ConfigurationError
from torpor.values.client_keys import MODAL_KEY_VARIABLE, MODAL_SECRET_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

__all__ = ["modal_keys", "refused_by_modal", "sent_to"]

_KEY_HEADER, _SECRET_HEADER = "Modal-Key", "Modal-Secret"
_HEADERS = {_KEY_HEADER: MODAL_KEY_VARIABLE, _SECRET_HEADER: MODAL_SECRET_VARIABLE}
_UNAUTHORIZED = 401
_MODAL_PROXY = "modal-http:"  # begins every answer that Modal's proxy gives itself


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
    """A hook of httpx that adds the keys to requests to one server, and removes them from all others.

    Args:
        url: of that server.
        keys: headers of `modal_keys`.
    """

    def origin(of: httpx.URL) -> tuple[str, str, int | None]:
        return of.scheme, of.host, of.port  # httpx leaves a scheme's own port out

    async def hook(request: httpx.Request) -> None:
        for header, value in keys.items():
            request.headers.pop(header, None)
            if request.url.scheme == "https" and origin(request.url) == origin(httpx.URL(url)):
                request.headers[header] = value

    return hook


def refused_by_modal(response: httpx.Response, said: str) -> str:
    """The next step for an answer in which Modal's proxy demands a proxy token; empty for any other answer.

    Args:
        response: the answer.
        said: its text.
    """
    if response.status_code != _UNAUTHORIZED or _MODAL_PROXY not in said:
        return ""
    if _KEY_HEADER in response.request.headers:
        return (
            f" Modal refuses the proxy token in {MODAL_KEY_VARIABLE} and {MODAL_SECRET_VARIABLE}: "
            "it may be of another workspace."
        )
    return (
        f" The server is deployed with requires_proxy_auth: put a proxy token of the workspace into {MODAL_KEY_VARIABLE} "
        f"(wk-...) and {MODAL_SECRET_VARIABLE} (ws-...), and name the server by https."
    )
