"""A warning names what a capture would refuse once the engine is ready, before warm-up, sleep and dump."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import structlog

from tests.snapshots.conftest import wait_for
from torpor import Deployment, Model
from torpor.runtime.boot import Boot
from torpor.snapshots.foresight import foreseen, warn_of_held
from torpor.snapshots.sandbox.engine import SandboxEngine
from torpor.testing import StandIn

if TYPE_CHECKING:
    from torpor.snapshots.sandbox.sandbox import Sandbox


@pytest.mark.fault("an engine of a third party holds what a capture refuses", area="capture", outcome="refused")
def test_what_a_capture_would_refuse_is_named_with_a_cure_once_the_engine_is_ready(sandbox: Sandbox) -> None:
    """Files in a temporary folder, deleted files, a terminal. An engine without them gets no warning."""
    boot = Boot(Deployment(name="d", model=Model(path="/srv/m", served_name="m"), plugins=(StandIn(),)))
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        lost, gone = (Path(folder) / name for name in ("lost", "gone"))
        program = f"""
import os, time, sys
sys.stdin.readline()
files = [open({str(lost)!r}, "w"), open({str(gone)!r}, "w"), os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)]
os.unlink({str(gone)!r})
print("there", flush=True); time.sleep(60)
""".replace("sys.stdin.readline()\n", "print('before', flush=True)\nwhile not os.path.exists('GO'): time.sleep(0.01)\n")
        program = program.replace("GO", f"{folder}/go")
        sandbox.spawn([sys.executable, "-c", program], env={"PATH": "/usr/bin:/bin"})
        assert wait_for(lambda: "before" in sandbox.log_tail()), sandbox.log_tail()
        assert foreseen(boot, sandbox) == ()
        (Path(folder) / "go").touch()
        assert wait_for(lambda: "there" in sandbox.log_tail()), sandbox.log_tail()
        found = dict(foreseen(boot, sandbox))
        assert found[f"{gone} (deleted) is open"].startswith("close it before the capture")
        temporary = next(what for what in found if what.startswith(f"{lost} is open, in /tmp, which a reboot"))
        assert "TORPOR_LASTING_FOLDERS" in found[temporary]
        assert any("has a terminal open" in what for what in found)
        boot.engine = SandboxEngine(sandbox, replica_id="0" * 16, guard_key=None)
        with structlog.testing.capture_logs() as logged:
            warn_of_held(boot)
        assert {one["held"] for one in logged if one["event"] == "capture_would_refuse"} == set(found)
