"""`torpor.engine.process`: an engine's session, output and end."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.conftest import is_running, living_members, wait_until_gone
from torpor import ConfigurationError, Engine, start_engine
from torpor.engine.launching import ends_started_engines, signals_held
from torpor.engine.process import LOG_VARIABLE
from torpor.guard import GuardRules
from torpor.guard.keys import LifecycleKey

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Protocol

    class Start(Protocol):
        """Starts a Python program as an engine."""

        def __call__(self, code: str, *arguments: str, env: dict[str, str] | None = None) -> Engine:
            """Start the engine; it is ended after the test."""


FORK_TWO = """
import os, signal, sys, time
for _ in range(2):
    if os.fork() == 0:
        {in_child}
        while True:
            signal.pause()
{in_leader}
os.write(1, b"up\\n")
while True:
    signal.pause()
"""


@pytest.fixture
def start() -> Iterator[Start]:
    """A factory of engines that run a piece of Python."""
    engines: list[Engine] = []

    def run(code: str, *arguments: str, env: dict[str, str] | None = None) -> Engine:
        engines.append(start_engine((sys.executable, "-c", code, *arguments), env=env))
        return engines[-1]

    yield run
    for engine in engines:
        engine.terminate(0.0)


def wait_for_line(engine: Engine, text: str, timeout_s: float = 30.0) -> None:
    """Wait until the engine has printed a line."""
    deadline = time.monotonic() + timeout_s
    while text not in engine.log_tail():
        assert time.monotonic() < deadline, f"{text!r} is not in {engine.log_tail()}"
        time.sleep(0.005)


def test_a_program_that_is_not_there_is_a_configuration_error() -> None:
    """The message names the program and the cures."""
    with pytest.raises(ConfigurationError, match=r"'no-such-engine' cannot be started: No such file.*`python` option"):
        start_engine(("no-such-engine", "--port", "1"))


def test_an_engine_leads_its_own_session_and_has_its_replica_id(start: Start) -> None:
    """It gets the given variables, which override the caller's, and its replica id. It has no controlling terminal."""
    code = (
        "import os; print(os.getsid(0) == os.getpid(), os.environ['TORPOR_REPLICA_ID'], os.environ['MINE'], flush=True)"
    )
    engine = start(code, env={"MINE": "1"})
    assert engine.wait(30) == 0
    assert engine.log_tail() == (f"True {engine.replica_id} 1",)
    assert len(engine.replica_id) == 16
    assert engine.guard_key is None


def test_the_boot_document_arrives_once_and_leaves_no_descriptor() -> None:
    """The launcher reads the pipe to its end. Afterwards neither its children nor the environment have it."""
    code = """
import json, os, subprocess, sys
from torpor.guard import read_boot
boot = read_boot()
again = read_boot()
child = "import os; print(sorted(os.listdir('/proc/self/fd')), [k for k in os.environ if k == 'TORPOR_BOOT_FD'])"
seen = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True).stdout.strip()
print(json.dumps([boot.key.digests, boot.replica_id, boot.rules.public, again is None, seen]))
"""
    engine = start_engine((sys.executable, "-c", code), guard=GuardRules(public=("/v1/models",)))
    assert engine.wait(30) == 0
    digests, replica_id, public, nothing_left, seen = json.loads(engine.log_tail()[-1])
    assert (replica_id, public, nothing_left) == (engine.replica_id, ["/v1/models"], True)
    assert digests == LifecycleKey(engine.guard_key).digests
    assert seen == "['0', '1', '2', '3'] []"  # listing the folder opens the fourth


def test_the_key_is_neither_in_the_environment_nor_on_the_command_line() -> None:
    """So a list of processes does not show it."""
    engine = start_engine(
        (sys.executable, "-c", "import time; time.sleep(60)"), guard=GuardRules(public=("/v1/models",))
    )
    try:
        process = psutil.Process(engine.pid)
        assert engine.guard_key is not None
        assert engine.guard_key not in str(process.environ()) + str(process.cmdline())
    finally:
        engine.terminate(0.0)


def test_the_last_lines_are_kept_and_long_ones_cut(start: Start) -> None:
    """The number of lines and their length are limited. Bytes that are not UTF-8 are harmless."""
    code = r"""
import sys
out = sys.stdout.buffer
for number in range(1000):
    out.write(b"line %d\n" % number)
out.write(b"x" * 5_000_000 + b"\n")
out.write(b"broken \xff\xfe\n")
out.write(b"no line end")
"""
    engine = start(code)
    assert engine.wait(30) == 0
    tail = engine.log_tail()
    assert len(tail) == 200
    assert tail[-1] == "no line end"
    assert tail[-2].startswith("broken")
    assert tail[-3] == "x" * 2000
    assert tail[0] == "line 803"


def test_errors_and_output_are_read_in_the_order_of_printing(start: Start) -> None:
    """Standard error uses the same pipe."""
    engine = start("import sys; print('out', flush=True); print('err', file=sys.stderr, flush=True); print('end')")
    assert engine.wait(30) == 0
    assert engine.log_tail() == ("out", "err", "end")


def test_an_end_is_noticed_within_100_ms(start: Start) -> None:
    """From SIGKILL to the notice, the best of three: a busy machine may be slower once."""
    lags = []
    for _ in range(3):
        engine = start("import signal; print('up', flush=True); signal.pause()")
        wait_for_line(engine, "up")
        threading.Timer(0.05, os.kill, (engine.pid, signal.SIGKILL)).start()
        assert engine.poll() is None
        began = time.monotonic()
        assert engine.wait(30) == -signal.SIGKILL
        lags.append(time.monotonic() - began - 0.05)
        assert engine.poll() == -signal.SIGKILL
    assert min(lags) < 0.1


