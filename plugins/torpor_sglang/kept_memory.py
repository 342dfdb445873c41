"""Keeps device memory outside the snapshot while the engine sleeps, and copies it back at the wake.

    pause    checksums on the device -> copy to the host -> (the memory saver frees the memory)
    resume   (the memory saver maps it again) -> copy back, in parallel with the rest of the wake -> compare checksums

`file` is for weights and snapshots: one file for all replicas of the machine, in the page cache after the first restore, so
snapshots stay small. `memory` is pinned host memory, the fastest way back. It is for an engine that stays in its process, and
for memory that changes from one sleep to the next.

A file is named after its content, so a second capture of the same weights writes nothing, and ranks with equal weights share
one. It stays open while the engine sleeps, so the snapshot lists it among the files that must not change; nothing replaces it.

With several ranks each compares its own memory, and a difference on one of them is an error on all, which names rank and GPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import stat
import threading
import time
from typing import TYPE_CHECKING

from torpor_sglang.gpu_copy import Driver, PinnedMemory, Segment, load_from_file, save_to_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torpor_sglang.places import Place

__all__ = ["KeptMemory"]

_OTHERS_WRITE = 0o022
_ATTEMPTS = 5
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)  # file systems without hard links
_AT_FDCWD, _NO_REPLACE = -100, 1  # renameat2(2)


class KeptMemory:
    """Keeps the content of some tags while their memory is released.

    Args:
        places: tags, and where each is kept.
        folder: the folder for the files.
        segments: returns the current ranges of device memory of a tag.
        sums: returns a checksum of each range, which depends on the order of its words.
        driver: returns the driver; called on first use, in the thread with the CUDA context.
        tell: gets one line for each copy: what, how much, how long.
        together: runs what each rank does, and fails on all of them if it fails on one; gets that and what it is.
        rank: returns this rank and its GPU, or an empty text; for the lines.
    """

    def __init__(
        self,
        *,
        places: Mapping[str, Place],
        folder: Path,
        segments: Callable[[str], Sequence[Segment]],
        sums: Callable[[Sequence[Segment]], Sequence[int]],
        driver: Callable[[], Driver] = Driver,
        tell: Callable[[str], None] = print,
        together: Callable[[Callable[[], None], str], None] = lambda act, _: act(),
        rank: Callable[[], str] = str,
    ) -> None:
        self._together = together
        self._rank = rank
        self._places = places
        self._folder = folder
        self._segments = segments
        self._sums = sums
        self._make_driver = driver
        self._say = tell
        self._asleep: dict[str, _Asleep] = {}
        self._pinned: dict[str, tuple[tuple[Segment, ...], PinnedMemory]] = {}
        self._loading: list[tuple[str, threading.Thread, list[BaseException]]] = []

    def save(self, tag: str) -> None:
        """Keep the content of a tag, if it is in `places`; call it right before the memory is released.

        Raises:
            OSError: the file cannot be written; no partial file stays.
            CudaError: a copy failed.
        """
        if tag in self._places:
            self._together(lambda: self._save(tag), f"{tag} cannot be kept")

    def _save(self, tag: str) -> None:
        started = time.perf_counter()
        driver = self._make_driver()
        segments = tuple(sorted(self._segments(tag), key=lambda segment: segment.address))
        sums = tuple(self._sums(segments))
        summed = time.perf_counter()
        if self._places[tag] == "memory":
            where, descriptor = "pinned memory", -1
            self._pinned_for(tag, driver, segments).save()
        else:
            file = self._folder / f"{tag}-{_digest(segments, sums)}.bin"
            where, descriptor = str(file), _written(file, driver, segments)
        self._asleep[tag] = _Asleep(driver, segments, sums, descriptor, where)
        size = sum(segment.size for segment in segments)
        self._tell(
            f"{tag}: {size / 1e9:.2f} GB of {len(segments)} ranges kept in {where}; checksums {summed - started:.3f} s, "
            f"copy {time.perf_counter() - summed:.3f} s"
        )

    def begin_load(self, tag: str) -> None:
        """Begin to copy a tag's content back; call it right after its memory is mapped again. `finish` waits for it."""
        if tag not in self._asleep:
            return
        failures: list[BaseException] = []
        thread = threading.Thread(target=self._load, args=(tag, failures), daemon=True)
        self._loading.append((tag, thread, failures))
        thread.start()

    def finish(self) -> None:
        """Wait for every `resume`, and compare the checksums.

        Raises:
            RuntimeError: the content differs from what was kept; the engine must not serve.
            OSError: the file cannot be read.
            CudaError: a copy failed.
        """
        self._together(self._finish, "what was kept did not come back")

    def _finish(self) -> None:
        loading, self._loading = self._loading, []
        for _, thread, _ in loading:
            thread.join()
        for tag, _, failures in loading:
            kept = self._asleep.pop(tag)
            if kept.descriptor >= 0:
                os.close(kept.descriptor)
            if failures:
                raise failures[0]
            started = time.perf_counter()
            wrong = sum(now != then for now, then in zip(self._sums(kept.segments), kept.sums, strict=True))
            if wrong:
                raise RuntimeError(
                    f"{tag}: {wrong} of {len(kept.segments)} ranges came back from {kept.where} with content that differs "
                    "from what was kept. The engine must not serve; delete that file and take a new snapshot."
                )
            self._tell(f"{tag}: checksums agree, {time.perf_counter() - started:.3f} s")

    def _tell(self, line: str) -> None:
        """Tell one line, with this rank where there are several."""
        rank = self._rank()
        self._say(f"{rank}: {line}" if rank else line)

    def _load(self, tag: str, failures: list[BaseException]) -> None:
        kept = self._asleep[tag]
        started = time.perf_counter()
        try:
            if self._places[tag] == "memory":
                self._pinned[tag][1].load()
            else:
                load_from_file(kept.driver, kept.segments, kept.descriptor)
        except OSError as error:
            failures.append(OSError(f"{tag}: {kept.where} cannot be read: {error}"))
        except BaseException as error:
            failures.append(error)
        seconds = time.perf_counter() - started
        size = sum(segment.size for segment in kept.segments)
        self._tell(f"{tag}: {size / 1e9:.2f} GB from {kept.where} in {seconds:.3f} s, {size / 1e9 / seconds:.1f} GB/s")

    def _pinned_for(self, tag: str, driver: Driver, segments: tuple[Segment, ...]) -> PinnedMemory:
        """The pinned memory of the last sleep, if the tag still has the same ranges."""
        if tag in self._pinned and self._pinned[tag][0] != segments:
            self._pinned.pop(tag)[1].free()
        if tag not in self._pinned:
            self._pinned[tag] = segments, PinnedMemory(driver, segments)
        return self._pinned[tag][1]


