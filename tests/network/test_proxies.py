"""A request to this machine bypasses every proxy that the environment names; other requests use it."""

from __future__ import annotations

import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Self

import pytest
from typing_extensions import override

from tests.chat_server import ChatServer, Reply, answer
from tests.command_line import torpor
from tests.snapshots.kept import write_app
from torpor import ConfigurationError, start_engine
from torpor.client import chat
from torpor.engine.child_process import run_child
from torpor.errors import EngineRequestError
from torpor.network.proxies import is_loopback, past_proxies
from torpor.platforms.modal.prewarm import prewarm
from torpor.snapshots.criu_install import mirror_download
from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
ONE = (answer("Yes"),)


class Proxy:
    """A proxy that notes each request and refuses it."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def refuse(self) -> None:
                proxy.asked.append(self.requestline)
                self.send_response(403)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_POST = do_CONNECT = do_HEAD = refuse  # noqa: N815 - the standard library's names

            @override
            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy that every variable names, without exceptions."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with Proxy() as proxy:
        for name in VARIABLES:
            monkeypatch.setenv(name, proxy.url)
        yield proxy


LOOPBACK = [
    "localhost",
    "LOCALHOST.",
    "a.localhost",
    "127.0.0.1",
    "127.8.9.10",
    "127.1",
    "::1",
    "[::1]",
    "0.0.0.0",
    "::",
]
ELSEWHERE = [
    "",
    "example.com",
    "localhost.example.com",
    "128.0.0.1",
    "10.0.0.1",
    "::2",
    "::ffff:10.0.0.1",
    "127.example.com",
]


@pytest.mark.parametrize("host", [*LOOPBACK, "::ffff:127.0.0.1", "0:0:0:0:0:0:0:1"])
def test_loopback_is_recognised_in_every_spelling(host: str) -> None:
    """By name, by number, short or long."""
    assert is_loopback(host)


@pytest.mark.parametrize("host", ELSEWHERE)
def test_another_host_is_not_taken_for_loopback(host: str) -> None:
    """Not even one with a similar name."""
    assert not is_loopback(host)


@pytest.mark.fault("the environment names a proxy, and a question goes to this machine", area="secrets", outcome="held")
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1"])
def test_a_request_to_this_machine_bypasses_the_proxy(proxy: Proxy, host: str) -> None:
    """Neither request nor key leaves the machine."""
    with ChatServer(ONE) as server:
        url = server.url.replace("127.0.0.1", host)
        assert chat(url, model="m", prompt="Well?", api_key="k", timeout_s=20).text == "Yes"
    assert (proxy.asked, len(server.seen)) == ([], 1)


def test_a_request_to_another_host_uses_the_proxy(proxy: Proxy) -> None:
    """The user has set it for that."""
    with pytest.raises(EngineRequestError, match="403"):
        chat("http://model.invalid", model="m", prompt="Well?", timeout_s=20)
    assert proxy.asked == ["POST http://model.invalid/v1/chat/completions HTTP/1.1"]


def test_a_redirect_uses_the_proxy_by_its_target(proxy: Proxy) -> None:
    """A redirect to this machine bypasses the proxy, one to another host uses it."""
    away = Reply(status=303, headers={"Location": "http://model.invalid/answer"})
    with ChatServer([away]) as server, pytest.raises(EngineRequestError, match="403"):
        chat(server.url, model="m", prompt="Well?", timeout_s=20)
    assert proxy.asked == ["GET http://model.invalid/answer HTTP/1.1"]
    assert len(server.seen) == 1


def test_a_prewarm_of_this_machine_bypasses_the_proxy(proxy: Proxy) -> None:
    """The proxy could not reach the server on this machine."""
    restored = Reply(headers={"torpor-boot": "restored", "torpor-replica": "a", "torpor-wakes": "1"})
    with ChatServer([restored]) as server:
        assert prewarm(server.url, requests=2, attempts=1, pause_s=0, timeout_s=20).end == "restored"
    assert proxy.asked == []


def test_an_unusable_proxy_does_not_matter_on_this_machine(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """For another host it is an error that names the variables, without a traceback."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "gopher://127.0.0.1:1")
    with ChatServer(ONE) as server:
        assert chat(server.url, model="m", prompt="Well?", timeout_s=20).text == "Yes"
    with pytest.raises(ConfigurationError, match="ALL_PROXY"):
        chat("http://model.invalid", model="m", prompt="Well?", timeout_s=20)
    assert proxy.asked == []


def download(address: str, file: Path) -> subprocess.CompletedProcess[bytes]:
    """Fetch one file as `torpor snapshot setup` does without apt."""
    return run_child([sys.executable, "-I", mirror_download.__file__, address, str(file), "7"], timeout_s=30)


def test_a_mirror_on_this_machine_is_asked_without_the_proxy(proxy: Proxy, tmp_path: Path) -> None:
    """A mirror elsewhere is asked through it."""
    with ChatServer([Reply(pieces=(b"package",))]) as server:
        fetched = download(f"{server.url}/debian/p.deb", tmp_path / "p.deb")
    assert (fetched.returncode, proxy.asked) == (0, []), fetched.stderr
    assert (tmp_path / "p.deb").read_bytes() == b"package"
    assert download("http://mirror.invalid/debian/p.deb", tmp_path / "q.deb").returncode != 0
    assert proxy.asked == ["GET http://mirror.invalid/debian/p.deb HTTP/1.1"]


def test_an_engine_is_told_to_reach_this_machine_directly(proxy: Proxy) -> None:
    """An engine asks itself whether it is ready. The value of NO_PROXY is kept and extended."""
    assert proxy.asked == []
    code = "import os, time; print(os.environ['no_proxy'], os.environ['NO_PROXY'], flush=True); time.sleep(60)"
    engine = start_engine(("python3", "-c", code), env={"NO_PROXY": "corp.example"})
    try:
        while not engine.log_tail():
            assert engine.wait(0.01) is None
        lower, upper = engine.log_tail()[0].split()
    finally:
        engine.terminate(0.0)
    assert lower == upper == "corp.example,localhost,127.0.0.1,::1,127.0.0.0/8"


@pytest.mark.parametrize("env", [{}, {"NO_PROXY": "a"}, {"HTTP_PROXY": ""}])
def test_without_a_proxy_no_exception_is_set(env: dict[str, str]) -> None:
    """The environment stays as it is."""
    assert past_proxies(env) == {}


@pytest.mark.slow
@pytest.mark.fault("the environment names a proxy, and `up --ask` asks its own server", area="secrets", outcome="held")
def test_up_asks_its_own_server_without_the_proxy(proxy: Proxy, tmp_path: Path) -> None:
    """Start, readiness, warm-up, sleep, wake and the question itself."""
    app = write_app(tmp_path / "app", port=unused_port())
    env = {"TORPOR_CACHE": str(tmp_path / "c"), "TORPOR_API_KEY": "k"}
    ran = torpor("up", str(app), "--backend", "standby", "--ask", "Well?", env=env)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip()
    assert proxy.asked == []


@pytest.mark.slow
def test_a_probe_of_this_machine_bypasses_the_proxy(proxy: Proxy) -> None:
    """The whole command, including the request for the model's name."""
    models = Reply(headers={"Content-Type": "application/json"}, pieces=(b'{"data": [{"id": "m"}]}',))
    with ChatServer([models, answer("Yes")]) as server:
        ran = torpor("probe", server.url.replace("127.0.0.1", "localhost"), env=dict(os.environ))
    assert ran.returncode == 0, ran.stderr
    assert (ran.stdout.strip(), proxy.asked) == ("Yes", [])
