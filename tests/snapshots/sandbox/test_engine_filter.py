"""`torpor.snapshots.sandbox.engine_filter`: a denied system call stays denied."""

from __future__ import annotations

import errno
import platform
import subprocess
import sys

import pytest

from torpor.snapshots.sandbox.engine_filter import command, deny_calls

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
    """Libuv and others then use epoll, as on a kernel without io_uring."""
    assert run(command([sys.executable, "-c", TRY])) == f"-1 {errno.ENOSYS}"


def test_children_inherit_the_denial() -> None:
    """An engine's workers must not open a ring either."""
    spawn = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {TRY!r}])"
    assert run(command([sys.executable, "-c", spawn])) == f"-1 {errno.ENOSYS}"


def test_memory_is_not_given_back_by_dontneed() -> None:
    """It returns EINVAL and the bytes stay; other advice has its effect."""
    code = (
        "import mmap; memory = mmap.mmap(-1, 8192, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS); memory[0] = 7\n"
        "try: memory.madvise(mmap.MADV_DONTNEED)\n"
        "except OSError as error: print(error.errno, memory[0], memory.madvise(mmap.MADV_WILLNEED))"
    )
    assert run(command([sys.executable, "-c", code])) == f"{errno.EINVAL} 7 None"


def test_everything_else_goes_on(tmp_path: object) -> None:
    """Files, threads, sockets and subprocesses work."""
    work = (
        "import socket, subprocess, threading; threading.Thread(target=print).start(); subprocess.run(['echo', 'ok'])"
    )
    assert run(command([sys.executable, "-c", work])).split() == ["ok"]


def test_it_works_in_this_process_too() -> None:
    """The program calls `deny_calls`; a second call changes nothing."""
    code = f"from torpor.snapshots.sandbox.engine_filter import deny_calls; deny_calls(); deny_calls(); {TRY.strip()}"
    assert run([sys.executable, "-c", code.replace("; import ctypes", "\nimport ctypes")]) == f"-1 {errno.ENOSYS}"


def test_an_architecture_whose_numbers_are_unknown_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A filter for the wrong one would deny some other call."""
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(OSError, match="riscv64"):
        deny_calls()
