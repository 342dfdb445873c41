"""Addresses: of a Ray cluster, which Ray itself would try for a minute, and of Serve. Checked before Ray is imported."""

from __future__ import annotations

import os
import socket

from torpor.errors import ConfigurationError, ServerUnavailableError
from torpor.platforms.ray.options import HA_PROXY_VARIABLE
from torpor.values.addresses import EVERYWHERE, MAX_PORT, checked_host

__all__ = ["ADDRESS_VARIABLE", "NO_CLUSTER", "check_serve_host", "reachable"]

ADDRESS_VARIABLE = "RAY_ADDRESS"
NO_CLUSTER = (
    "Start one: `ray start --head` on the first node, `ray start --address=HEAD:6379` on the others, each with the variables "
    "that `torpor ray plan` prints."
)
"""What to do where there is none."""

_REACH_S = 5.0


def reachable(address: str) -> str:
    """The address to connect to: `auto` for a cluster on this machine, or `HOST:PORT` where somebody listens.

    Args:
        address: as given; `auto` takes what RAY_ADDRESS names, if it names anything.

    Raises:
        ConfigurationError: it is no address of a cluster.
        ServerUnavailableError: nobody listens there.
    """
    wanted = os.environ.get(ADDRESS_VARIABLE) or "auto" if address == "auto" else address
    if wanted == "auto":
        return wanted
    host, _, port = wanted.rpartition(":")
    if "//" in wanted or not host or not _is_port(port):
        raise _no_address(wanted, address)
    try:
        socket.create_connection((host, int(port)), timeout=_REACH_S).close()
    except UnicodeError as error:  # no name of a host
        raise _no_address(wanted, address) from error
    except OSError as error:
        raise ServerUnavailableError(
            f"No Ray cluster answers at {wanted}: {error.strerror or error}. `ray status` on its head shows the address. "
            f"{NO_CLUSTER}"
        ) from error
    return wanted


def check_serve_host(host: str) -> str:
    """What to know about the address at which Serve is to listen; empty if there is nothing.

    In HAProxy mode each node's HAProxy looks for the rest of Serve at 127.0.0.1, or at the head's address from other nodes.

    Raises:
        ConfigurationError: it is no address, or HAProxy mode is on here and it is not 0.0.0.0.
    """
    if checked_host("--host", host) == EVERYWHERE:
        return ""
    what = f"a request to a deployment at zero gets 500 where Serve does not listen on {EVERYWHERE}"
    if os.environ.get(HA_PROXY_VARIABLE) == "1":
        raise ConfigurationError(f"--host is {host}, and {HA_PROXY_VARIABLE} is 1: then {what}. Leave --host out.")
    return f"note: --host is {host}. If Ray was started with {HA_PROXY_VARIABLE}=1, {what}"


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdecimal() and 0 < int(text) <= MAX_PORT


def _no_address(wanted: str, given: str) -> ConfigurationError:
    where = f"{ADDRESS_VARIABLE} is {wanted!r}, which" if wanted != given else repr(wanted)
    return ConfigurationError(
        f"{where} is no address of a Ray cluster; give HOST:PORT of its head, e.g. 10.0.0.1:6379, or auto."
    )
