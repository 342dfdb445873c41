"""`torpor_hf_cache.download` with a hub or a volume that sends malicious names and answers."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from tests.hub_server.repository import COMMIT, Repository
from torpor_hf_cache import download

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.plugins.torpor_hf_cache.conftest import Client


def listed(path: str, **changes: object) -> dict[str, object]:
    """Build the listing entry of a file that the hub would send."""
    return {"type": "file", "oid": hashlib.sha1(b"blob 5\0owned").hexdigest(), "size": 5, "path": path, **changes}


HOSTILE_NAMES = [
    "../../victim",
    "../../../../victim",
    "..",
    "a/../../victim",
    "/tmp/victim",
    "//victim",
    "a//b",
    "./a",
    "a/.",
    "a/",
    "",
    "..\\..\\victim",
    "a\0b",
    "a\nb",
    "a\x7f",
    "a" * 256,
    "/".join(["a" * 200] * 6),
    "config.json",
]


@pytest.mark.fault("a hub lists a file name that points outside the cache or is invalid", area="hub", outcome="refused")
@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=lambda name: ascii(name)[:30])
def test_an_invalid_file_name_is_refused(tmp_path: Path, name: str) -> None:
    """The message names the file."""
    place = download._Place(tmp_path, "org/tiny", COMMIT)
    entry = SimpleNamespace(path=name, size=5, lfs=None, blob_id="0" * 40)
    with pytest.raises(download.FetchError, match="gave an invalid listing of org/tiny") as caught:
        download._add(place, {"config.json": download._File(5, None, "0" * 40)}, entry)  # type: ignore[arg-type]
    assert ascii(name)[:40] in str(caught.value)
    assert caught.value.code == 65


def test_an_endless_listing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client requests one page of a listing after the other."""
    monkeypatch.setattr(download, "_MOST_FILES", 3)
    place = download._Place(tmp_path, "org/tiny", COMMIT)
    listing: dict[str, download._File] = {}
    entries = [SimpleNamespace(path=f"{number}.json", size=5, lfs=None, blob_id="0" * 40) for number in range(4)]
    for entry in entries[:3]:
        download._add(place, listing, entry)  # type: ignore[arg-type]
    with pytest.raises(download.FetchError, match="more than 3 files"):
        download._add(place, listing, entries[3])  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["../../victim", "/tmp/victim", "config.json/x"])
def test_a_hostile_listing_ends_a_fetch_before_it_writes_or_removes_a_file(
    one_client: Client, repository: Repository, name: str
) -> None:
    """Nothing is fetched, and a file outside the cache stays even if its size differs from the listing."""
    victims = [one_client.cache.parent / "victim", one_client.cache / "victim", one_client.folder / "victim"]
    one_client.folder.mkdir(parents=True)
    for victim in victims:
        victim.write_text("precious")
    repository.strange = (listed(name),)
    ran = one_client.fetch()
    assert ran.returncode == 65, ran.stderr
    assert "gave an invalid listing of org/tiny" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert [victim.read_text() for victim in victims] == ["precious"] * 3
    assert not one_client.snapshot.exists()


@pytest.mark.slow
@pytest.mark.fault("a hub lists an invalid size or hash", area="hub", outcome="refused")
@pytest.mark.parametrize(
    "changes",
    [
        {"size": -1},
        {"oid": "../../victim"},
        {"lfs": {"oid": "../../../victim", "size": 5, "pointerSize": 120}},
    ],
)
def test_an_invalid_listed_size_or_hash_is_refused(
    one_client: Client, repository: Repository, changes: dict[str, object]
) -> None:
    """The message names the file and the field."""
    repository.strange = (listed("extra.json", **changes),)
    ran = one_client.fetch()
    assert ran.returncode == 65, ran.stderr
    assert "the file 'extra.json': its " in ran.stderr


@pytest.mark.slow
@pytest.mark.fault("a hub answers with an ETag that points outside the cache", area="hub", outcome="refused")
@pytest.mark.parametrize(
    ("etag", "path"), [("../../../../victim", "config.json"), ("/tmp/victim", "model-00001-of-00002.safetensors")]
)
def test_an_etag_that_is_a_path_is_refused(client: Client, repository: Repository, etag: str, path: str) -> None:
    """The hub's client would write to it, because the ETag is the blob's name."""
    repository.etags = {path: etag}
    ran = client.fetch()
    assert ran.returncode == 65, ran.stderr
    assert "with the ETag" in ran.stderr
    assert not list(client.cache.parent.rglob("*victim*"))


