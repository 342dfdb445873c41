"""`torpor.engine_patches.process_identity`: handles of processes from before a capture are valid in every replica."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from tests.snapshots.conftest import wait_for
from torpor.snapshots.criu.run import dump, restore

if TYPE_CHECKING:
    from tests.snapshots.conftest import MakeSandbox
    from torpor.snapshots.criu.program import Criu
    from torpor.snapshots.sandbox.sandbox import Sandbox

PROGRAM = Path(__file__).with_name("identity_program.py")
TIMEOUT_S = 60.0
NEW_PROCESS = """
import os, subprocess, sys
from torpor.engine_patches import process_identity
process_identity.keep_process_identities()
import psutil
one = subprocess.Popen(["sleep", "60"])
handle = psutil.Process(one.pid)
life = process_identity._life
life._start -= 1  # as after a restore: this process began at another time than was noted
life.look()
life.noticed -= 500  # noticed five seconds ago, so the process that has the pid now is none of those restored
handle._ident = (one.pid, 1.0)
print(handle.is_running())
one.kill()
"""


def answers(sandbox: Sandbox) -> dict[str, object]:
    """Ask the program about its handles."""
    with sandbox.connect(8000, timeout_s=30.0) as connection, connection.makefile() as lines:
        return cast("dict[str, object]", json.loads(lines.readline()))


@pytest.mark.criu
@pytest.mark.slow
@pytest.mark.fault("a watchdog holds handles of processes over a capture", area="process identity", outcome="held")
@pytest.mark.ordinary_user
def test_a_handle_of_a_process_is_valid_after_two_restores(
    criu: Criu, make_sandbox: MakeSandbox, tmp_path: Path
) -> None:
    """It is running, equal, in its sets, and can send signals, also in a fork. A second capture changes nothing."""
    sandbox = make_sandbox("original")
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    sandbox.spawn([sys.executable, str(PROGRAM)], env=env)
    assert wait_for(lambda: "up" in sandbox.log_tail(), 20.0), sandbox.log_tail()
    before = answers(sandbox)
    assert before.pop("restores") == 0
    assert set(before.values()) == {True}, before
    for number in (1, 2):
        images, work = tmp_path / f"images-{number}", tmp_path / f"work-{number}"
        work.mkdir()
        dump(criu, sandbox, images, timeout_s=TIMEOUT_S)
        sandbox.kill()
        sandbox = make_sandbox("replica")
        restore(criu, sandbox, images, work=work, timeout_s=TIMEOUT_S)
        after = answers(sandbox)
        assert after.pop("restores") == number
        assert after == before


@pytest.mark.fault("another process got the pid of one that a watchdog holds", area="process identity", outcome="held")
def test_a_process_that_began_after_the_restore_does_not_count_as_restored() -> None:
    """Its pid is reused for real: a handle of the old process must not signal the new one."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ran = subprocess.run([sys.executable, "-c", NEW_PROCESS], env=env, capture_output=True, text=True, check=True)
    assert ran.stdout == "False\n"