def test_an_exit_code_is_kept(start: Start) -> None:
    """`wait` and `terminate` return the leader's code, however often they are called."""
    engine = start("raise SystemExit(7)")
    assert [engine.wait(30), engine.poll(), engine.terminate(), engine.terminate()] == [7, 7, 7, 7]


def test_a_wait_has_a_deadline(start: Start) -> None:
    """None means that it still runs."""
    engine = start("import time; time.sleep(60)")
    began = time.monotonic()
    assert engine.wait(0.05) is None
    assert time.monotonic() - began < 30


def test_terminate_asks_every_process_first(start: Start) -> None:
    """SIGTERM goes to the whole tree, so a leader that waits for its children can end too."""
    code = FORK_TWO.format(
        in_child="signal.signal(signal.SIGTERM, lambda *_: os._exit(0))",
        in_leader="signal.signal(signal.SIGTERM, lambda *_: (os.wait(), os.wait(), print('clean', flush=True), os._exit(5)))",
    )
    engine = start(code)
    wait_for_line(engine, "up")
    assert engine.terminate(30) == 5
    assert engine.log_tail()[-1] == "clean"
    assert wait_until_gone(engine.pid) == []


def test_what_ignores_sigterm_is_killed_after_the_grace(start: Start) -> None:
    """The whole tree ignores SIGTERM, and is killed after the grace time."""
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    engine = start(FORK_TWO.format(in_child=deaf, in_leader=deaf))
    wait_for_line(engine, "up")
    assert len(living_members(engine.pid)) == 3
    began = time.monotonic()
    assert engine.terminate(0.3) == -signal.SIGKILL
    assert 0.3 <= time.monotonic() - began < 30
    assert wait_until_gone(engine.pid) == []


def test_children_do_not_outlive_their_leader(start: Start) -> None:
    """If a leader crashes, its workers are killed at once, without a call of `terminate`."""
    engine = start(FORK_TWO.format(in_child="pass", in_leader="pass"))
    wait_for_line(engine, "up")
    assert len(living_members(engine.pid)) == 3
    os.kill(engine.pid, signal.SIGKILL)
    assert wait_until_gone(engine.pid, 2.0) == []


def test_a_child_with_its_own_session_is_ended_too(start: Start) -> None:
    """A descendant that left the session still belongs to the tree while its parent lives."""
    engine = start(FORK_TWO.format(in_child="os.setsid(); os.write(1, b'%d\\n' % os.getpid())", in_leader="pass"))
    wait_for_line(engine, "up")
    while len(lines := [line for line in engine.log_tail() if line.isdigit()]) < 2:
        time.sleep(0.005)
    engine.terminate(2)
    deadline = time.monotonic() + 2
    while any(is_running(int(line)) for line in lines) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(is_running(int(line)) for line in lines)


def test_engines_leave_neither_descriptors_nor_threads(start: Start) -> None:
    """After ten engines this process has as many of both as before."""
    me = psutil.Process()
    start("pass").wait(5)
    time.sleep(0.1)
    before = me.num_fds(), threading.active_count()
    for _ in range(10):
        start("print('x')").wait(5)
    deadline = time.monotonic() + 5
    while (me.num_fds(), threading.active_count()) > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (me.num_fds(), threading.active_count()) <= before


def test_output_also_goes_to_a_file(start: Start, tmp_path: Path) -> None:
    """`TORPOR_ENGINE_LOG` names it. Output is appended, and its folder is created."""
    log = tmp_path / "logs" / "engine.log"
    for word in ("first", "second"):
        engine = start(f"print({word!r})", env={LOG_VARIABLE: str(log)})
        assert engine.wait(30) == 0
        assert engine.log_tail() == (word,)
    assert log.read_text() == "first\nsecond\n"


def test_output_also_goes_to_standard_error(start: Start, capfd: pytest.CaptureFixture[str]) -> None:
    """`TORPOR_ENGINE_LOG=-`, and standard error stays open afterwards."""
    engine = start("print('hello')", env={LOG_VARIABLE: "-"})
    assert engine.wait(30) == 0
    assert engine.log_tail() == ("hello",)
    print("still open", file=sys.stderr)
    assert capfd.readouterr().err == "hello\nstill open\n"


def test_a_log_file_that_cannot_be_written_is_a_configuration_error(tmp_path: Path) -> None:
    """The error comes before anything is started."""
    (tmp_path / "file").write_text("")
    where = str(tmp_path / "file" / "engine.log")
    with pytest.raises(ConfigurationError, match=f"{LOG_VARIABLE} is '{where}', which cannot be written: "):
        start_engine(("true",), env={LOG_VARIABLE: where})


def test_ctrl_c_is_held_back_until_the_engine_is_known() -> None:
    """A KeyboardInterrupt is raised at the end of the block, never between the fork and its result."""
    steps = []

    def interrupted_launch() -> None:
        with signals_held():
            signal.raise_signal(signal.SIGINT)
            steps.append("after the signal")
        steps.append("never")

    with pytest.raises(KeyboardInterrupt):
        interrupted_launch()
    assert steps == ["after the signal"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_engine_that_was_not_returned_is_ended() -> None:
    """A launch hook fails after it started an engine."""
    pids = []

    def careless() -> None:
        with ends_started_engines():
            pids.append(start_engine((sys.executable, "-c", "import time; time.sleep(60)")).pid)
            raise ValueError("a bug in the hook")

    with pytest.raises(ValueError, match="a bug in the hook"):
        careless()
    assert wait_until_gone(pids[0]) == []