@pytest.mark.slow
@pytest.mark.fault("a hub sends far more bytes than it lists", area="hub", outcome="refused")
def test_a_body_longer_than_the_largest_listed_file_is_cut(
    one_client: Client, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The headers match the body, so the client alone would write all of it."""
    repository.corrupt = {"config.json": b"x" * (80 << 20)}
    ran = one_client.fetch()
    assert ran.returncode in (73, 74, 75, 76), ran.stderr
    assert "Traceback" not in ran.stderr
    assert sum(file.stat().st_size for file in one_client.cache.rglob("*") if file.is_file()) < 70 << 20


@pytest.mark.slow
@pytest.mark.fault("folders of a volume are links to other folders", area="hub", outcome="refused")
@pytest.mark.parametrize("folder", ["blobs", f"snapshots/{COMMIT}/original", ""])
def test_a_folder_that_is_a_link_outside_is_refused(one_client: Client, tmp_path: Path, folder: str) -> None:
    """The fetch writes or removes nothing there."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "params.json").write_text("precious")
    link = one_client.folder / folder
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(elsewhere)
    ran = one_client.fetch()
    assert ran.returncode == 73, ran.stderr
    assert "is a link to" in ran.stderr
    assert [file.name for file in elsewhere.iterdir()] == ["params.json"]
    assert (elsewhere / "params.json").read_text() == "precious"


@pytest.fixture
def fetched(one_client: Client, monkeypatch: pytest.MonkeyPatch) -> Client:
    """A complete cache, as after a fetch."""
    monkeypatch.setattr(os, "sync", lambda: None)
    place = download._Place(one_client.cache, "org/tiny", COMMIT)
    content = b'{"a": 1}'
    (place.folder / "blobs").mkdir(parents=True)
    (place.folder / "blobs" / "x").write_bytes(content)
    place.snapshot.mkdir(parents=True)
    (place.snapshot / "config.json").symlink_to("../../blobs/x")
    git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    manifest = download._Manifest((), (), {"config.json": download._File(len(content), None, git)})
    download._write(place.manifest, {"format": 1, **asdict(manifest)})
    download._finish(place, manifest)
    return one_client


@pytest.mark.fault(
    "a fetched file was replaced by a pipe, a folder or a link out of the cache", area="hub", outcome="refused"
)
@pytest.mark.parametrize("kind", ["a pipe", "a folder", "a link outside", "a link to itself"])
def test_verify_accepts_only_regular_files_of_the_cache(fetched: Client, tmp_path: Path, kind: str) -> None:
    """It runs before every start and must not block on a pipe."""
    file = fetched.snapshot / "config.json"
    content = file.read_bytes()
    file.unlink()
    if kind == "a pipe":
        os.mkfifo(file)
    elif kind == "a folder":
        file.mkdir()
    elif kind == "a link outside":
        (tmp_path / "other").write_bytes(content)
        file.symlink_to(tmp_path / "other")
    else:
        file.symlink_to(file.name)
    with pytest.raises(download.FetchError, match=r"is damaged: config\.json") as caught:
        download.verify("org/tiny", COMMIT, cache=fetched.cache)
    assert caught.value.code == 76


def marker_of(client: Client, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest, and update the hash in the completion marker."""
    folder = client.folder / "torpor"
    manifest = json.loads((folder / f"{COMMIT}.manifest.json").read_text())
    change(manifest)
    text = json.dumps(manifest)
    (folder / f"{COMMIT}.manifest.json").write_text(text)
    (folder / f"{COMMIT}.complete.json").write_text(
        json.dumps({"manifest_sha256": hashlib.sha256(text.encode()).hexdigest()})
    )


@pytest.mark.fault("the manifest of fetched weights is damaged or hostile", area="hub", outcome="refused")
@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["files"].update({"../../x": manifest["files"]["config.json"]}),
        lambda manifest: manifest["files"].update({"/etc/passwd": manifest["files"]["config.json"]}),
        lambda manifest: manifest["files"].update({"a\0b": manifest["files"]["config.json"]}),
        lambda manifest: manifest["files"].update({"config.json/x": manifest["files"]["config.json"]}),
        lambda manifest: manifest["files"]["config.json"].update(size="7"),
        lambda manifest: manifest["files"]["config.json"].update(size=-7),
        lambda manifest: manifest["files"]["config.json"].update(git="x"),
        lambda manifest: manifest["files"]["config.json"].pop("git"),
        lambda manifest: manifest["files"].update({"config.json": 7}),
        lambda manifest: manifest.update(files=[]),
        lambda manifest: manifest.update(files=None),
        lambda manifest: manifest.update(allow="x"),
        lambda manifest: manifest.update(ignore=[1]),
    ],
)
def test_a_commit_with_an_invalid_manifest_is_incomplete(
    fetched: Client, change: Callable[[dict[str, Any]], object]
) -> None:
    """Every field is checked, even if the marker has the right hash; the next fetch writes a valid manifest."""
    marker_of(fetched, change)
    with pytest.raises(download.FetchError, match="never finished"):
        download.verify("org/tiny", COMMIT, cache=fetched.cache)


@pytest.mark.fault(
    "a marker of fetched weights is a pipe, endless or nested without end", area="hub", outcome="refused"
)
@pytest.mark.parametrize("which", ["manifest", "complete"])
@pytest.mark.parametrize("kind", ["a pipe", "a folder", "nested", "holes"])
def test_a_commit_with_an_invalid_marker_is_incomplete(fetched: Client, which: str, kind: str) -> None:
    """The check neither blocks nor fills the memory."""
    file = fetched.folder / "torpor" / f"{COMMIT}.{which}.json"
    file.unlink()
    if kind == "a pipe":
        os.mkfifo(file)
    elif kind == "a folder":
        file.mkdir()
    elif kind == "nested":
        file.write_text("[" * 100_000)
    else:
        with file.open("wb") as stream:
            stream.truncate(1 << 40)
    with pytest.raises(download.FetchError, match="never finished"):
        download.verify("org/tiny", COMMIT, cache=fetched.cache)


def complete(client: Client) -> tuple[download._Place, download._Manifest]:
    """Return place and manifest of the complete commit."""
    place = download._Place(client.cache, "org/tiny", COMMIT)
    manifest = download._read_complete(place)
    assert manifest is not None
    return place, manifest


def test_the_unchanged_cache_is_complete(fetched: Client) -> None:
    """So the tests above fail for their own change only; a marker written by the tests is accepted, too."""
    marker_of(fetched, lambda manifest: manifest)
    assert download.verify("org/tiny", COMMIT, cache=fetched.cache) > 0
    assert not download._damage(*complete(fetched))
