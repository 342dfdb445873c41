"""`--host` and `--port` of the commands that serve: through everything, true as told, refused before anything starts."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.command_line import torpor
from torpor.app_file import App
from torpor.cli.listening import engine_at, public_warning
from torpor.deployment import Deployment, Model
from torpor.doctor.app import cautions
from torpor.errors import ConfigurationError
from torpor.lifecycle import Lifecycle
from torpor.testing import StandIn
from torpor.values.addresses import url

APP = """
from torpor import Deployment, Model
from torpor.testing import StandIn
deployment = Deployment(name="listens", model=Model(path="/models/small"), plugins=(StandIn(),), port=PORT)
"""
LINES = [("up", "APP"), ("bench", "APP"), ("snapshot", "compare", "APP"), ("snapshot", "restore", "DIR")]


@pytest.fixture
def app(tmp_path: Path, free_port: int) -> Path:
    """An app file whose engine listens on a free port."""
    file = tmp_path / "listens.py"
    file.write_text(APP.replace("PORT", str(free_port)))
    return file


def deployment(port: int = 8000, host: str = "127.0.0.1") -> Deployment:
    """A deployment of the stand-in."""
    return Deployment(name="d", model=Model(path="/m"), plugins=(StandIn(),), port=port, host=host)


def loaded() -> App:
    """An app with that deployment."""
    lifecycle = Lifecycle(deployment())
    return App(file=Path("app.py"), deployment=lifecycle.deployment, lifecycle=lifecycle)


def test_an_engine_gets_the_address_that_was_given(free_port: int) -> None:
    """In its command line, as everywhere else."""
    placed = engine_at(loaded(), "::1", free_port)
    argv = placed.deployment.engine.engine_argv(placed.deployment, placed.lifecycle.recipe())
    assert [argv[argv.index(flag) + 1] for flag in ("--host", "--port")] == ["::1", str(free_port)]


def test_an_engine_listens_on_loopback_by_default() -> None:
    """Any other address must be given."""
    small = deployment()
    argv = small.engine.engine_argv(small, Lifecycle(small).recipe())
    assert argv[argv.index("--host") + 1] == "127.0.0.1"


def test_an_engine_that_listens_itself_gets_no_privileged_port() -> None:
    """The message says which commands may use one."""
    with pytest.raises(ConfigurationError, match=r"--port is 80; .* from 1024 to 65535"):
        engine_at(loaded(), None, 80)


def test_a_public_server_without_keys_is_a_warning() -> None:
    """On the terminal; also in plan and doctor, if the deployment has the address."""
    assert public_warning(deployment(), "127.0.0.1", 8000) == ""
    assert "http://0.0.0.0:8000 is open to other machines" in public_warning(deployment(), "0.0.0.0", 8000)
    open_one = deployment(host="0.0.0.0")
    assert [one.what for one in cautions(open_one, Lifecycle(open_one).recipe())] == ["address"]
    assert cautions(deployment(), Lifecycle(deployment()).recipe()) == ()


@pytest.mark.slow
@pytest.mark.fault("a port or an address that cannot be", area="public port", outcome="refused")
@pytest.mark.parametrize("line", LINES, ids=lambda line: " ".join(line[:-1]))
def test_a_wrong_address_is_refused_before_anything_starts(line: tuple[str, ...], app: Path, tmp_path: Path) -> None:
    """One paragraph, exit code 2, in each command that serves."""
    words = [{"APP": str(app), "DIR": str(tmp_path / "none")}.get(word, word) for word in line]
    for options, said in (
        ("--port -1", "--port is -1"),
        ("--port 0", "--port is 0"),
        ("--host here", "--host is 'here'"),
    ):
        ran = torpor(*words, *options.split(), env={"TORPOR_CACHE": str(tmp_path / "cache")})
        assert ran.returncode == 2, ran.stderr
        assert said in ran.stderr
        assert len(ran.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
@pytest.mark.fault("another program listens on the port", area="public port", outcome="refused")
def test_a_taken_port_is_refused_before_anything_starts(app: Path, tmp_path: Path, free_port: int) -> None:
    """Both the deployment's and a given one."""
    with socket.create_server(("127.0.0.1", free_port)):
        for options in ((), ("--port", str(free_port)), ("--backend", "criu")):
            ran = torpor("up", str(app), *options, env={"TORPOR_CACHE": str(tmp_path / "cache")})
            assert ran.returncode == 2, ran.stderr
            assert f"Port {free_port} is in use" in ran.stderr
            assert "launch" not in ran.stderr


def listening_on(port: int) -> set[str]:
    """The addresses on which somebody listens."""
    found = set()
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.socket(family) as probe:
            probe.settimeout(0.2)
            if probe.connect_ex((host, port)) == 0:
                found.add(host)
    return found


def health_says(host: str, port: int, told: dict[str, str]) -> bool:
    """Whether `/health` answers this in time."""
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        if httpx.get(f"{url(host, port)}/health", trust_env=False, timeout=30).json() == told:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
def test_up_serves_at_the_address_that_it_prints(
    host: str, shown: str, app: Path, tmp_path: Path, free_port: int
) -> None:
    """And nowhere else. While asleep, it answers there what wakes it."""
    port = free_port + 1
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "torpor.cli",
            "up",
            str(app),
            "--backend",
            "standby",
            "--host",
            host,
            "--port",
            str(port),
        ],
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        assert command.stderr is not None
        try:
            deadline, line = time.monotonic() + 30, ""
            while not line.startswith("serving") and time.monotonic() < deadline:
                line = command.stderr.readline()
            assert line.startswith(f"serving small on http://{shown}:{port} ")
            assert listening_on(port) == {host}
            assert listening_on(free_port) == set()
            command.send_signal(signal.SIGUSR1)
            woken_by = f"`kill -USR2 {command.pid}` on its machine"
            assert health_says(host, port, {"state": "asleep", "woken_by": woken_by})
            command.send_signal(signal.SIGUSR2)
            assert health_says(host, port, {"state": "serving"})
        finally:
            command.terminate()
        command.communicate(timeout=30)
        assert command.returncode == 0


@pytest.mark.slow
def test_a_public_server_without_keys_warns_before_its_start(app: Path, tmp_path: Path, free_port: int) -> None:
    """As text, and with --json as a line of JSON."""
    words = ("up", str(app), "--backend", "none", "--ask", "Hello.", "--host", "0.0.0.0")
    env = {"TORPOR_CACHE": str(tmp_path / "cache")}
    told = torpor(*words, env=env).stderr.splitlines()
    assert told[0].startswith(f"warning: http://0.0.0.0:{free_port} is open to other machines, and asks for no key: ")
    told = torpor(*words, "--json", env=env).stderr.splitlines()
    assert json.loads(told[0])["warning"].startswith(f"http://0.0.0.0:{free_port} is open to other machines")


@pytest.mark.slow
def test_bench_serves_at_the_given_address(app: Path, tmp_path: Path, free_port: int) -> None:
    """Both cold starts and wakes; the deployment's own port may be taken."""
    words = ("bench", str(app), "--backend", "standby", "--starts", "1", "--host", "::1", "--port", str(free_port + 1))
    with socket.create_server(("127.0.0.1", free_port)):
        ran = torpor(*words, "--json", "-", env={"TORPOR_CACHE": str(tmp_path / "cache")})
    assert ran.returncode == 0, ran.stderr
    assert len(json.loads(ran.stdout)["starts"]) == 2
