"""Modal's proxy token: which server gets it, and which never does."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import ssl
import subprocess
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.chat_server import ChatServer, Reply, answer
from tests.command_line import torpor
from torpor import ConfigurationError, EngineRequestError
from torpor.client import chat
from torpor.network.modal_keys import modal_keys
from torpor.network.waking_server import get_when_there, open_async_client

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

KEY, SECRET = "wk-0123456789", "ws-abcdefghij"
TOKEN = {"TORPOR_MODAL_KEY": KEY, "TORPOR_MODAL_SECRET": SECRET}
NAMED = "https://me--app.modal.run"
DOOR = "modal-http: missing credentials for proxy authorization"


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the token into the environment."""
    for name, value in TOKEN.items():
        monkeypatch.setenv(name, value)


def keys_seen(named: str, locations: Sequence[str], status: int = 303) -> list[tuple[str, str | None, str | None]]:
    """Ask a server that redirects along the locations; return host and token of each request."""
    seen: list[tuple[str, str | None, str | None]] = []
    following = iter(locations)

    def serve(request: httpx.Request) -> httpx.Response:
        seen.append((request.url.host, request.headers.get("Modal-Key"), request.headers.get("Modal-Secret")))
        where = next(following, None)
        return httpx.Response(200) if where is None else httpx.Response(status, headers={"Location": where})

    async def ask() -> None:
        async with open_async_client(named, transport=httpx.MockTransport(serve)) as client:
            await get_when_there(client, f"{named}/ready", on_wait=lambda _: None)

    asyncio.run(ask())
    return seen


def test_the_named_server_gets_the_token_and_keeps_it_through_modals_own_redirects() -> None:
    """Modal keeps a request open beyond 150 s by redirects to the same host. An explicit port 443 is the same server."""
    later = [f"{NAMED}/ready?__modal_function_call_id=fc-1", "/ready?again", f"{NAMED}:443/ready"]
    assert keys_seen(NAMED, later) == [("me--app.modal.run", KEY, SECRET)] * 4


def test_a_custom_domain_gets_the_token() -> None:
    """The user has named it. It need not be below modal.run."""
    assert keys_seen("https://llm.example.com", []) == [("llm.example.com", KEY, SECRET)]


@pytest.mark.fault("a server redirects a client with a key elsewhere", area="secrets", outcome="held")
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "elsewhere",
    [
        "https://evil.example/ready",
        "https://other--app.modal.run/ready",
        "https://me--app.modal.run.evil.example/",
        "https://me--app.modal.run:8443/ready",
        "http://me--app.modal.run/ready",
        "//evil.example/ready",
    ],
)
def test_a_redirect_elsewhere_does_not_carry_the_token(elsewhere: str, status: int) -> None:
    """Another host, another port, a host that begins like the named one, plain http: none is the named server."""
    first, second = keys_seen(NAMED, [elsewhere], status)
    assert first == ("me--app.modal.run", KEY, SECRET)
    assert second[1:] == (None, None)


def test_the_token_is_there_again_when_a_redirect_leads_back() -> None:
    """Each request is judged by itself."""
    assert [one[1] for one in keys_seen(NAMED, ["https://other.example/", f"{NAMED}/ready"])] == [KEY, None, KEY]


@pytest.mark.fault("a key would go over plain http", area="secrets", outcome="held")
@pytest.mark.parametrize("named", ["http://me--app.modal.run", "http://127.0.0.1:8000", "http://localhost"])
def test_plain_http_never_carries_the_token(named: str) -> None:
    """Modal answers by https alone, and a server on this machine does not need the token."""
    assert [one[1:] for one in keys_seen(named, [])] == [(None, None)]


