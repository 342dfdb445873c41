"""Push a snapshot to a store: chunks first, the manifest last."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from typing import TYPE_CHECKING

from torpor.errors import DamagedSnapshotError, SnapshotError
from torpor.snapshots.remote.at_work import at_work
from torpor.snapshots.remote.chunks import codec_for, stored_limit
from torpor.snapshots.remote.cutting import Part, Source, content_of, cut, is_zeros
from torpor.snapshots.remote.encryption import checked_recipients, encrypted, kept_secret
from torpor.snapshots.remote.location import location_of, shown_url
from torpor.snapshots.remote.manifest_file import MOST_BYTES, MOST_LABEL_BYTES, Body, body_bytes, label_line, written
from torpor.snapshots.remote.parallel import each, jobs_here, share, within
from torpor.snapshots.remote.references import write_references
from torpor.snapshots.remote.signature import signed, signer
from torpor.snapshots.remote.store import Store, chunk_path, manifest_path
from torpor.snapshots.remote.values import Chunk, Label, Piece, Pushed, RemoteFile
from torpor.snapshots.store.failures import bad_reason
from torpor.snapshots.store.files import damaged_files
from torpor.snapshots.store.folder import check_same, checked, real_folder
from torpor.snapshots.store.hold import Hold
from torpor.snapshots.store.manifest import MANIFEST, OUTSIDE
from torpor.snapshots.store.stored import inspect
from torpor.telemetry.progress import followed_value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from torpor.snapshots.remote.at_work import AtWork
    from torpor.snapshots.remote.location import Location
    from torpor.snapshots.remote.values import Codec
    from torpor.snapshots.store.manifest import Manifest

__all__ = ["push"]

_LONGEST_TEXT = 512


def push(
    folder: Path,
    url: str,
    *,
    key: Path | None = None,
    recipients: Sequence[str] = (),
    outside: Sequence[Path] = (),
    documents: Mapping[str, bytes] | None = None,
    again: bool = False,
    jobs: int = 0,
) -> Pushed:
    """Push a snapshot. It replaces a snapshot of that name in one step; a push that was interrupted goes on.

    Args:
        folder: the snapshot.
        url: where it goes: the store, and a name in it as the last part.
        key: file with an Ed25519 private key in OpenSSH's form; signs.
        recipients: age recipients (`age1...`); encrypts for each of them.
        outside: files outside of the folder that are pushed with it, by absolute path.
        documents: further small files for whoever opens the snapshot, by name.
        again: send every chunk, also those that the store has.
        jobs: how many transfers run at once; 0 for a number that suits this machine.

    Raises:
        ConfigurationError: the URL, a key or a recipient is wrong, or a package is missing.
        SnapshotError: the folder holds no snapshot, or a damaged one.
        StoreError: the store cannot be written.
    """
    pushing = _Push(real_folder(folder), location_of(url), signer(key) if key else None, checked_recipients(recipients))
    with _held(pushing.folder):
        sent = pushing.send(outside, documents or {}, again=again, jobs=jobs or jobs_here())
    return sent._replace(url=shown_url(url))


class _Push:
    """One push, with everything checked that needs neither the snapshot nor the store."""

    def __init__(
        self, folder: Path, location: Location, key: Ed25519PrivateKey | None, recipients: Sequence[str]
    ) -> None:
        self.folder = folder
        self._name = location.name
        self._store = Store(location.store)
        self._key = key
        self._recipients = recipients

    def send(self, outside: Sequence[Path], documents: Mapping[str, bytes], *, again: bool, jobs: int) -> Pushed:
        """Send the chunks, then the manifest. Nobody removes chunks from the store meanwhile."""
        with contextlib.ExitStack() as ending:
            presence = ending.enter_context(at_work(self._store, "push")) if self._store.keeps_times else None
            if presence:
                presence.wait_for_end_of("collect")
            return self._sent(outside, documents, presence, again=again, jobs=jobs)

    def _sent(
        self,
        outside: Sequence[Path],
        documents: Mapping[str, bytes],
        presence: AtWork | None,
        *,
        again: bool,
        jobs: int,
    ) -> Pushed:
        begun = time.monotonic()
        manifest = _whole(self.folder)
        secret = kept_secret(self._store.id, self._recipients) if self._recipients else b""
        sending = _Sending(self._store, codec_for(secret), _sources(self.folder, manifest, outside), again=again)
        sending.run(self.folder, manifest, jobs)
        own = {name: (self.folder / name).read_bytes() for name in (MANIFEST, OUTSIDE)}
        body = sending.body({**documents, **own}, manifest, secret)
        packed = encrypted(body_bytes(body), self._recipients) if self._recipients else body_bytes(body)
        label = _label(self._name, manifest, body, sending, packed)._replace(encrypted=bool(self._recipients))
        if self._recipients:
            write_references(self._store, label.body_sha256, (chunk.name for chunk in body.chunks))
        if presence:
            presence.check()
        self._publish(label, packed)
        return Pushed(label, "", len(body.chunks), sending.sent, sending.sent_bytes, time.monotonic() - begun)

    def _publish(self, label: Label, packed: bytes) -> None:
        """Write the manifest: from here on the snapshot is in the store."""
        line = label_line(label)
        data = written(line, [signed(self._key, line)] if self._key else [], packed)
        if len(line) > MOST_LABEL_BYTES or len(data) > MOST_BYTES:
            raise SnapshotError(f"{self.folder} cannot be pushed: its manifest would have {len(data)} bytes.")
        within(lambda: self._store.write(manifest_path(self._name), data))
        self._store.clear()


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Keep a snapshot from being pruned, and check that it is still the same at the end.

    Raises:
        SnapshotError: it is not this user's own, or was replaced; or a file cannot be read.
    """
    hold = Hold()
    hold.take(folder, used=False)
    try:
        mark = checked(folder)
        yield
        check_same(folder, mark)
    except OSError as error:
        raise SnapshotError(
            f"{folder} cannot be pushed: {error.filename or 'a file'}: {error.strerror or error}."
        ) from error
    finally:
        hold.release()


