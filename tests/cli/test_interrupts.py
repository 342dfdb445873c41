"""Ctrl-C and SIGTERM end a command with one line, whatever becomes of the exception on its way."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import os, signal, sys, time
import torpor.cli
from torpor.cli import interrupts, restore

def swallow(**options):
    interrupts.ends_on_sigterm()
    try:
        if sys.argv[3]:
            os.kill(os.getpid(), getattr(signal, sys.argv[3]))
            time.sleep(5)
    except KeyboardInterrupt:
        pass
    raise TypeError("expected a message argument")  # as `import ssl` does when a signal comes in the middle of it

restore.run_restore = swallow
torpor.cli._plain_restore = lambda words: {"folder": "nowhere"}
torpor.cli.main()
"""


def run(name: str, *before: str) -> subprocess.CompletedProcess[str]:
    """A command that gets a signal and turns KeyboardInterrupt into an error of its own."""
    words = [*before, sys.executable, "-c", CODE, "snapshot", "restore", name]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


INHERITED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interrupt_that_became_another_error_is_still_an_interrupt(name: str) -> None:
    """No traceback of somebody else's: the reason is known."""
    ran = run(name)
    assert (ran.returncode, ran.stderr) == (130, "torpor: interrupted; everything it started was ended\n")


def test_the_same_error_without_an_interrupt_keeps_its_traceback() -> None:
    """A bug is not hidden."""
    ran = run("")
    assert ran.returncode == 1
    assert ran.stderr.endswith("TypeError: expected a message argument\n")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.fault("a command inherits its signals as ignored or blocked", area="end", outcome="held")
def test_a_signal_ends_a_command_that_inherited_it_ignored_or_blocked(name: str) -> None:
    """As a script's `torpor ... &` inherits SIGINT, and a child of a program that blocks signals all of them."""
    ran = run(name, sys.executable, "-c", INHERITED)
    assert (ran.returncode, ran.stderr) == (130, "torpor: interrupted; everything it started was ended\n")
