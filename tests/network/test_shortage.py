"""If a limit of the process is the cause, the error names the limit and what to set, without a traceback."""

from __future__ import annotations

import errno
import os
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.snapshots.kept import write_app
from torpor import SnapshotError
from torpor.network.shortage import shortage
from torpor.runtime.captured_secrets import secret_names
from torpor.snapshots.criu.program import PREFIX_VARIABLE
from torpor.snapshots.store.paths import criu_prefix
from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    from pathlib import Path

TIMEOUT_S = 90.0


def limited(descriptors: int, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command with at most this many descriptors."""
    argv = shlex.join([sys.executable, "-m", "torpor.cli", *words])
    env = {name: value for name, value in os.environ.items() if name not in secret_names(os.environ)}
    env.setdefault(PREFIX_VARIABLE, str(criu_prefix()))
    return subprocess.run(
        ["sh", "-c", f"ulimit -n {descriptors}; exec {argv}"],
        env={**env, "TORPOR_CACHE": str(folder / "c")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def names_the_limit(ran: subprocess.CompletedProcess[str], descriptors: int) -> bool:
    """Whether the command failed with a message that names the limit and how to raise it."""
    assert "Traceback" not in ran.stderr, ran.stderr
    told = f"no more than {descriptors} files" in ran.stderr and "ulimit -n 4096" in ran.stderr
    return ran.returncode in (1, 2) and told


def raised(number: int, *, filename: str | None = None) -> OSError:
    """An error of the kernel."""
    return OSError(number, os.strerror(number), *([filename] if filename else []))


WORDS = {
    errno.EMFILE: "ulimit -n ",
    errno.ENFILE: "fs.file-max",
    errno.EAGAIN: "ulimit -u",
    errno.ENOSPC: "no space left at /a/b",
    errno.EROFS: "read-only at /a/b",
}


@pytest.mark.parametrize("number", WORDS, ids=errno.errorcode.get)
def test_a_shortage_is_found_at_any_depth(number: int) -> None:
    """In the error itself, its cause, its context, or a member of a group."""
    inner = raised(number, filename="/a/b")
    assert WORDS[number] in shortage(inner)
    outer = SnapshotError("no sandbox")
    outer.__cause__ = ExceptionGroup("several", [ValueError("other"), inner])
    assert WORDS[number] in shortage(outer)


@pytest.mark.parametrize("error", [ValueError("x"), raised(errno.ENOENT), SnapshotError("no manifest")])
def test_an_error_of_another_kind_is_left_as_it_is(error: Exception) -> None:
    """It is no shortage."""
    assert not shortage(error)


def test_a_shortage_is_recognised_by_text_too() -> None:
    """In the output of other programs: CRIU's log, the loader's message."""
    assert "ulimit -n" in shortage(ImportError("libssl.so.3: cannot open shared object file: Too many open files"))
    assert "ulimit -n" in shortage(SnapshotError("sfd: Can't chose service_fd_base: 0 40"))
    assert "ulimit -u" in shortage(RuntimeError("can't start new thread"))


@pytest.mark.slow
@pytest.mark.fault("a command has too few descriptors", area="limits", outcome="refused")
@pytest.mark.parametrize("what", ["up", "bench", "prewarm"])
def test_a_command_without_descriptors_names_the_limit(what: str, tmp_path: Path) -> None:
    """Each command does."""
    app = str(write_app(tmp_path / "app", port=unused_port()))
    words = {
        "up": ("up", app, "--ask", "hi"),
        "bench": ("bench", app, "--backend", "standby", "--starts", "1"),
        "prewarm": ("prewarm", "http://127.0.0.1:9", "--requests", "400", "--timeout", "20"),
    }
    assert names_the_limit(limited(9, tmp_path, *words[what]), 9)


@pytest.mark.slow
@pytest.mark.criu
@pytest.mark.fault("a snapshot is made with 200 descriptors, or restored with too few", area="limits", outcome="held")
def test_snapshots_work_with_few_descriptors_or_name_the_limit(tmp_path: Path) -> None:
    """200 are enough for a small engine; with 40 no command works."""
    app = str(write_app(tmp_path / "app", port=unused_port()))
    made = limited(200, tmp_path, "snapshot", "create", app, str(tmp_path / "kept"))
    assert made.returncode == 0, made.stderr
    assert names_the_limit(limited(40, tmp_path, "snapshot", "restore", str(tmp_path / "kept")), 40)
    assert names_the_limit(limited(40, tmp_path, "snapshot", "create", app, str(tmp_path / "other")), 40)
