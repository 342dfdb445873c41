"""`torpor ray up`, `status` and `down` where they cannot work. On a real cluster: tests/platforms/ray/test_cluster.py."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from torpor import ConfigurationError, ServerUnavailableError
from torpor.cli import ray as command
from torpor.cli.options import StoreOptions

if TYPE_CHECKING:
    from collections.abc import Callable

NO_STORE = StoreOptions(snapshots="", trust=None, unsigned=False, identity=None)


def up(
    *files: str,
    address: str = "auto",
    host: str = "0.0.0.0",
    port: int = 8000,
    timeout_s: float = 1.0,
    store: StoreOptions = NO_STORE,
) -> None:
    """The command, as its options arrive."""
    command.run_ray_up(files, address, host=host, port=port, head_only=False, timeout_s=timeout_s, **store)


@pytest.fixture
def app(tmp_path: Path) -> str:
    """An app file."""
    file = tmp_path / "small.py"
    file.write_text(
        "from torpor import Deployment, Model\nfrom torpor.testing import StandIn\n"
        "deployment = Deployment(name='small', model=Model(path='/models/small'), plugins=(StandIn(),))\n"
    )
    return str(file)


def test_a_wrong_number_names_what_is_allowed(app: str) -> None:
    """Port and deadline."""
    with pytest.raises(ConfigurationError, match="--port is 70000; allowed are 1 to 65535"):
        up(app, port=70_000)
    with pytest.raises(ConfigurationError, match="--timeout is 0; it has to be more than 0 seconds"):
        up(app, timeout_s=0)


@pytest.mark.parametrize(
    "more",
    [{"trust": Path("keys")}, {"unsigned": True}, {"identity": Path("id")}],
    ids=["trust", "unsigned", "identity"],
)
def test_trust_without_a_store_is_refused(app: str, more: dict[str, object]) -> None:
    """It would mean nothing."""
    with pytest.raises(ConfigurationError, match="name it with --snapshots URL"):
        up(app, store={**NO_STORE, **more})  # type: ignore[typeddict-item]


def test_a_password_in_the_url_of_the_store_is_refused(app: str) -> None:
    """It would stand in the cluster's configuration. The error does not repeat it."""
    with pytest.raises(ConfigurationError, match="has a user or a password in it") as error:
        up(app, store={**NO_STORE, "snapshots": "s3://key:se/cret@bucket/snapshots"})
    assert "cret" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("trust", None, "No such file"),
        ("trust", "not a key", "not a key"),
        ("trust", "", "holds no public key"),
        ("identity", None, "No such file"),
        ("identity", "", "holds no age identity"),
    ],
)
def test_files_of_keys_are_read_before_anything_is_deployed(
    app: str, tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    """A replica that cannot read them would start cold, and only its log would say why."""
    file = tmp_path / "keys"
    if content is not None:
        file.write_text(content)
        file.chmod(0o600)
    with pytest.raises(ConfigurationError, match=message) as error:
        up(app, store={**NO_STORE, "snapshots": "s3://bucket/snapshots", name: file})  # type: ignore[misc]
    assert str(file) in str(error.value)


def test_trusted_keys_beside_unsigned_snapshots_are_refused(app: str, tmp_path: Path) -> None:
    """One of the two is meant."""
    store = {**NO_STORE, "snapshots": "s3://bucket/snapshots", "trust": tmp_path / "keys", "unsigned": True}
    with pytest.raises(ConfigurationError, match="--trust and --unsigned exclude each other"):
        up(app, store=store)  # type: ignore[arg-type]


def test_an_address_at_which_haproxy_does_not_find_serve_is_refused(
    app: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where HAProxy mode is on; elsewhere it is told. What is no address is refused in any mode."""
    monkeypatch.setattr(command, "find_spec", lambda _: None)  # what comes next is refused
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    with pytest.raises(ConfigurationError, match=r"--host is 10.0.0.5, .*Leave --host out"):
        up(app, host="10.0.0.5")
    monkeypatch.delenv("RAY_SERVE_ENABLE_HA_PROXY")
    with pytest.raises(ConfigurationError, match="pip install"):
        up(app, host="10.0.0.5")
    assert "note: --host is 10.0.0.5. If Ray was started with RAY_SERVE_ENABLE_HA_PROXY=1" in capsys.readouterr().err
    with pytest.raises(ConfigurationError, match="--host is 'head'; it has to be an address"):
        up(app, host="head")


def test_without_ray_every_command_says_how_to_get_it(app: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the laptop as on a node."""
    monkeypatch.setattr(command, "find_spec", lambda _: None)
    commands: list[Callable[[], None]] = [
        lambda: up(app),
        lambda: command.run_ray_status("auto", as_json=True),
        lambda: command.run_ray_down((), "auto"),
    ]
    for run in commands:
        with pytest.raises(ConfigurationError, match=r"pip install 'torpor\[ray\]'"):
            run()


@pytest.fixture
def _ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if Ray were installed: these checks come before its import."""
    monkeypatch.setattr(command, "find_spec", lambda _: object())


@pytest.mark.usefixtures("_ray")
@pytest.mark.parametrize(
    "address",
    ["head", "head:port", "ray://head:10001", "head:0", "head:70000", "head:\uff11", f"{'a' * 64}:1", ".head:1"],
)
def test_an_address_that_is_none_is_refused(address: str) -> None:
    """With an example of one."""
    with pytest.raises(ConfigurationError, match="give HOST:PORT of its head"):
        command.run_ray_status(address, as_json=False)


@pytest.mark.usefixtures("_ray")
def test_an_address_at_which_nobody_listens_is_said_at_once() -> None:
    """Ray itself would try for a minute."""
    with pytest.raises(ServerUnavailableError, match=r"No Ray cluster answers at 127.0.0.1:1: Connection refused"):
        command.run_ray_status("127.0.0.1:1", as_json=False)


@pytest.mark.usefixtures("_ray")
def test_the_variable_names_the_cluster_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """RAY_ADDRESS, as for Ray's own commands."""
    monkeypatch.setenv("RAY_ADDRESS", "nowhere")
    with pytest.raises(ConfigurationError, match="RAY_ADDRESS is 'nowhere', which is no address"):
        command.run_ray_down((), "auto")
