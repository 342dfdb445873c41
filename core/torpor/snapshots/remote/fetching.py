"""Fetch chunks and write them into files: each is checked before a byte of it is written."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, NamedTuple

from torpor.errors import DamagedSnapshotError
from torpor.snapshots.remote.chunks import stored_limit
from torpor.snapshots.remote.cutting import is_zeros
from torpor.snapshots.remote.parallel import each, share
from torpor.snapshots.remote.store import chunk_path
from torpor.snapshots.remote.work_folder import opened_file_at
from torpor.telemetry.progress import followed_value

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torpor.snapshots.remote.store import Store
    from torpor.snapshots.remote.values import Chunk, Codec, Piece, RemoteFile

__all__ = ["Fetching"]

_BLOCK = 64 << 10
_ZEROS = bytes(_BLOCK)


class _Place(NamedTuple):
    """Where a part of a chunk goes."""

    path: str
    piece: Piece


class Fetching:
    """Fetches the chunks of some files into a folder.

    Args:
        store: holds the chunks.
        codec: reads them.
        folder: where the files lie; they have their size already.
        files: what to fetch.
        chunks: the table that the files' pieces refer to.
    """

    def __init__(
        self, store: Store, codec: Codec, folder: Path, files: Sequence[RemoteFile], chunks: Sequence[Chunk]
    ) -> None:
        self._store = store
        self._codec = codec
        self._folder = folder
        self._chunks = chunks
        self._lock = threading.Lock()
        self._places: dict[int, list[_Place]] = {}
        for file in files:
            for piece in file.pieces:
                self._places.setdefault(piece.chunk, []).append(_Place(file.path, piece))
        self._written_bytes = 0
        self.fetched = 0
        self.fetched_bytes = 0
        self.kept = 0

    def run(self, jobs: int, *, left: bool) -> None:
        """Fetch them all.

        Args:
            jobs: how many at once.
            left: whether an earlier pull may have written some of them.

        Raises:
            DamagedSnapshotError: a chunk is missing, or not what was pushed.
            StoreError: the store cannot be read.
            OSError: the disk refuses.
        """
        total = sum(self._chunks[number].size for number in self._places)
        with followed_value(lambda: share(self._written_bytes, total)):
            each(self._places.items(), lambda job: self._fetch(*job, left=left), count=jobs)

    def _fetch(self, number: int, places: list[_Place], *, left: bool) -> None:
        chunk = self._chunks[number]
        fetched = 0
        if not (left and self._is_there(chunk, places)):
            stored = self._read(chunk)
            fetched = len(stored)
            try:
                content = self._codec.unpack(stored, chunk)
            except DamagedSnapshotError as error:
                raise self._damaged(chunk, str(error)) from None
            for place in places:
                self._write(place, content)
        with self._lock:
            self._written_bytes += chunk.size
            self.fetched += bool(fetched)
            self.kept += not fetched
            self.fetched_bytes += fetched

    def _read(self, chunk: Chunk) -> bytes:
        try:
            stored = self._store.read(chunk_path(chunk.name), stored_limit(chunk) + 1)
        except FileNotFoundError:
            raise self._damaged(chunk, "it is missing") from None
        if len(stored) > stored_limit(chunk):
            raise self._damaged(chunk, f"it has more than {stored_limit(chunk)} bytes")
        return stored

    def _write(self, place: _Place, content: bytes) -> None:
        """Write a piece; blocks of zeros stay holes."""
        piece = place.piece
        descriptor = opened_file_at(self._folder, place.path)
        try:
            view = memoryview(content)[piece.start : piece.start + piece.length]
            for begin, end in _runs(content, piece):
                at = begin
                while at < end:
                    at += os.pwrite(descriptor, view[at:end], piece.at + at)
        finally:
            os.close(descriptor)

    def _is_there(self, chunk: Chunk, places: list[_Place]) -> bool:
        """Whether an earlier pull wrote this chunk: what lies in the files has its hash."""
        content = bytearray(chunk.size)
        for path, piece in places:
            descriptor = opened_file_at(self._folder, path)
            try:
                found = os.pread(descriptor, piece.length, piece.at)
            finally:
                os.close(descriptor)
            content[piece.start : piece.start + len(found)] = found
        whole = bytes(content)
        return not is_zeros(whole) and self._codec.name(whole) == chunk.name

    def _damaged(self, chunk: Chunk, what: str) -> DamagedSnapshotError:
        return DamagedSnapshotError(
            f"The chunk {chunk_path(chunk.name)} of the store {self._store.url} is damaged: {what}. Nothing was pulled. Push the "
            "snapshot once more with --again, from a machine that has it."
        )


def _runs(content: bytes, piece: Piece) -> list[tuple[int, int]]:
    """Begin and end of each run of blocks that are not zeros, counted from the piece's begin.

    Blocks lie on a grid of the file, so a run begins and ends where a hole can.
    """
    runs: list[tuple[int, int]] = []
    begin = 0
    while begin < piece.length:
        end = min(piece.length, begin + _BLOCK - (piece.at + begin) % _BLOCK)
        if not content.startswith(_ZEROS[: end - begin], piece.start + begin):
            if runs and runs[-1][1] == begin:
                begin = runs.pop()[0]
            runs.append((begin, end))
        begin = end
    return runs
