"""Copies GPU memory to the host and back with several threads, using only the CUDA driver.

One thread that reads a file and copies it to the GPU gets 1.7 GB/s (torch_memory_saver's disk backup, measured); the bus takes
55 GB/s. So several threads work in parallel, each with its own pinned buffer and stream: while one waits for the kernel to read
from the page cache, another uses the bus.

Standard library only: it runs in the engine's scheduler.
"""

from __future__ import annotations

import ctypes
import os
import threading
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

__all__ = ["CudaError", "Driver", "PinnedMemory", "Segment", "load_from_file", "save_to_file"]

_T = TypeVar("_T")

THREADS = min(8, os.cpu_count() or 1)
"""8 threads read 26 to 32 GB/s from the page cache on 16 cores; 12 threads were not faster (20 GB/s, once)."""

BUFFER_BYTES = 8 << 20
"""A thread's pinned buffer. It is pinned for each wake, so that no snapshot holds it."""

PINNED_BLOCK_BYTES = 512 << 20
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: not ordered after the legacy default stream


class CudaError(RuntimeError):
    """A driver call failed; the message holds its name and the driver's error."""


@dataclass(frozen=True)
class Segment:
    """A range of device memory: address and size in bytes."""

    address: int
    size: int


@dataclass(frozen=True)
class _Chunk:
    """A part of a segment, at most one buffer long, and its offset in the file, in bytes."""

    offset: int
    address: int
    size: int


class Driver:
    """The CUDA driver API, bound to the context that is current when the object is made.

    Names and signatures: cuda.h of CUDA 13.0 (its macros expand to the `_v2` names).

    Args:
        library: path or name of the driver's library.

    Raises:
        CudaError: there is no driver, or no context is current.
    """

    def __init__(self, library: str = "libcuda.so.1") -> None:
        try:
            self._cuda = ctypes.CDLL(library)
        except OSError as error:
            raise CudaError(f"The CUDA driver cannot be loaded: {error}.") from error
        context = ctypes.c_void_p()
        self.call("cuCtxGetCurrent", ctypes.byref(context))
        if not context:
            raise CudaError("No CUDA context is current in this thread, so there is no device memory to copy.")
        self._context = context

    def call(self, name: str, *arguments: object) -> None:
        """Call one function of the driver.

        Raises:
            CudaError: it did not return CUDA_SUCCESS.
        """
        code = getattr(self._cuda, name)(*arguments)
        if code != 0:
            said = ctypes.c_char_p()
            self._cuda.cuGetErrorString(code, ctypes.byref(said))
            raise CudaError(f"{name} failed with {code}: {(said.value or b'unknown error').decode(errors='replace')}.")

    def enter(self) -> None:
        """Make the context current in this thread."""
        self.call("cuCtxSetCurrent", self._context)

    @contextmanager
    def stream(self) -> Iterator[ctypes.c_void_p]:
        """Create a stream for the block."""
        stream = ctypes.c_void_p()
        self.call("cuStreamCreate", ctypes.byref(stream), ctypes.c_uint(_NON_BLOCKING))
        try:
            yield stream
        finally:
            self.call("cuStreamDestroy_v2", stream)

    def pin(self, size: int) -> ctypes.c_void_p:
        """Pin `size` bytes of host memory; `unpin` releases them."""
        memory = ctypes.c_void_p()
        self.call("cuMemHostAlloc", ctypes.byref(memory), ctypes.c_size_t(size), ctypes.c_uint(0))
        return memory

    def unpin(self, memory: ctypes.c_void_p) -> None:
        """Release pinned memory."""
        self.call("cuMemFreeHost", memory)

    def to_device(self, address: int, source: int, size: int, stream: ctypes.c_void_p) -> None:
        """Begin to copy `size` bytes from pinned host memory to the device."""
        self.call(
            "cuMemcpyHtoDAsync_v2",
            ctypes.c_uint64(address),
            ctypes.c_void_p(source),
            ctypes.c_size_t(size),
            stream,
        )

    def to_host(self, target: int, address: int, size: int, stream: ctypes.c_void_p) -> None:
        """Begin to copy `size` bytes from the device to pinned host memory."""
        self.call(
            "cuMemcpyDtoHAsync_v2",
            ctypes.c_void_p(target),
            ctypes.c_uint64(address),
            ctypes.c_size_t(size),
            stream,
        )

    def wait(self, stream: ctypes.c_void_p) -> None:
        """Wait for all copies of the stream."""
        self.call("cuStreamSynchronize", stream)


