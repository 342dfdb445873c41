"""Denies two system calls to an engine of which a snapshot may be captured, and to everything that it starts.

io_uring_setup returns ENOSYS, because CRIU cannot dump a ring. Libraries then do as on kernels without io_uring (libuv: epoll).

madvise(MADV_DONTNEED) returns EINVAL. In memory that a replica maps from files it would make the captured bytes visible again, but
jemalloc and Go's runtime rely on zeroes (see `torpor.snapshots.criu.mapped_memory`). After the error, allocators keep the pages.

As a program, it denies the calls and then executes a command: `python engine_filter.py COMMAND [ARGUMENT ...]`. Only root mode uses
it, since rootless CRIU cannot dump a process under a seccomp filter. There the engine is only asked not to use io_uring
(`torpor.snapshots.sandbox.starter`).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["command", "deny_calls"]

# Audit architectures (linux/audit.h) and their numbers of madvise; io_uring_setup has one number on both.
_ARCHITECTURES = {"x86_64": (0xC000003E, 28), "aarch64": (0xC00000B7, 233)}
_IO_URING_SETUP, _MADV_DONTNEED = 425, 4
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _SECCOMP_MODE_FILTER = 22, 38, 2
# Classic BPF: BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_RET|BPF_K
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
# In struct seccomp_data of a little-endian machine
_NUMBER_OFFSET, _ARCHITECTURE_OFFSET, _THIRD_ARGUMENT_OFFSET = 0, 4, 32
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000


class _Program(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def deny_calls() -> None:
    """Deny the calls in this process and everything that it starts. This cannot be undone.

    It needs no privilege (PR_SET_NO_NEW_PRIVS). System calls of another architecture (32-bit programs) are allowed.

    Raises:
        OSError: the kernel has no seccomp filters, or the architecture is not x86-64 or aarch64.
    """
    if platform.machine() not in _ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"system calls cannot be denied on {platform.machine()}")
    architecture, madvise = _ARCHITECTURES[platform.machine()]
    instructions = b"".join(
        struct.pack("HBBI", *instruction)
        for instruction in (
            (_LOAD, 0, 0, _ARCHITECTURE_OFFSET),
            (_JUMP_IF_EQUAL, 0, 7, architecture),
            (_LOAD, 0, 0, _NUMBER_OFFSET),
            (_JUMP_IF_EQUAL, 0, 1, _IO_URING_SETUP),
            (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
            (_JUMP_IF_EQUAL, 0, 3, madvise),
            (_LOAD, 0, 0, _THIRD_ARGUMENT_OFFSET),
            (_JUMP_IF_EQUAL, 0, 1, _MADV_DONTNEED),
            (_RETURN, 0, 0, _ERRNO | errno.EINVAL),
            (_RETURN, 0, 0, _ALLOW),
        )
    )
    held = ctypes.create_string_buffer(instructions, len(instructions))
    program = _Program(len(instructions) // 8, ctypes.addressof(held))
    libc = ctypes.CDLL(None, use_errno=True)
    for call in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0),
    ):
        if libc.prctl(*call):
            number = ctypes.get_errno()
            raise OSError(number, f"system calls cannot be denied: {os.strerror(number)}")


def command(argv: Sequence[str]) -> list[str]:
    """A command line that denies the calls and then executes `argv` (same pid)."""
    return [sys.executable, "-I", "-S", __file__, *argv]


if __name__ == "__main__":
    deny_calls()
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606
