"""Where a server listens: addresses, checked before anything is started.

A local server listens on loopback unless the user says otherwise. In a Modal container it listens on all addresses, because
requests come from Modal's proxy over the network.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from urllib.parse import urlsplit

from torpor.errors import ConfigurationError, PortInUseError

__all__ = [
    "EVERYWHERE",
    "LOOPBACK",
    "MAX_PORT",
    "cannot_bind",
    "check_free",
    "checked_host",
    "checked_port",
    "checked_url",
    "is_open",
    "is_public",
    "nearest",
    "shown_url",
    "url",
]

LOOPBACK = "127.0.0.1"
EVERYWHERE = "0.0.0.0"  # noqa: S104 - the user's choice, and Modal's containers
MAX_PORT = 65535

_EVERYWHERE_6 = "::"
_LOOPBACK_6 = "::1"
_LOCALHOST = "localhost"
_MAPPED = b"\0" * 10 + b"\xff\xff"
_LOOPBACK_NET = 127


def checked_host(name: str, value: object) -> str:
    """An address to listen on; `localhost` becomes 127.0.0.1.

    Args:
        name: the option or field, for the message.
        value: an IPv4 or IPv6 address.

    Raises:
        ConfigurationError: it is not an address.
    """
    text = value.strip("[]") if isinstance(value, str) and value[:1] == "[" else value
    if text == _LOCALHOST:
        return LOOPBACK
    if isinstance(text, str) and (found := _packed(text)) is not None:
        return socket.inet_ntop(*found)
    from torpor.values.field_types import shown  # noqa: PLC0415 - field_types: 2 ms before CRIU begins

    raise ConfigurationError(
        f"{name} is {shown(value)}; it has to be an address of this machine to listen on, as a number: {LOOPBACK} or {_LOOPBACK_6} "
        f"for this machine alone, {EVERYWHERE} or {_EVERYWHERE_6} for everybody, or one address of a network card."
    )


def checked_port(name: str, value: int) -> int:
    """A port to listen on.

    Args:
        name: the option, for the message.
        value: the port.

    Raises:
        ConfigurationError: it is out of range.
    """
    if not 1 <= value <= MAX_PORT:
        raise ConfigurationError(f"{name} is {value}; allowed are 1 to {MAX_PORT}.")
    return value


def is_public(host: str) -> bool:
    """Whether other machines can reach a server that listens on this address."""
    found = _packed(host)
    if found is None:
        return True
    family, packed = found
    if family == socket.AF_INET6 and packed.startswith(_MAPPED):
        packed = packed[len(_MAPPED) :]
    if len(packed) == 4:  # noqa: PLR2004 - bytes of an IPv4 address
        return packed[0] != _LOOPBACK_NET
    return packed != socket.inet_pton(socket.AF_INET6, _LOOPBACK_6)


def is_open(host: str, engine: object) -> bool:
    """Whether other machines can use an engine that listens on this address: they reach it, and it demands no key.

    Args:
        host: the address.
        engine: the engine's plugin.
    """
    keys: object = getattr(engine, "api_key_sha256", None)
    return is_public(host) and not keys


def nearest(host: str) -> str:
    """The address at which this machine itself reaches a server that listens on `host`."""
    return {EVERYWHERE: LOOPBACK, _EVERYWHERE_6: _LOOPBACK_6}.get(host, host)


def url(host: str, port: int) -> str:
    """The URL of a server, without a path."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def checked_url(url: str) -> str:
    """A server's URL, without a slash at its end.

    Raises:
        ConfigurationError: it is no URL of a server.
    """
    if not url.startswith(("http://", "https://")):
        raise ConfigurationError(f"The server's URL is {url!r}; it has to begin with http:// or https://.")
    try:
        where = urlsplit(url)
        wrong = "it names no host" if not where.hostname else "port 0 is none" if where.port == 0 else ""
    except ValueError as error:
        wrong = str(error)
    if wrong:
        raise ConfigurationError(
            f"The server's URL is {url!r}: {wrong}. It has to be like http://HOST:PORT, with a port from 1 to 65535."
        )
    return url.rstrip("/")


def shown_url(url: str) -> str:
    """A server's URL for messages: without a user's name and password, which logs must not hold."""
    return re.sub(r"//[^/?#]*@", "//", url, count=1)


def check_free(host: str, port: int, *, cure: str = "choose another Deployment.port, or another --port") -> None:
    """Check that this process can listen on an address and port.

    Args:
        host: the address.
        port: the port.
        cure: what to do about a port in use, besides ending the other program.

    Raises:
        PortInUseError: another program listens there.
        ConfigurationError: this user may not listen there, or this machine has no such address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind((host, port))
            probe.listen(1)
    except OSError as error:
        raise cannot_bind(host, port, error, cure=cure) from error


def cannot_bind(host: str, port: int, error: OSError, *, cure: str) -> PortInUseError | ConfigurationError:
    """The error for an address that a server cannot listen on.

    Args:
        host: the address.
        port: the port.
        error: what the kernel said.
        cure: as of `check_free`.
    """
    if error.errno == errno.EADDRINUSE:
        return PortInUseError(
            f"Port {port} is in use: another program listens there, on {host} or on all addresses "
            f"(`ss -ltnp 'sport = :{port}'` names it). End it, or {cure}."
        )
    said = error.strerror or os.strerror(error.errno or 0)
    if error.errno in (errno.EACCES, errno.EPERM):
        return ConfigurationError(
            f"Cannot bind port {port} on {host}: {said}. Ports below 1024 are for root, or for who has CAP_NET_BIND_SERVICE "
            "(sysctl net.ipv4.ip_unprivileged_port_start says where others begin). Choose a port from 1024 on."
        )
    if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        return ConfigurationError(
            f"Cannot bind port {port} on {host}: {said}. This machine has no such address (`ip address` lists those that it "
            f"has); {LOOPBACK} is always there."
        )
    return ConfigurationError(f"Cannot bind port {port} on {host}: {said}. Choose another address or port.")


def _packed(text: str) -> tuple[socket.AddressFamily, bytes] | None:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            return family, socket.inet_pton(family, text)
        except (OSError, ValueError):
            continue
    return None
