"""A store in a folder, keys, and a snapshot whose files have holes, for the tests of push and pull."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, TypedDict

from tests.snapshots.small_snapshot import content_of, rewrite, small_snapshot
from torpor.snapshots.store.files import describe_files

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MIB = 1 << 20


def large_snapshot(folder: Path, *, seed: int = 1) -> Path:
    """A snapshot with a file of 20 MiB: data, a hole, data that repeats, and zeros that are written."""
    small_snapshot(folder)
    block = bytes((seed * 7 + number * number) % 251 for number in range(64 << 10)) * 16
    file = folder / "images" / "memory-1000.img"
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(block[: MIB // 2])
        stream.seek(9 * MIB)
        stream.write(block)
        stream.seek(16 * MIB)
        stream.write(bytes(2 * MIB))
        stream.truncate(20 * MIB)
    described(folder)
    return folder


def described(folder: Path) -> None:
    """Write the list of files into the manifest once more."""
    content = content_of(folder)
    content["files"] = {path: facts._asdict() for path, facts in describe_files(folder).items()}
    rewrite(folder, content)


def files_of(folder: Path) -> Mapping[str, bytes]:
    """Every file under a folder by its path."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def beside(folder: Path) -> list[str]:
    """What lies in the folder's parent, hidden names too, without the folder and the cache root."""
    return sorted(one.name for one in folder.parent.iterdir() if one.name not in (folder.name, "cache"))


class First(TypedDict):
    """The first line of a manifest."""

    torpor_store: int
    signatures: list[dict[str, str]]


def manifest_parts(store: Path, name: str) -> tuple[First, dict[str, object], bytes]:
    """Signatures, label and body of a manifest in a store."""
    first, line, body = (store / "snapshots" / f"{name}.snapshot").read_bytes().split(b"\n", 2)
    return json.loads(first), json.loads(line), body


def write_manifest(store: Path, name: str, first: object, label: object, body: bytes) -> None:
    """Write a manifest into a store."""
    lines = json.dumps(first).encode() + b"\n" + json.dumps(label).encode() + b"\n"
    (store / "snapshots" / f"{name}.snapshot").write_bytes(lines + body)


def chunk_files(store: Path) -> list[Path]:
    """Every chunk of a store."""
    return sorted(file for file in (store / "chunks").rglob("*") if file.is_file())
