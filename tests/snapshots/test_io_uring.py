"""`torpor.snapshots.io_uring`: denied once, denied for good."""

from __future__ import annotations

import errno
import platform
import subprocess
import sys

import pytest

from torpor.snapshots.io_uring import command, deny_io_uring

TRY = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
result = libc.syscall(425, 4, ctypes.create_string_buffer(120))
print(result, ctypes.get_errno() if result < 0 else 0)
"""


def run(argv: list[str]) -> str:
    """What a command prints."""
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()


def test_io_uring_answers_enosys_afterwards() -> None:
    """Which libuv and others take for a kernel without io_uring."""
    assert run(command([sys.executable, "-c", TRY])) == f"-1 {errno.ENOSYS}"


def test_children_inherit_the_denial() -> None:
    """An engine's workers must not open a ring either."""
    spawn = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {TRY!r}])"
    assert run(command([sys.executable, "-c", spawn])) == f"-1 {errno.ENOSYS}"


def test_everything_else_goes_on(tmp_path: object) -> None:
    """Files, threads, sockets, subprocesses."""
    work = (
        "import socket, subprocess, threading; threading.Thread(target=print).start(); subprocess.run(['echo', 'ok'])"
    )
    assert run(command([sys.executable, "-c", work])).split() == ["ok"]


def test_it_works_in_this_process_too() -> None:
    """`deny_io_uring` is what the program runs; twice is once."""
    code = f"from torpor.snapshots.io_uring import deny_io_uring; deny_io_uring(); deny_io_uring(); {TRY.strip()}"
    assert run([sys.executable, "-c", code.replace("; import ctypes", "\nimport ctypes")]) == f"-1 {errno.ENOSYS}"


def test_an_architecture_whose_numbers_are_unknown_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A filter for the wrong one would deny some other call."""
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(OSError, match="riscv64"):
        deny_io_uring()
