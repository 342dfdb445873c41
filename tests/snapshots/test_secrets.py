"""Secrets in a sandbox: the same rule as elsewhere, for everything that the images would hold."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import structlog

from tests.snapshots.conftest import wait_for
from torpor import Deployment, Model, SnapshotError
from torpor.runtime.captured_secrets import check_captured
from torpor.snapshots.sandbox.engine import SandboxEngine
from torpor.snapshots.sandbox.starter import SandboxStarter
from torpor.testing import StandIn
from torpor.values.client_keys import CLIENT_VARIABLES

if TYPE_CHECKING:
    from torpor.snapshots.sandbox.sandbox import Sandbox

VALUE = "swordfish"
DEPLOYMENT = Deployment(name="x", model=Model(path="/m"), plugins=(StandIn(),))

HIDDEN = """
import os, time
began, beginning = os.pipe()       # closed by the exec
if os.fork() == 0:                 # a process that left session and parent, and alone has the secret
    os.setsid()
    if os.fork() == 0:
        os.execve("/bin/sleep", ["sleep", "60"], {"AWS_SECRET_ACCESS_KEY": "swordfish", "TOKENIZERS_PARALLELISM": "no"})
    os._exit(0)
os.close(beginning)
os.wait()
os.read(began, 1)
print("there", flush=True)
time.sleep(60)
"""


def test_every_process_of_the_sandbox_is_checked_and_nothing_else(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever a variable came from. The framework's own process is not captured, so its variables do not count."""
    monkeypatch.setenv("HF_TOKEN", VALUE)
    sandbox.spawn([sys.executable, "-c", HIDDEN], env={"PATH": "/usr/bin:/bin"})
    assert wait_for(lambda: "there" in sandbox.log_tail()), sandbox.log_tail()
    engine = SandboxEngine(sandbox, replica_id="0" * 16, guard_key=None)
    assert len(engine.captured_pids()) == 2
    with pytest.raises(SnapshotError, match=r"what looks like a secret \(AWS_SECRET_ACCESS_KEY\)") as caught:
        check_captured(DEPLOYMENT, engine)
    assert VALUE not in str(caught.value)


def test_an_engine_that_would_get_a_secret_is_not_started(sandbox: Sandbox) -> None:
    """It is found before the start, whether it comes from the caller's environment or from the plugin."""
    starter = SandboxStarter(sandbox, DEPLOYMENT)
    with pytest.raises(SnapshotError, match=r"\(MY_API_KEY\)"):
        starter([sys.executable, "-c", "pass"], env={"MY_API_KEY": VALUE}, cwd=None, guard=None)
    assert len(sandbox.host_pids()) == 1
    assert sandbox.poll() is None


def test_the_option_starts_it_and_warns_by_name(sandbox: Sandbox) -> None:
    """The policy is the same on every platform."""
    starter = SandboxStarter(sandbox, replace(DEPLOYMENT, secrets_in_snapshot="warn"))
    with structlog.testing.capture_logs() as logs:
        engine = starter(
            [sys.executable, "-c", "import time; time.sleep(60)"], env={"MY_API_KEY": VALUE}, cwd=None, guard=None
        )
    assert engine.pid
    assert [(entry["event"], entry["variables"]) for entry in logs] == [("secrets_in_snapshot", ["MY_API_KEY"])]
    assert VALUE not in str(logs)


@pytest.mark.fault("the shell holds the keys of a client command", area="secrets", outcome="held")
def test_keys_for_client_commands_are_in_no_snapshot(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine starts without them, so nothing is refused. One that a plugin sets is refused like any other."""
    for name in CLIENT_VARIABLES:
        monkeypatch.setenv(name, VALUE)
    starter = SandboxStarter(sandbox, DEPLOYMENT)
    with pytest.raises(SnapshotError, match=r"\(TORPOR_API_KEY\)"):
        starter([sys.executable, "-c", "pass"], env={"TORPOR_API_KEY": VALUE}, cwd=None, guard=None)
    engine = starter([sys.executable, "-c", "import time; time.sleep(60)"], env={}, cwd=None, guard=None)
    check_captured(DEPLOYMENT, engine)
    assert VALUE not in Path(f"/proc/{engine.captured_pids()[-1]}/environ").read_text()
