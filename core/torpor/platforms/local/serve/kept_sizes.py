"""Measured sizes of deployments, kept over a restart of the server: one file for each in the folder `sizes` of the cache root.

A file belongs to one state of the deployment: it names a fingerprint of all its values and of this machine's GPUs. Another one
measures again. A damaged file is told and ignored, and the next measurement replaces it. A cache that cannot be written only costs
the next server its measurements.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from typing import TYPE_CHECKING, NamedTuple

from torpor._version import __version__
from torpor.errors import SnapshotError
from torpor.serving.sizes import Size
from torpor.snapshots.gpu.driver import look
from torpor.snapshots.store.fields import NEW_ONE
from torpor.snapshots.store.paths import cache_root
from torpor.snapshots.store.reading import read_part

if TYPE_CHECKING:
    from pathlib import Path

    from torpor.deployment import Deployment
    from torpor.snapshots.store.fields import Fields

__all__ = ["KeptSizes", "Sizes", "kept_sizes", "sizes_folder"]

_SCHEMA = 1
_MOST_BYTES = 1 << 16


class Sizes(NamedTuple):
    """What is known of a deployment's replicas.

    Attributes:
        serving: the largest size of one that serves; None if none was measured.
        asleep: of one that sleeps, likewise.
    """

    serving: Size | None = None
    asleep: Size | None = None


def sizes_folder() -> Path:
    """Where the files are."""
    return cache_root() / "sizes"


def kept_sizes(deployment: Deployment) -> tuple[Sizes, str]:
    """What an earlier server measured.

    Returns:
        The sizes, and why its file cannot be used; empty if it can, or if there is none.
    """
    name = _file_name(deployment.name)
    for unfinished in sizes_folder().glob(f".{name}.*"):  # of a server that was killed while it wrote
        with contextlib.suppress(OSError):
            unfinished.unlink()
    try:
        return _read(read_part(sizes_folder(), name, most=_MOST_BYTES), _fingerprint(deployment)), ""
    except OSError:
        return Sizes(), ""
    except SnapshotError as error:
        said = str(error).removesuffix(f"; {NEW_ONE}").removesuffix(".")
        return Sizes(), f"its measured sizes are ignored, and measured again: {said}"


class KeptSizes:
    """Writes sizes as they are measured.

    Args:
        deployment: whose.
    """

    def __init__(self, deployment: Deployment) -> None:
        self._file = sizes_folder() / _file_name(deployment.name)
        self._fingerprint = _fingerprint(deployment)
        self._latest = self._written = Sizes()
        self._writing = threading.Lock()

    def note(self, sizes: Sizes) -> bool:
        """Remember the latest sizes; returns whether `write` has something to do."""
        self._latest = sizes
        return sizes != self._written

    def write(self) -> None:
        """Replace the file's content by the latest sizes: all of it or nothing. Blocks; for any thread."""
        with self._writing, contextlib.suppress(OSError):
            latest = self._latest
            if latest != self._written:
                self._put(json.dumps(self._content(latest)).encode())
                self._written = latest

    def _content(self, sizes: Sizes) -> dict[str, object]:
        told = {name: size._asdict() if size else None for name, size in sizes._asdict().items()}
        return {"schema": _SCHEMA, "torpor": __version__, "fingerprint": self._fingerprint, **told}

    def _put(self, data: bytes) -> None:
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        unfinished = self._file.with_name(f".{self._file.name}.{os.getpid()}-{os.urandom(4).hex()}")
        try:
            unfinished.touch(0o600, exist_ok=False)
            unfinished.write_bytes(data)
            unfinished.rename(self._file)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise


def _read(fields: Fields, fingerprint: str) -> Sizes:
    """The sizes; none if the file is of another version, or of another state of the deployment.

    Raises:
        DamagedSnapshotError: a field is missing or wrong.
    """
    if fields.content.get("schema") != _SCHEMA or fields.content.get("fingerprint") != fingerprint:
        fields.whole("schema")
        fields.text("fingerprint")
        return Sizes()
    for name in ("schema", "torpor", "fingerprint"):
        fields.take(name)
    found = Sizes(_size(fields, "serving"), _size(fields, "asleep"))
    fields.end()
    return found


def _size(fields: Fields, name: str) -> Size | None:
    if fields.content.get(name, name) is None:
        fields.take(name)
        return None
    inner = fields.inner(name)
    size = Size(inner.whole("host"), inner.wholes("gpus"))
    inner.end()
    return size


def _file_name(name: str) -> str:
    return f"{name.replace('/', '_')}.json"


def _fingerprint(deployment: Deployment) -> str:
    """Of every value of the deployment and its plugins, and of the GPUs that it may get."""
    gpus = [gpu.name for gpu in look().gpus] if deployment.gpu else []
    return hashlib.sha256(f"{deployment!r}\n{gpus!r}".encode("utf-8", "surrogateescape")).hexdigest()