class _Sending:
    """Sends the chunks of some files, those that the store lacks.

    Args:
        store: where they go.
        codec: names and packs them.
        sources: the files.
        again: send them all.
    """

    def __init__(self, store: Store, codec: Codec, sources: Sequence[Source], *, again: bool) -> None:
        self._store = store
        self._codec = codec
        self._sources = sources
        self._again = again
        self._stored: dict[str, int] = {}
        self._taken: set[str] = set()
        self._lock = threading.Lock()
        self._found: list[tuple[Chunk, tuple[Part, ...]]] = []
        self._hashes: dict[int, str] = {}
        self._read_bytes = 0
        self.sent = 0
        self.sent_bytes = 0

    def run(self, folder: Path, manifest: Manifest, jobs: int) -> None:
        """Send the chunks, and compare every file with the snapshot's own manifest meanwhile.

        Raises:
            DamagedSnapshotError: a file is not what was captured.
            StoreError: the store cannot be used.
            OSError: a file cannot be read.
        """
        if not self._again:
            self._stored = {name: one.size for name, one in self._store.chunks().items()}
        total = sum(min(source.size, source.file.stat().st_blocks * 512) for source in self._sources)
        with followed_value(lambda: share(self._read_bytes, total)):
            each(self._jobs(folder, manifest), lambda job: job(), count=jobs)

    def body(self, documents: Mapping[str, bytes], manifest: Manifest, secret: bytes) -> Body:
        """What the manifest's body says, after `run`."""
        numbers: dict[str, int] = {}
        chunks: list[Chunk] = []
        pieces: dict[int, list[Piece]] = {}
        for chunk, parts in sorted(self._found, key=lambda found: found[1]):
            if chunk.name not in numbers:
                numbers[chunk.name] = len(chunks)
                chunks.append(chunk)
            start = 0
            for part in parts:
                pieces.setdefault(part.source, []).append(Piece(part.at, part.length, numbers[chunk.name], start))
                start += part.length
        files: list[RemoteFile] = []
        for number, source in enumerate(self._sources):
            facts = manifest.files.get(source.path)
            digest = facts.sha256 if facts else self._hashes[number]
            files.append(RemoteFile(source.path, source.size, digest, tuple(pieces.get(number, ()))))
        inside = tuple(file for file in files if not file.path.startswith("/"))
        beside = tuple(file for file in files if file.path.startswith("/"))
        return Body(documents, tuple(chunks), inside, beside, secret)

    def stored_bytes(self, chunks: Sequence[Chunk]) -> int:
        """Bytes that chunks take in the store."""
        return sum(self._stored[chunk.name] for chunk in chunks)

    def _jobs(self, folder: Path, manifest: Manifest) -> Iterator[Callable[[], None]]:
        """One job for each chunk and each file outside; first the longest, which checks the snapshot's own files."""
        yield lambda: _check_files(folder, manifest)
        for number, source in enumerate(self._sources):
            if source.path.startswith("/"):
                yield lambda number=number, source=source: self._hash(number, source)  # type: ignore[misc]
        for parts in cut(self._sources):
            yield lambda parts=parts: self._send(parts)  # type: ignore[misc]

    def _hash(self, number: int, source: Source) -> None:
        with source.file.open("rb") as stream:
            self._hashes[number] = hashlib.file_digest(stream, "sha256").hexdigest()

    def _send(self, parts: tuple[Part, ...]) -> None:
        content = content_of(parts, self._sources)
        with self._lock:
            self._read_bytes += len(content)
        if is_zeros(content):
            return
        chunk = Chunk(self._codec.name(content), len(content))
        with self._lock:
            self._found.append((chunk, parts))
            known = chunk.name in self._taken or 0 < self._stored.get(chunk.name, 0) <= stored_limit(chunk)
            self._taken.add(chunk.name)
        if known:
            return
        stored = self._codec.pack(content, chunk.name)
        self._store.write(chunk_path(chunk.name), stored)
        with self._lock:
            self._stored[chunk.name] = len(stored)
            self.sent += 1
            self.sent_bytes += len(stored)