def test_without_a_token_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty variables count as unset."""
    monkeypatch.setenv("TORPOR_MODAL_KEY", "")
    monkeypatch.delenv("TORPOR_MODAL_SECRET")
    assert keys_seen(NAMED, []) == [("me--app.modal.run", None, None)]


@pytest.mark.parametrize(("given", "missing"), [*itertools.permutations(TOKEN, 2)])
def test_half_a_token_is_an_error_that_names_the_other_half(given: str, missing: str) -> None:
    """Before anything is sent."""
    with pytest.raises(ConfigurationError, match=f"{missing} is not set"):
        modal_keys({given: "wk-1"})


@pytest.mark.parametrize("value", ["wk-1\n", "wk 1", "wk-ü", "wk-1\r\nX-Other: 1"])
def test_a_token_that_no_header_can_carry_is_an_error_that_does_not_quote_it(value: str) -> None:
    """A message must not contain a secret."""
    with pytest.raises(ConfigurationError, match="TORPOR_MODAL_SECRET holds something else") as caught:
        modal_keys({"TORPOR_MODAL_KEY": "wk-1", "TORPOR_MODAL_SECRET": value})
    assert value not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["probe", "prewarm"])
def test_a_refusal_of_modals_proxy_says_which_variables_to_set(command: str) -> None:
    """Modal's own answer names no variable."""
    with ChatServer([Reply(status=401, pieces=(DOOR.encode(),))]) as server:
        done = torpor(command, server.url, "--timeout", "20", without=("TORPOR_", "MODAL_"))
    assert done.returncode == 1
    asking, said = done.stderr.splitlines()
    assert asking == f"asking {server.url}, for at most 20 s"
    assert all(name in said for name in (DOOR, "requires_proxy_auth", *TOKEN))


@pytest.mark.slow
def test_an_app_that_demands_a_token_is_not_prewarmed_without_one(tmp_path: Path) -> None:
    """The app file shows it, so no request is sent, not even to Modal's API."""
    (tmp_path / "app.py").write_text(
        "from torpor import Deployment, ModalOptions, Model\nfrom torpor.testing import StandIn\n"
        "deployment = Deployment(name='d', model=Model(path='/m'), plugins=(StandIn(),), "
        "modal=ModalOptions(requires_proxy_auth=True))\n"
    )
    done = torpor("prewarm", str(tmp_path / "app.py"), without=("TORPOR_", "MODAL_"))
    assert done.returncode == 2
    assert all(name in done.stderr for name in ("requires_proxy_auth", *TOKEN))
    shown = torpor("plan", str(tmp_path / "app.py"))
    assert "  modal     requires_proxy_auth=True\n" in shown.stdout


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A certificate for 127.0.0.1 that the clients of this process trust."""
    if not (openssl := shutil.which("openssl")):
        pytest.skip("there is no openssl program here, which makes the certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1")
    subprocess.run(
        [openssl, "req", "-x509", *made, "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
        timeout=30,
    )
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


def test_a_chat_over_https_carries_the_token_and_its_redirects_carry_it_no_further(tls: ssl.SSLContext) -> None:
    """On real sockets: the list of models, the question, and a redirect of the question to another server."""
    with ChatServer([answer("Hi.")], tls=tls) as other, ChatServer([], tls=tls) as server:
        models = Reply(pieces=(b'{"data": [{"id": "small"}]}',))
        server.replies = [models, Reply(status=307, headers={"Location": f"{other.url}/v1/chat/completions"})]
        assert chat(server.url, model=None, prompt="Hello?", timeout_s=20).text == "Hi."
    assert [seen.headers.get("Modal-Key") for seen in server.seen] == [KEY, KEY]
    assert [seen.headers.get("Modal-Secret") for seen in server.seen] == [SECRET, SECRET]
    assert not {"Modal-Key", "Modal-Secret"} & set(other.seen[0].headers)


def test_a_token_that_modal_refuses_is_reported_as_refused(tls: ssl.SSLContext) -> None:
    """The message does not ask for a token that was sent, and does not quote it."""
    refused = Reply(status=401, pieces=(b"modal-http: invalid credentials for proxy authorization",))
    with (
        ChatServer([refused], tls=tls) as server,
        pytest.raises(EngineRequestError, match="refuses the proxy token") as caught,
    ):
        chat(server.url, model="small", prompt="Hello?", timeout_s=20)
    assert SECRET not in str(caught.value)
    assert KEY not in str(caught.value)
