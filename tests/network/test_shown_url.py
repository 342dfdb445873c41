"""No message has the password of a server's URL."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from torpor.cli.waiting import waiting_limits
from torpor.client import ask, chat
from torpor.errors import ServerUnavailableError
from torpor.values.addresses import shown_url

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
        ("https://me:secret@host/path?at=a@b", "https://host/path?at=a@b"),
        ("http://a@b:c@[::1]:80", "http://[::1]:80"),
        ("http://host?to=a@b", "http://host?to=a@b"),
    ],
)
def test_name_and_password_are_left_out(url: str, shown: str) -> None:
    """All else stays, also an `@` behind the host."""
    assert shown_url(url) == shown


@pytest.mark.parametrize(
    "asked",
    [
        lambda url: chat(url, model="m", prompt="p", timeout_s=0.1),
        lambda url: ask(url, task="embed", texts=("t",), model="m", timeout_s=0.1),
    ],
)
def test_an_error_has_no_password(
    free_port: int, asked: Callable[[str], object], capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither the line that says what is asked, nor the one that says why there is no answer."""
    url = f"http://me:secret@127.0.0.1:{free_port}"
    said = f"from http://127.0.0.1:{free_port}"
    with pytest.raises(ServerUnavailableError, match=said) as raised, waiting_limits(1.0, 600.0).told(url):
        asked(url)
    assert f"asking http://127.0.0.1:{free_port}, for at most 1 s" in capsys.readouterr().err
    assert "secret" not in str(raised.value)


def test_a_server_that_takes_a_connection_and_is_silent_is_told_so() -> None:
    """It is not said to have refused the connection."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ServerUnavailableError, match="last seen: no answer"):
            chat(url, model="m", prompt="p", timeout_s=0.1)
