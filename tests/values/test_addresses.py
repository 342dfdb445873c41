"""Addresses to listen on: their spelling, who reaches them, and the errors for unusable ones."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

import pytest

from torpor.deployment import Deployment, Model
from torpor.errors import ConfigurationError, PortInUseError
from torpor.testing import StandIn
from torpor.values.addresses import (
    cannot_bind,
    check_free,
    checked_host,
    checked_port,
    is_open,
    is_public,
    nearest,
    url,
)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("localhost", "127.0.0.1"),
        ("::1", "::1"),
        ("[::1]", "::1"),
        ("0:0:0:0:0:0:0:1", "::1"),
        ("0.0.0.0", "0.0.0.0"),
        ("::", "::"),
    ],
)
def test_an_address_is_kept_in_one_spelling(given: str, kept: str) -> None:
    """In options and in the deployment."""
    assert checked_host("--host", given) == kept
    assert Deployment(name="d", model=Model(path="/m"), plugins=(StandIn(),), host=given).host == kept


@pytest.mark.parametrize(
    "given", ["", "nowhere", "example.org", "1.2.3", "127.0.0.1:8000", "fe80::1%lo", "::g", "\0", 1]
)
def test_an_invalid_address_is_refused(given: object) -> None:
    """The error names the option and what is allowed. Host names are not resolved."""
    with pytest.raises(ConfigurationError, match=r"^--host is .*127\.0\.0\.1 or ::1 for this machine alone"):
        checked_host("--host", given)


@pytest.mark.parametrize("port", [-1, 0, 65536, 70000, 10**30])
def test_an_invalid_port_is_refused(port: int) -> None:
    """Port 0 too: nobody would know where the server is."""
    with pytest.raises(ConfigurationError, match=f"--port is {port}; allowed are 1 to 65535"):
        checked_port("--port", port)


@pytest.mark.parametrize(
    ("host", "public", "near"),
    [
        ("127.0.0.1", False, "127.0.0.1"),
        ("127.9.9.9", False, "127.9.9.9"),
        ("::1", False, "::1"),
        ("::ffff:127.0.0.1", False, "::ffff:127.0.0.1"),
        ("0.0.0.0", True, "127.0.0.1"),
        ("::", True, "::1"),
        ("192.168.1.5", True, "192.168.1.5"),
        ("::ffff:10.0.0.1", True, "::ffff:10.0.0.1"),
    ],
)
def test_loopback_alone_is_not_public(host: str, public: bool, near: str) -> None:
    """A server that listens on all addresses is reached on loopback."""
    assert is_public(host) is public
    assert nearest(host) == near


def test_a_url_has_brackets_around_an_ipv6_address() -> None:
    """RFC 3986, section 3.2.2."""
    assert url("127.0.0.1", 8000) == "http://127.0.0.1:8000"
    assert url("::1", 8000) == "http://[::1]:8000"


def test_a_public_server_with_keys_is_not_open() -> None:
    """An engine plugin without an option for keys demands none."""

    @dataclass(frozen=True)
    class Keyed:
        api_key_sha256: tuple[str, ...] = ()

    assert is_open("0.0.0.0", StandIn())
    assert is_open("0.0.0.0", Keyed())
    assert not is_open("0.0.0.0", Keyed(("0" * 64,)))
    assert not is_open("127.0.0.1", Keyed())


@pytest.mark.fault("another program listens on the port", area="public port", outcome="refused")
@pytest.mark.parametrize(
    ("theirs", "ours"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("127.0.0.1", "0.0.0.0")]
)
def test_a_port_in_use_is_named(theirs: str, ours: str, free_port: int) -> None:
    """Also if only one of the two servers listens on all addresses."""
    check_free(ours, free_port)
    with (
        socket.create_server((theirs, free_port)),
        pytest.raises(PortInUseError, match=f"Port {free_port} is in use") as error,
    ):
        check_free(ours, free_port)
    assert error.value.exit_code == 2
    check_free(ours, free_port)


@pytest.mark.fault("the machine has no such address", area="public port", outcome="refused")
def test_an_address_of_another_machine_is_refused(free_port: int) -> None:
    """192.0.2.0/24 is reserved for documentation (RFC 5737)."""
    with pytest.raises(ConfigurationError, match=f"Cannot bind port {free_port} on 192.0.2.1: .* no such address"):
        check_free("192.0.2.1", free_port)


@pytest.mark.fault("a user takes a port that is root's", area="public port", outcome="refused")
def test_a_privileged_port_is_refused_with_the_reason() -> None:
    """The kernel refuses it to an ordinary user."""
    error = cannot_bind("127.0.0.1", 80, PermissionError(13, os.strerror(13)), cure="choose another")
    assert isinstance(error, ConfigurationError)
    assert "Cannot bind port 80 on 127.0.0.1: Permission denied. Ports below 1024 are for root" in str(error)
