"""Requests to this machine use no proxy: HTTP_PROXY and similar variables are for other hosts.

A request to a loopback address carries questions, answers and keys, which should stay on the machine. A proxy could not
reach the address either: it would ask its own loopback.
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
"""What NO_PROXY has to list: most programs compare names, some understand networks."""


def is_loopback(host: str) -> bool:
    """Whether the host of a URL is a loopback address.

    Args:
        host: a name, or an address in any form that the resolver takes (`127.1`, `[::1]`, `::ffff:127.0.0.1`).
    """
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return socket.inet_aton(name)[0] in (0, 127)  # 0.0.0.0 leads to loopback too
    except (OSError, ValueError):
        pass
    try:
        address = ipaddress.IPv6Address(name.partition("%")[0])
    except ValueError:
        return False
    inner = address.ipv4_mapped
    return address.is_loopback or address.is_unspecified or (inner is not None and is_loopback(str(inner)))


def past_proxies(env: Mapping[str, str], *hosts: str) -> dict[str, str]:
    """Variables that a program needs in addition, so that it reaches loopback addresses without a proxy.

    Args:
        env: the program's environment.
        hosts: more hosts that it reaches without a proxy.
    """
    if not any(env.get(name) or env.get(name.upper()) for name in _PROXIES):
        return {}
    listed = env.get(_EXCEPTIONS) or env.get(_EXCEPTIONS.upper()) or ""
    words = [word.strip() for word in listed.split(",") if word.strip()]
    words += [word for word in (*_LOOPBACK, *hosts) if word not in words]
    value = ",".join(words)
    return {_EXCEPTIONS: value, _EXCEPTIONS.upper(): value}