class _Asleep:
    """The kept content of one tag.

    Args:
        driver: the driver of the memory's context.
        segments: the ranges.
        sums: the checksum of each range.
        descriptor: the open file, or -1.
        where: the place, for messages.
    """

    def __init__(
        self, driver: Driver, segments: tuple[Segment, ...], sums: tuple[int, ...], descriptor: int, where: str
    ) -> None:
        self.driver = driver
        self.segments = segments
        self.sums = sums
        self.descriptor = descriptor
        self.where = where


def _digest(segments: Sequence[Segment], sums: Sequence[int]) -> str:
    """The name of the content, made from sizes and checksums in order: 32 hex digits."""
    facts = [(segment.size, total) for segment, total in zip(segments, sums, strict=True)]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]


def _written(file: Path, driver: Driver, segments: Sequence[Segment]) -> int:
    """Open the file with the segments' content; write it first if it is missing, completely or not at all."""
    size = sum(segment.size for segment in segments)
    with contextlib.suppress(FileNotFoundError):
        if (there := _opened(file, size)) >= 0:
            return there
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Not a pid: pids are the same in every sandbox.
    unfinished = file.with_name(f".{file.name}.{os.urandom(8).hex()}")
    descriptor = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size)  # notices a full disk before anything is copied
        save_to_file(driver, segments, descriptor)
        return _published(unfinished, file, size)
    except OSError as error:
        raise OSError(
            error.errno, f"{size / 1e9:.2f} GB cannot be kept in {file}: {error.strerror or error}"
        ) from error
    finally:
        os.close(descriptor)
        unfinished.unlink(missing_ok=True)


def _published(unfinished: Path, file: Path, size: int) -> int:
    """Give a whole file its name and open it, or open the file that another process gave that name first.

    Ranks with equal weights, and replicas that are captured at once, write the same content. A file is never replaced: an
    engine that holds it open would hold a file without a name, which no snapshot can.
    """
    for _ in range(_ATTEMPTS):
        with contextlib.suppress(FileExistsError):
            _name(unfinished, file)
        with contextlib.suppress(FileNotFoundError):
            if (there := _opened(file, size)) >= 0:
                return there
            _set_aside(file, size)
    raise OSError(errno.EBUSY, "other processes keep putting something else there")


def _name(unfinished: Path, file: Path) -> None:
    """Give a file its final name, unless there is one of that name.

    Raises:
        FileExistsError: there is one.
    """
    try:
        os.link(unfinished, file)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        rename = ctypes.CDLL(None, use_errno=True).renameat2
        old, new = os.fsencode(unfinished), os.fsencode(file)
        if rename(_AT_FDCWD, old, _AT_FDCWD, new, ctypes.c_uint(_NO_REPLACE)) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(file)) from error  # FileExistsError for EEXIST


def _set_aside(file: Path, size: int) -> None:
    """Take away a file of the wrong size. If another process has put the right one there meanwhile, put that one back."""
    aside = file.with_name(f".{file.name}.{os.urandom(8).hex()}")
    file.rename(aside)
    try:
        if aside.stat().st_size == size:
            with contextlib.suppress(FileExistsError):
                _name(aside, file)
    finally:
        aside.unlink(missing_ok=True)


def _opened(file: Path, size: int) -> int:
    """Open the existing file, or return -1 if it has another size. All checks are made on the descriptor.

    Raises:
        FileNotFoundError: there is no file.
        OSError: it is a link, no regular file, belongs to another user, or others may write to it.
    """
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    facts = os.fstat(descriptor)
    own = facts.st_uid == os.geteuid() and not facts.st_mode & _OTHERS_WRITE
    if stat.S_ISREG(facts.st_mode) and own and facts.st_size == size:
        return descriptor
    os.close(descriptor)
    if not stat.S_ISREG(facts.st_mode) or not own:
        raise OSError(
            errno.EPERM, f"{file} is no regular file of this user's own: delete it, and whatever put it there"
        )
    return -1