def save_to_file(driver: Driver, segments: Sequence[Segment], descriptor: int) -> None:
    """Write the segments to a file, one after the other.

    Raises:
        CudaError: a copy failed.
        OSError: the file cannot be written (disk full, ...).
    """

    def save(chunk: _Chunk, buffer: _Buffer) -> None:
        driver.to_host(buffer.address, chunk.address, chunk.size, buffer.stream)
        driver.wait(buffer.stream)
        done = 0
        while done < chunk.size:
            done += os.pwrite(descriptor, buffer.view[done : chunk.size], chunk.offset + done)

    _in_threads(driver, _chunks(segments, BUFFER_BYTES), save, _buffer)


def load_from_file(driver: Driver, segments: Sequence[Segment], descriptor: int) -> None:
    """Fill the segments from a file that `save_to_file` wrote.

    Raises:
        CudaError: a copy failed.
        OSError: the file cannot be read, or is too short.
    """

    def load(chunk: _Chunk, buffer: _Buffer) -> None:
        done = 0
        while done < chunk.size:
            got = os.preadv(descriptor, [buffer.view[done : chunk.size]], chunk.offset + done)
            if got == 0:
                raise OSError(f"it ends at byte {chunk.offset + done}, too early")
            done += got
        driver.to_device(chunk.address, buffer.address, chunk.size, buffer.stream)
        driver.wait(buffer.stream)

    _in_threads(driver, _chunks(segments, BUFFER_BYTES), load, _buffer)


class PinnedMemory:
    """A copy of segments in pinned host memory, which is reused for every sleep: the fastest way back to the device.

    Pinning 9 GB takes seconds, copying them 0.2 s. So the memory is pinned once, in blocks, by several threads.
    """

    def __init__(self, driver: Driver, segments: Sequence[Segment]) -> None:
        self._driver = driver
        self._chunks = _chunks(segments, PINNED_BLOCK_BYTES)
        self._blocks: dict[int, ctypes.c_void_p] = {}
        _in_threads(driver, self._chunks, self._pin, lambda _: nullcontext())

    def save(self) -> None:
        """Copy the segments to the host."""
        self._copy(lambda chunk, block, stream: self._driver.to_host(block, chunk.address, chunk.size, stream))

    def load(self) -> None:
        """Copy them back."""
        self._copy(lambda chunk, block, stream: self._driver.to_device(chunk.address, block, chunk.size, stream))

    def free(self) -> None:
        """Release the memory."""
        while self._blocks:
            _, block = self._blocks.popitem()
            self._driver.unpin(block)

    def _pin(self, chunk: _Chunk, _held: None) -> None:
        self._blocks[chunk.offset] = self._driver.pin(chunk.size)

    def _copy(self, begin: Callable[[_Chunk, int, ctypes.c_void_p], None]) -> None:
        self._driver.enter()
        with self._driver.stream() as stream:
            for chunk in self._chunks:
                begin(chunk, self._blocks[chunk.offset].value or 0, stream)
            self._driver.wait(stream)


@dataclass(frozen=True)
class _Buffer:
    """A thread's pinned buffer, as an address and as bytes, and its stream."""

    address: int
    view: memoryview
    stream: ctypes.c_void_p


def _chunks(segments: Sequence[Segment], size: int) -> list[_Chunk]:
    found, offset = [], 0
    for segment in segments:
        for start in range(0, segment.size, size):
            length = min(size, segment.size - start)
            found.append(_Chunk(offset + start, segment.address + start, length))
        offset += segment.size
    return found


def _in_threads(
    driver: Driver,
    chunks: Sequence[_Chunk],
    act: Callable[[_Chunk, _T], None],
    holding: Callable[[Driver], AbstractContextManager[_T]],
) -> None:
    """Distribute the chunks over several threads, each with its own resource; the first failure ends all threads."""
    todo = iter(chunks)
    lock = threading.Lock()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            driver.enter()
            with holding(driver) as held:
                while not failures:
                    with lock:
                        chunk = next(todo, None)
                    if chunk is None:
                        return
                    act(chunk, held)
        except BaseException as error:  # raised below
            failures.append(error)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(THREADS, len(chunks)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


@contextmanager
def _buffer(driver: Driver) -> Iterator[_Buffer]:
    memory = driver.pin(BUFFER_BYTES)
    try:
        address = memory.value or 0
        view = memoryview((ctypes.c_ubyte * BUFFER_BYTES).from_address(address)).cast("B")
        with driver.stream() as stream:
            yield _Buffer(address, view, stream)
    finally:
        driver.unpin(memory)
