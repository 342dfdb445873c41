"""Requests to this machine go past every proxy: HTTP_PROXY and its like are for other hosts.

A request to a loopback address carries questions, answers and keys that never have to leave the machine, and a proxy could
not reach the address that is meant: its loopback is another.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["is_loopback", "past_proxies"]

_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_EXCEPTIONS = "no_proxy"
_LOOPBACK = ("localhost", "127.0.0.1", "::1", "127.0.0.0/8")
"""Names as programs read them in NO_PROXY: most compare words, some know networks."""


def is_loopback(host: str) -> bool:
    """Whether a host, as it stands in a URL, is this machine by a loopback address.

    Args:
        host: a name, or an address in any way of writing that the resolver takes (`127.1`, `[::1]`, `::ffff:127.0.0.1`).
    """
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return socket.inet_aton(name)[0] in (0, 127)  # 0.0.0.0 is reached at loopback, too
    except (OSError, ValueError):
        pass
    try:
        address = ipaddress.IPv6Address(name.partition("%")[0])
    except ValueError:
        return False
    inner = address.ipv4_mapped
    return address.is_loopback or address.is_unspecified or (inner is not None and is_loopback(str(inner)))


def past_proxies(env: Mapping[str, str], *hosts: str) -> dict[str, str]:
    """What a program's environment has to hold in addition, so that it reaches loopback addresses without a proxy.

    Args:
        env: its environment.
        hosts: further hosts that are to be reached directly.
    """
    if not any(env.get(name) or env.get(name.upper()) for name in _PROXIES):
        return {}
    listed = env.get(_EXCEPTIONS) or env.get(_EXCEPTIONS.upper()) or ""
    words = [word.strip() for word in listed.split(",") if word.strip()]
    words += [word for word in (*_LOOPBACK, *hosts) if word not in words]
    value = ",".join(words)
    return {_EXCEPTIONS: value, _EXCEPTIONS.upper(): value}
