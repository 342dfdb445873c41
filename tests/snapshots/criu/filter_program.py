"""Executes a command under a seccomp filter that refuses what Docker's default profile refuses without CAP_SYS_ADMIN.

That is unshare, setns, mounts and clone with new namespaces (EPERM), and clone3 (ENOSYS); the profile is in moby,
profiles/seccomp/default.json. x86-64 only.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

LOAD, JUMP_IF_EQUAL, AND, RETURN = 0x20, 0x15, 0x54, 0x06
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
EPERM, ENOSYS = 1, 38
NUMBER, FIRST_ARGUMENT = 0, 16  # offsets in struct seccomp_data
NAMESPACES = 0x7E020080
REFUSED = (
    155,
    165,
    166,
    272,
    308,
    428,
    429,
    430,
    432,
    442,
)  # pivot_root, mount, umount2, unshare, setns, the new mount calls
CLONE, CLONE3 = 56, 435


def main() -> None:
    """Set the filter and execute the command."""
    program = [(LOAD, 0, 0, NUMBER)]
    for number, error in (*((number, EPERM) for number in REFUSED), (CLONE3, ENOSYS)):
        program += [(JUMP_IF_EQUAL, 0, 1, number), (RETURN, 0, 0, ERRNO | error)]
    program += [(JUMP_IF_EQUAL, 0, 4, CLONE), (LOAD, 0, 0, FIRST_ARGUMENT), (AND, 0, 0, NAMESPACES)]
    program += [(JUMP_IF_EQUAL, 1, 0, 0), (RETURN, 0, 0, ERRNO | EPERM), (RETURN, 0, 0, ALLOW)]
    packed = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    held = ctypes.create_string_buffer(packed, len(packed))
    filter_ = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(held)))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, filter_, 0, 0) == 0, os.strerror(ctypes.get_errno())  # PR_SET_SECCOMP
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
