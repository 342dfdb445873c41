"""A tree whose memory tests read and write: `memory_program.py MEGABYTES [FORKS]`; one command for each connection.

The leader listens on port 8000. Each fork has written to one page in 32 of the leader's buffer, and listens on the next port.

sum        SHA-256 of a large buffer, and of a block that malloc gave a mapping of its own
write N    write the page's address and the number into every page of both, then as `sum`
grow N     let realloc make the block N megabytes large, write to its end, then the hash of its first half megabyte
trim       drop a page of the buffer by MADV_DONTNEED (mmap.madvise), then its first byte
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import mmap
import os
import socket
import sys

_PAGE = 4096
_BLOCK = 1 << 19
_WRITTEN = 32 * _PAGE
_LIBC = ctypes.CDLL(None)
_LIBC.malloc.restype = _LIBC.realloc.restype = ctypes.c_void_p


def main() -> None:
    """Serve until the end."""
    size = int(sys.argv[1]) << 20
    buffer = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for page in range(0, size, _PAGE):
        buffer[page : page + 8] = (page + 1).to_bytes(8, "little")
    block = _LIBC.malloc(ctypes.c_size_t(_BLOCK))
    ctypes.memset(ctypes.c_void_p(block), 7, _BLOCK)
    port = 8000
    for fork in range(1, 1 + int(sys.argv[2] if len(sys.argv) > 2 else 0)):
        if os.fork() == 0:
            for page in range(0, size, _WRITTEN):
                buffer[page : page + 8] = fork.to_bytes(8, "big")
            port += fork
            break
    with socket.create_server(("127.0.0.1", port)) as server:
        print("ready", flush=True)
        while True:
            connection, _ = server.accept()
            with connection, connection.makefile("rw") as lines:
                word, _, number = lines.readline().strip().partition(" ")
                if word == "write":
                    for page in range(0, size, _PAGE):
                        buffer[page : page + 8] = (page + int(number)).to_bytes(8, "little")
                    ctypes.memset(ctypes.c_void_p(block), int(number), _BLOCK)
                if word == "grow":
                    wanted = int(number) << 20
                    block = _LIBC.realloc(ctypes.c_void_p(block), ctypes.c_size_t(wanted))
                    ctypes.memset(ctypes.c_void_p(block + wanted - _PAGE), 1, _PAGE)
                if word == "trim":
                    buffer.madvise(mmap.MADV_DONTNEED, 0, _PAGE)
                answer = {
                    "buffer": hashlib.sha256(buffer).hexdigest(),
                    "block": hashlib.sha256(ctypes.string_at(ctypes.c_void_p(block), _BLOCK)).hexdigest(),
                    "first": buffer[:8].hex(),
                }
                lines.write(json.dumps(answer) + "\n")
                lines.flush()


if __name__ == "__main__":
    main()
