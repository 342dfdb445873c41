"""A process with memory on a GPU: `python process.py LIBCUDA [standin ARGUMENT ...]`; with the stand-in for libcuda.

Every process forked from it is on a GPU as well: on the same one, or with `--ranks N` on the next of the first N that it can see.
The first process is on that of its pid. With `standin` it becomes the stand-in engine; else it waits.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

MEMORY_BYTES = 1 << 20


def pattern(pid: int) -> bytes:
    """The GPU memory of a process: a pattern that tests recognise."""
    return (f"memory of {pid} ".encode() * (MEMORY_BYTES // 8))[:MEMORY_BYTES]


def go_on_gpu(cuda: ctypes.CDLL, gpu: int) -> None:
    """Allocate memory on a GPU and fill it."""
    pointer, device, context = ctypes.c_ulonglong(), ctypes.c_int(), ctypes.c_void_p()
    assert cuda.cuInit(0) == 0
    assert cuda.cuDeviceGet(ctypes.byref(device), gpu) == 0
    assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) == 0
    assert cuda.cuCtxSetCurrent(context) == 0
    assert cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(MEMORY_BYTES)) == 0
    assert cuda.cuMemcpyHtoD_v2(pointer, pattern(os.getpid()), ctypes.c_size_t(MEMORY_BYTES)) == 0


def go_on_gpu_anew(cuda: ctypes.CDLL, gpu: int) -> None:
    """Go on a GPU in a forked child, which is a new process for the driver."""
    cuda.fake_forked()
    go_on_gpu(cuda, gpu)


def undumpable() -> int:
    """Hold something that only CRIU refuses: a folder of a detached mount (open_tree(2), of root)."""
    return int(ctypes.CDLL(None).syscall(428, -100, b"/usr", 1))  # AT_FDCWD, OPEN_TREE_CLONE


def main(argv: list[str]) -> int:
    """Go on the GPU, then become the stand-in engine or wait."""
    library, *rest = argv
    cuda = ctypes.CDLL(library)
    ranks = int(rest[rest.index("--ranks") + 1]) if "--ranks" in rest else 1
    first = os.getpid() % ranks
    go_on_gpu(cuda, first)
    os.register_at_fork(after_in_child=lambda: go_on_gpu_anew(cuda, (first + 1) % ranks))
    if "--undumpable" in rest:
        assert undumpable() >= 0
    if "--keep" in rest:  # a descriptor of the device of which the driver knows nothing
        os.open(os.environ["TORPOR_FAKE_DEVICE"], os.O_RDONLY)
    if rest[:1] == ["standin"]:
        from torpor.testing.standin.server import main as serve

        return serve(rest[1:])
    print("up", flush=True)
    while True:
        signal.pause()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
