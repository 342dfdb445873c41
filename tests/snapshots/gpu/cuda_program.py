"""A tree with CUDA, for dumps and restores: device memory, pinned memory, and a child that has only initialised the driver.

Run with the places to load libcuda from, separated by colons, and mebibytes of device memory; listens on 127.0.0.1:8000 and
answers each connection with one JSON line: whether everything is unchanged, after it used the GPU to check.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys

MIB = 1 << 20
PINNED_BYTES = 8 * MIB


def load(places: str) -> ctypes.CDLL:
    """The driver's library, initialised."""
    for place in places.split(":"):
        with contextlib.suppress(OSError):
            library = ctypes.CDLL(place)
            check(library.cuInit(0))
            return library
    raise SystemExit(f"no libcuda at {places}")


def check(code: int) -> None:
    """Raise an error unless a call succeeded."""
    if code != 0:
        raise SystemExit(f"CUDA error {code}")


class Memory:
    """What this process has on the GPU, and pinned on the host."""

    def __init__(self, cuda: ctypes.CDLL, size: int) -> None:
        self.cuda, self.size = cuda, size
        self.device, self.spare, self.pinned = ctypes.c_uint64(), ctypes.c_uint64(), ctypes.c_void_p()
        number, context = ctypes.c_int(), ctypes.c_void_p()
        check(cuda.cuDeviceGet(ctypes.byref(number), 0))
        check(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), number))
        check(cuda.cuCtxSetCurrent(context))
        check(cuda.cuMemAlloc_v2(ctypes.byref(self.device), ctypes.c_size_t(size)))
        check(cuda.cuMemAlloc_v2(ctypes.byref(self.spare), ctypes.c_size_t(PINNED_BYTES)))
        check(cuda.cuMemHostAlloc(ctypes.byref(self.pinned), ctypes.c_size_t(PINNED_BYTES), 0))
        drawn = random.Random(1)
        content = b"".join(drawn.randbytes(MIB) for _ in range(size // MIB))  # no more than 256 MiB in one call
        check(cuda.cuMemcpyHtoD_v2(self.device, content, ctypes.c_size_t(size)))
        ctypes.memmove(self.pinned, content, PINNED_BYTES)
        self.wanted = (hashlib.sha256(content).hexdigest(), hashlib.sha256(content[:PINNED_BYTES]).hexdigest())

    def read(self, device: ctypes.c_uint64, size: int) -> str:
        """The SHA-256 of device memory."""
        buffer = ctypes.create_string_buffer(size)
        check(self.cuda.cuMemcpyDtoH_v2(buffer, device, ctypes.c_size_t(size)))
        return hashlib.sha256(buffer.raw).hexdigest()

    def seen(self) -> tuple[str, str]:
        """Hashes of device memory, and of pinned memory through the GPU."""
        check(self.cuda.cuMemcpyHtoD_v2(self.spare, self.pinned, ctypes.c_size_t(PINNED_BYTES)))
        return self.read(self.device, self.size), self.read(self.spare, PINNED_BYTES)


def main(places: str, mebibytes: int) -> None:
    """Serve until the end."""
    cuda = load(places)
    memory = Memory(cuda, mebibytes * MIB)
    child = subprocess.Popen(
        [sys.executable, __file__, places, "child"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"initialised\n"
    listener = socket.create_server(("127.0.0.1", 8000))
    print("up", flush=True)
    while True:
        connection, _ = listener.accept()
        device, pinned = memory.seen()
        answer = {
            "pid": os.getpid(),
            "child": child.pid if child.poll() is None else 0,
            "device": device == memory.wanted[0],
            "pinned": pinned == memory.wanted[1],
        }
        connection.sendall(json.dumps(answer).encode() + b"\n")
        connection.close()


if __name__ == "__main__":
    if sys.argv[2] == "child":
        held = load(sys.argv[1])
        print("initialised", flush=True)
        while True:
            signal.pause()
    main(sys.argv[1], int(sys.argv[2]))