def _whole(folder: Path) -> Manifest:
    """The manifest of a snapshot that may be pushed.

    Raises:
        SnapshotError: it is damaged, or marked bad.
    """
    manifest = inspect(folder)
    if reason := bad_reason(folder):
        raise SnapshotError(f"{folder} is not pushed: {reason}.")
    if damages := damaged_files(folder, manifest, full=False):
        raise DamagedSnapshotError(f"{folder} is not pushed: {'; '.join(damages)}. Take a new snapshot.")
    return manifest


def _check_files(folder: Path, manifest: Manifest) -> None:
    if damages := damaged_files(folder, manifest, full=True):
        raise DamagedSnapshotError(f"{folder} is not pushed: {'; '.join(damages)}. Take a new snapshot.")


def _sources(folder: Path, manifest: Manifest, outside: Sequence[Path]) -> list[Source]:
    """The files to push; the manifest's body holds two of the folder itself.

    Raises:
        SnapshotError: a file outside cannot be read.
    """
    inner = [
        Source(folder / path, path, facts.size)
        for path, facts in sorted(manifest.files.items())
        if path not in (MANIFEST, OUTSIDE)
    ]
    for file in sorted(set(outside)):
        try:
            if not file.is_absolute() or not file.is_file():
                raise SnapshotError(f"{file} is no file with an absolute path; it cannot be pushed with {folder}.")
            inner.append(Source(file.resolve(), str(file), file.stat().st_size))
        except OSError as error:
            raise SnapshotError(f"{file} cannot be pushed with {folder}: {error.strerror}.") from error
    return inner


def _label(name: str, manifest: Manifest, body: Body, sending: _Sending, packed: bytes) -> Label:
    made = manifest.deployment
    return Label(
        name=name,
        pushed_at=time.time(),
        captured_at=manifest.captured_at,
        torpor=made.torpor[:_LONGEST_TEXT],
        deployment=made.name[:_LONGEST_TEXT],
        engine=made.engine[:_LONGEST_TEXT],
        model=made.model[:_LONGEST_TEXT],
        revision=made.revision[:_LONGEST_TEXT],
        architecture=manifest.machine.architecture[:_LONGEST_TEXT],
        gpus=tuple(gpu.name[:_LONGEST_TEXT] for gpu in manifest.machine.gpus),
        size=sum(file.size for file in (*body.files, *body.outside)),
        stored_size=sending.stored_bytes(body.chunks),
        encrypted=False,
        body_size=len(packed),
        body_sha256=hashlib.sha256(packed).hexdigest(),
    )
