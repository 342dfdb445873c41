"""`torpor.runtime.captured_secrets`: a snapshot that would contain a secret is refused, unless the deployment allows it."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest
import structlog
from typing_extensions import override

from torpor import Deployment, ImagePatch, Model, Plugin, SnapshotError, hookimpl
from torpor.engine.process import LOG_VARIABLE
from torpor.platforms.local.backends import Standby
from torpor.platforms.local.server import LocalServer
from torpor.platforms.modal.server import SnapshotServer
from torpor.runtime.captured_secrets import check_environments, secret_names
from torpor.testing import StandIn
from torpor.values.client_keys import CLIENT_VARIABLES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import MakeBoot
    from torpor import Engine, Recipe
    from torpor.runtime.boot import Boot
    from torpor.testing.pytest_plugin import StandInDeployment

VALUE = "value-that-nobody-may-read"


@dataclass(frozen=True, kw_only=True)
class Leaky(StandIn):
    """An engine that gets a secret which this process does not have any more."""

    @hookimpl
    @override
    def launch(self, deployment: Deployment, recipe: Recipe) -> Engine:
        os.environ["SOME_API_KEY"] = VALUE
        try:
            return StandIn.launch(self, deployment, recipe)
        finally:
            del os.environ["SOME_API_KEY"]


@dataclass(frozen=True, kw_only=True)
class Careless(Plugin):
    """Puts a secret into the image's environment."""

    plugin_name = "careless"

    @hookimpl
    @override
    def prepare_image(self, deployment: Deployment) -> ImagePatch:
        return ImagePatch(env={"HF_TOKEN": VALUE})


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN",
        "MODAL_TOKEN_SECRET",
        "OPENAI_API_KEY",
        "MYAPIKEY_OPENAI_APIKEY",
        "DB_PASSWORD",
        "GITHUB_TOKEN",
        "aws_secret_access_key",
        "HF_TOKEN_READ",
        "NEW_RELIC_LICENSE_KEY",
        "NEW_RELIC_TOKEN",
        "MINIO_TOKEN",
    ],
)
def test_a_secret_is_recognised_by_its_name(name: str) -> None:
    """An empty variable holds no secret."""
    assert secret_names({name: "x"}) == (name,)
    assert secret_names({name: ""}) == ()


@pytest.mark.parametrize(
    "name",
    [
        "PATH",
        "TOKENIZERS_PARALLELISM",
        "MAX_TOKENS",
        "KEYBOARD",
        "HF_TOKEN_PATH",
        "SSH_AUTH_SOCK",
        "XDG_SESSION_ID",
        "SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK",
        "SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION",
        "SGLANG_INIT_NEW_TOKEN_RATIO",
        "SGLANG_MIN_NEW_TOKEN_RATIO_FACTOR",
        "SGLANG_NEW_TOKEN_RATIO_DECAY_STEPS",
        "MODAL_IDENTITY_TOKEN",
    ],
)
def test_names_that_only_resemble_a_secret_pass(name: str) -> None:
    """False alarms would make users switch the check off: paths, token counts, and variables that Modal sets everywhere."""
    assert secret_names({name: "x"}) == ()


def status(deployment: Deployment) -> int:
    """The status that a client gets."""
    url = f"http://127.0.0.1:{deployment.port}/v1/models"
    return httpx.get(url, trust_env=False, timeout=30).status_code


def serving(boot: Boot) -> Boot:
    """The same boot, serving."""
    boot.cold_start()
    boot.serve()
    return boot


def test_a_secret_that_only_the_engine_has_prevents_the_sleep_and_the_server_keeps_serving(
    standin_deployment: StandInDeployment, make_boot: MakeBoot
) -> None:
    """The message names the variable but not its value. No request was refused because of it."""
    boot = serving(make_boot(standin_deployment(engine=Leaky())))
    with pytest.raises(
        SnapshotError, match=r"Nothing was put to sleep.*\(SOME_API_KEY\).*env -u SOME_API_KEY"
    ) as caught:
        boot.sleep()
    assert VALUE not in str(caught.value)
    assert boot.report.records[-1].stage == "serve"
    assert status(boot.deployment) == 200


