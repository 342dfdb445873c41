"""A store that lies: whatever it holds, a pull refuses it with the reason, and leaves nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
from typing import TYPE_CHECKING, cast

import pytest
import zstandard

from tests.snapshots.remote.remote_store import (
    beside,
    chunk_files,
    large_snapshot,
    manifest_parts,
    write_manifest,
)
from torpor import DamagedSnapshotError, StoreError
from torpor.snapshots.remote import manifest_file, opening
from torpor.snapshots.remote.listing import list_store
from torpor.snapshots.remote.opening import open_remote
from torpor.snapshots.remote.pull import pull
from torpor.snapshots.remote.push import push

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Content = dict[str, object]

pytestmark = pytest.mark.usefixtures("_own_cache")


@pytest.fixture
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORPOR_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the snapshot `one`, and with a store that holds it."""
    folder = tmp_path_factory.mktemp("pushed")
    push(large_snapshot(folder / "one"), f"{folder}/store/one")
    return folder


@pytest.fixture
def store(tmp_path: Path, pushed: Path) -> Path:
    """A store of the test's own with one snapshot, `one`, which lies beside it."""
    shutil.copytree(pushed / "one", tmp_path / "one", copy_function=os.link)  # no test writes into it
    return shutil.copytree(pushed / "store", tmp_path / "store")


def change_body(store: Path, change: Callable[[Content], object]) -> None:
    """Change the body of the manifest, and give the label its new hash."""
    first, label, body = manifest_parts(store, "one")
    content = json.loads(zstandard.ZstdDecompressor().decompress(body))
    change(content)
    packed = zstandard.ZstdCompressor().compress(json.dumps(content).encode())
    label |= {"body_size": len(packed), "body_sha256": hashlib.sha256(packed).hexdigest()}
    write_manifest(store, "one", first, label, packed)


def files(content: Content) -> list[Content]:
    """The files in a body."""
    return cast("list[Content]", content["files"])


def rename_first(path: str) -> Callable[[Content], object]:
    """Give a file another path, in the body and in the snapshot's own manifest."""

    def change(content: Content) -> None:
        documents = cast("dict[str, str]", content["documents"])
        own = json.loads(base64.b64decode(documents["manifest.json"]))
        old = files(content)[0]["path"]
        own["files"][path] = own["files"].pop(old)
        documents["manifest.json"] = base64.b64encode(json.dumps(own).encode()).decode()
        files(content)[0]["path"] = path

    return change


def set_pieces(pieces: object) -> Callable[[Content], object]:
    """Give the first file other pieces."""
    return lambda content: files(content)[0].update(pieces=pieces)


BODIES: dict[str, tuple[Callable[[Content], object], str]] = {
    "a path upwards": (rename_first("../evil"), "path"),
    "an absolute path": (rename_first("/etc/evil"), "path"),
    "a path with NUL": (rename_first("images/a\0b"), "path"),
    "a path below a file": (rename_first("private.json/x"), "lists"),
    "a path in the manifest's place": (rename_first("manifest.json"), "path"),
    "a path twice": (lambda content: files(content).append(files(content)[0]), "occurs once"),
    "a file less": (lambda content: files(content).pop(), "other files"),
    "a file of another size": (lambda content: files(content)[0].update(size=1 << 62), "other files"),
    "a piece behind the end of its file": (set_pieces([[1 << 40, 5, 0, 0]]), "inside"),
    "a piece before the last one": (set_pieces([[4, 2, 0, 0], [0, 2, 0, 0]]), "inside"),
    "a piece of no chunk": (set_pieces([[0, 2, 999, 0]]), "inside"),
    "a piece behind the end of its chunk": (set_pieces([[0, 2, 0, 1 << 50]]), "inside"),
    "a negative piece": (set_pieces([[-1, 2, 0, 0]]), "four whole numbers"),
    "a huge chunk": (lambda content: cast("list[list[object]]", content["chunks"])[0].__setitem__(1, 1 << 40), "chunk"),
    "a chunk named like a path": (
        lambda content: cast("list[list[object]]", content["chunks"])[0].__setitem__(0, "../" * 21 + "x"),
        "chunk",
    ),
    "a document named like a path": (
        lambda content: cast("Content", content["documents"]).update({"../x": ""}),
        "file names",
    ),
    "no manifest of its own": (lambda content: cast("Content", content["documents"]).pop("manifest.json"), "document"),
    "an unknown field": (lambda content: content.update(more=1), "unknown field"),
}


@pytest.mark.fault(
    "a manifest in a store breaks a rule: paths, pieces, sizes", area="snapshot store", outcome="refused"
)
@pytest.mark.parametrize("what", BODIES)
def test_a_manifest_that_breaks_a_rule_is_refused(tmp_path: Path, store: Path, what: str) -> None:
    """Before a chunk is fetched or a file is made."""
    change, told = BODIES[what]
    change_body(store, change)
    with pytest.raises(DamagedSnapshotError, match=told) as caught:
        pull(open_remote(f"{store}/one"), tmp_path / "back")
    assert str(caught.value).endswith("push it again.")
    assert beside(tmp_path / "back") == ["one", "store"]


