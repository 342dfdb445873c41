"""System calls denied to an engine that is going to be dumped, and to everything it starts.

io_uring_setup answers ENOSYS: CRIU cannot dump a ring. A library then takes the way for kernels without io_uring (libuv: epoll).

madvise(MADV_DONTNEED) answers EINVAL: in memory that a replica maps from files it would bring the captured bytes back, and
jemalloc and Go's runtime count on zeroes (see `torpor.snapshots.criu.mapped_memory`). Allocators that are refused keep the pages.

Run as a program it denies and then becomes the command: `python engine_filter.py COMMAND [ARGUMENT ...]`. Only for snapshots
made as root: rootless CRIU can dump no process under a seccomp filter, so there the engine has to be asked not to use io_uring
(uvloop 0.21: UV_USE_IO_URING=0; torch's TCPStore: USE_LIBUV=0).
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
_LOAD, _JUMP_IF_EQUAL, _RETURN = (
    0x20,
    0x15,
    0x06,
)  # of classic BPF: BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_RET|BPF_K
_NUMBER_OFFSET, _ARCHITECTURE_OFFSET, _THIRD_ARGUMENT_OFFSET = (
    0,
    4,
    32,
)  # in struct seccomp_data, of a little-endian machine
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000


class _Program(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def deny_calls() -> None:
    """Deny them from now on, in this process and all that it starts; it cannot be undone.

    No privilege is needed (PR_SET_NO_NEW_PRIVS). System calls of another architecture (32-bit programs) pass.

    Raises:
        OSError: the kernel has no seccomp filters, or the architecture is not x86-64 or aarch64.
    """
    if platform.machine() not in _ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no system call can be denied on {platform.machine()}")
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
            raise OSError(number, f"no system call can be denied: {os.strerror(number)}")


def command(argv: Sequence[str]) -> list[str]:
    """A command line that denies them and then becomes `argv` (same pid)."""
    return [sys.executable, "-I", "-S", __file__, *argv]


if __name__ == "__main__":
    deny_calls()
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606