def test_the_frameworks_own_environment_counts(
    standin_deployment: StandInDeployment, make_boot: MakeBoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Modal its process is in the same snapshot. Empty variables and similar names do not count."""
    boot = serving(make_boot(standin_deployment()))
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("MODAL_IDENTITY_TOKEN", VALUE)  # Modal puts it into every container
    boot.sleep()
    boot.wake()
    monkeypatch.setenv("HF_TOKEN", VALUE)
    with pytest.raises(SnapshotError, match=r"\(HF_TOKEN\)"):
        boot.sleep()


@pytest.mark.fault("the shell holds the keys of a client command", area="secrets", outcome="held")
def test_keys_of_clients_and_settings_of_plugins_reach_no_engine(
    standin_deployment: StandInDeployment, make_boot: MakeBoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are for commands such as `torpor probe`, and for plugins. No engine inherits them, so nothing is refused."""
    assert {"TORPOR_API_KEY", "TORPOR_MODAL_KEY", "TORPOR_MODAL_SECRET"} == CLIENT_VARIABLES
    for name in (*CLIENT_VARIABLES, "TORPOR_PLUGIN_OTEL__HEADERS"):
        monkeypatch.setenv(name, VALUE)
    boot = serving(make_boot(standin_deployment()))
    environment = psutil.Process(boot.running_engine.pid).environ()
    assert environment["PATH"] == os.environ["PATH"]
    assert VALUE not in environment.values()


def test_the_option_turns_the_refusal_into_a_warning(
    standin_deployment: StandInDeployment, make_boot: MakeBoot
) -> None:
    """The engine sleeps. The log holds the name but not the value."""
    deployment = replace(standin_deployment(engine=Leaky()), secrets_in_snapshot="warn")
    boot = serving(make_boot(deployment))
    with structlog.testing.capture_logs() as logs:
        boot.sleep()
    (warning,) = [entry for entry in logs if entry["event"] == "secrets_in_snapshot"]
    assert (warning["log_level"], warning["variables"]) == ("warning", ["SOME_API_KEY"])
    assert VALUE not in str(logs)
    assert status(deployment) == 503


def test_a_standby_is_not_checked(standin_deployment: StandInDeployment, tmp_path: Path) -> None:
    """A standby is never written to disk."""
    server = LocalServer(standin_deployment(engine=Leaky()), backend=Standby(), root=tmp_path)
    try:
        server.start()
        assert status(server.deployment) == 200
    finally:
        server.stop()


@pytest.mark.fault("a secret stands in a variable of a harmless name", area="secrets", outcome="refused")
def test_a_secret_in_a_value_is_refused_by_name_and_kind(
    standin_deployment: StandInDeployment, make_boot: MakeBoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HTTPS_PROXY with a password, DATABASE_URL, ...: the message holds the kind but not the value."""
    boot = serving(make_boot(standin_deployment()))
    monkeypatch.setenv("SOME_MIRROR", f"https://me:{VALUE}@mirror.test/simple")
    with pytest.raises(SnapshotError, match=r"\(SOME_MIRROR: a URL with a password\)") as caught:
        boot.sleep()
    assert VALUE not in str(caught.value)
    assert status(boot.deployment) == 200


@dataclass(frozen=True, kw_only=True)
class Talkative(Plugin):
    """Puts a secret on the engine's command line."""

    plugin_name = "talkative"

    @hookimpl
    @override
    def prepare_image(self, deployment: Deployment) -> ImagePatch:
        return ImagePatch(engine_args=("--hub-token", VALUE))


@pytest.mark.fault("a secret stands on the engine's command line", area="secrets", outcome="refused")
def test_a_secret_among_the_engines_arguments_is_refused() -> None:
    """Every user of the machine can read command lines. The message names the flag."""
    deployment = Deployment(name="d", model=Model(path="/", served_name="m"), plugins=(StandIn(),))
    with pytest.raises(SnapshotError, match=r"the engine's arguments hold .*\(--api-key\).*extra_args") as caught:
        check_environments(deployment, [], command_lines=[("python", "-m", "engine", "--api-key", VALUE)])
    assert VALUE not in str(caught.value)
    with structlog.testing.capture_logs() as logs:
        check_environments(replace(deployment, secrets_in_snapshot="warn"), [], command_lines=[(f"--api-key={VALUE}",)])
    assert logs[0]["arguments"] == ["--api-key"]


@pytest.mark.fault("the platform puts a secret into every container", area="secrets", outcome="held")
def test_what_the_platform_sets_is_a_warning_and_never_ends_a_start() -> None:
    """Nobody can remove it. A variable of the user is still refused."""
    deployment = Deployment(name="d", model=Model(path="/", served_name="m"), plugins=(StandIn(),))
    container = {"MODAL_TASK_ID": "ta-1", "MODAL_IDENTITY_TOKEN": VALUE, "MODAL_OTHER_SECRET": VALUE, "PATH": "/"}
    with structlog.testing.capture_logs() as logs:
        check_environments(deployment, [container, container])
    (warning,) = logs
    assert (warning["log_level"], warning["variables"]) == ("warning", ["MODAL_IDENTITY_TOKEN", "MODAL_OTHER_SECRET"])
    assert VALUE not in str(logs)
    with pytest.raises(SnapshotError, match=r"\(HF_TOKEN\)"):
        check_environments(deployment, [{**container, "HF_TOKEN": VALUE}])


@pytest.fixture
def modal_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[SnapshotServer]:
    """A server as Modal creates it. After the test it is stopped, and this process's environment is restored."""
    for name in (LOG_VARIABLE, "PYTHONPATH"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    server = SnapshotServer()
    yield server
    server.stop()


def test_on_modal_a_secret_ends_the_start_before_the_engine_is_launched(
    standin_deployment: StandInDeployment, modal_server: SnapshotServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error comes before the minutes of a cold start. The image's environment counts too."""
    monkeypatch.setattr(SnapshotServer, "deployment", standin_deployment(Careless()), raising=False)
    with pytest.raises(SnapshotError, match=r"\(HF_TOKEN\).*BuildStep\.secrets"):
        modal_server.start()
    assert modal_server._boot is not None
    assert modal_server._boot.engine is None


def test_on_modal_the_engines_processes_are_checked_before_the_snapshot(
    standin_deployment: StandInDeployment, modal_server: SnapshotServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A secret that only the engine has is found too. The start fails and leaves nothing running."""
    monkeypatch.setattr(SnapshotServer, "deployment", standin_deployment(engine=Leaky()), raising=False)
    with pytest.raises(SnapshotError, match=r"\(SOME_API_KEY\)"):
        modal_server.start()
    assert modal_server._boot is not None
    assert modal_server._boot.running_engine.poll() is not None


def test_on_modal_a_secret_among_the_engines_arguments_ends_the_start_before_the_launch(
    standin_deployment: StandInDeployment, modal_server: SnapshotServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arguments that a plugin adds count too."""
    monkeypatch.setattr(SnapshotServer, "deployment", standin_deployment(Talkative()), raising=False)
    with pytest.raises(SnapshotError, match=r"\(--hub-token\)") as caught:
        modal_server.start()
    assert VALUE not in str(caught.value)
    assert modal_server._boot is not None
    assert modal_server._boot.engine is None


@pytest.mark.parametrize("how", [{"snapshot": False}, {"secrets_in_snapshot": "warn"}])
def test_on_modal_a_server_without_a_snapshot_or_with_the_option_starts(
    standin_deployment: StandInDeployment,
    modal_server: SnapshotServer,
    monkeypatch: pytest.MonkeyPatch,
    how: dict[str, str | bool],
) -> None:
    """Without a snapshot no secret is captured."""
    deployment = standin_deployment(Careless())
    deployment = (
        replace(deployment, snapshot=False) if "snapshot" in how else replace(deployment, secrets_in_snapshot="warn")
    )
    monkeypatch.setattr(SnapshotServer, "deployment", deployment, raising=False)
    modal_server.start()
    modal_server.wake()
    assert status(deployment) == 200