HEADS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda _: b"", "two lines"),
    "not JSON": (lambda whole: b"\0" * 100 + b"\n" + whole, "not JSON"),
    "cut in its body": (lambda whole: whole[:-5], "bytes, not"),
    "changed in its body": (lambda whole: whole[:-1] + bytes([whole[-1] ^ 1]), "not what its label says"),
    "of another format": (lambda whole: whole.replace(b'"torpor_store": 1', b'"torpor_store": 2', 1), "format 2"),
    "of another name": (lambda whole: whole.replace(b'"name": "one"', b'"name": "two"', 1), "manifest of 'two'"),
    "a label without end": (lambda whole: whole[: whole.index(b"\n") + 1] + b"[" * (1 << 20), "two lines"),
}


@pytest.mark.fault("a manifest in a store is cut or changed", area="snapshot store", outcome="refused")
@pytest.mark.parametrize("what", HEADS)
def test_a_damaged_manifest_is_refused(tmp_path: Path, store: Path, what: str) -> None:
    """The list names it as damaged, as far as the head tells, and shows the others."""
    change, told = HEADS[what]
    file = store / "snapshots" / "one.snapshot"
    push(tmp_path / "one", f"{store}/zwei")
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(DamagedSnapshotError, match=told):
        open_remote(f"{store}/one")
    one, other = list_store(str(store))
    assert (one.label is None) == (what != "changed in its body")
    assert other.label is not None


@pytest.mark.fault("a manifest in a store has gigabytes", area="snapshot store", outcome="refused")
def test_a_huge_manifest_is_not_read(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is a body that claims to become huge."""
    monkeypatch.setattr(opening, "MOST_BYTES", 1 << 20)
    monkeypatch.setattr(manifest_file, "_MOST_BODY_BYTES", 1 << 20)
    file = store / "snapshots" / "one.snapshot"
    whole = file.read_bytes()
    os.truncate(file, 3 << 30)
    with pytest.raises(DamagedSnapshotError, match="more than"):
        open_remote(f"{store}/one")
    file.write_bytes(whole)
    bomb = zstandard.ZstdCompressor(level=3).compress(bytes(manifest_file._MOST_BODY_BYTES + 1))
    first, label, _ = manifest_parts(store, "one")
    label |= {"body_size": len(bomb), "body_sha256": hashlib.sha256(bomb).hexdigest()}
    write_manifest(store, "one", first, label, bomb)
    with pytest.raises(DamagedSnapshotError, match="its body has more than"):
        open_remote(f"{store}/one")


CHUNKS: dict[str, tuple[Callable[[bytes], bytes | None], str]] = {
    "missing": (lambda _: None, "is missing"),
    "cut": (lambda stored: stored[:-3], "cut or changed"),
    "empty": (lambda _: b"", "cut or changed|does not have"),
    "another content": (
        lambda stored: zstandard.ZstdCompressor().compress(bytes(len(zstandard.ZstdDecompressor().decompress(stored)))),
        "not what its name says",
    ),
    "a bomb": (lambda _: zstandard.ZstdCompressor().compress(bytes(1 << 28)), "does not have"),
    "a frame of unknown size": (
        lambda stored: zstandard.ZstdCompressor(write_content_size=False).compress(stored),
        "does not have",
    ),
    "more behind the frame": (lambda stored: stored + b"more", "cut or changed"),
    "too large": (lambda stored: stored + bytes(64 << 20), "more than"),
}


@pytest.mark.fault("a chunk of a store is missing, cut, changed or a bomb", area="snapshot store", outcome="refused")
@pytest.mark.parametrize("what", CHUNKS)
def test_a_damaged_chunk_is_refused(tmp_path: Path, store: Path, what: str) -> None:
    """With its name; nothing is left, and a push with --again repairs it."""
    change, told = CHUNKS[what]
    chunk = chunk_files(store)[0]
    stored = change(chunk.read_bytes())
    chunk.unlink()
    if stored is not None:
        chunk.write_bytes(stored)
    with pytest.raises(DamagedSnapshotError, match=told) as caught:
        pull(open_remote(f"{store}/one"), tmp_path / "back")
    assert chunk.name in str(caught.value)
    assert beside(tmp_path / "back") == ["one", "store"]
    push(tmp_path / "one", f"{store}/one", again=True)
    assert pull(open_remote(f"{store}/one"), tmp_path / "back").fetched == 3


@pytest.mark.fault("a chunk of a store is a link, a pipe or a folder", area="snapshot store", outcome="refused")
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_chunk_that_is_no_file_is_refused(tmp_path: Path, store: Path, kind: str) -> None:
    """A pipe does not hold the pull up."""
    chunk = chunk_files(store)[0]
    chunk.unlink()
    if kind == "link":
        chunk.symlink_to("/etc/passwd")
    elif kind == "pipe":
        os.mkfifo(chunk)
    else:
        chunk.mkdir()
    with pytest.raises(StoreError, match="cannot read chunks/"):
        pull(open_remote(f"{store}/one"), tmp_path / "back")
    assert not (tmp_path / "back").exists()
