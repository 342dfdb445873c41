"""A hash is remembered as long as nothing says that the file may have changed, and never longer."""

from __future__ import annotations

import hashlib
import json
import os
import time
from typing import TYPE_CHECKING

import pytest

from torpor.snapshots.store import known_hashes as module
from torpor.snapshots.store.known_hashes import KnownHashes, known_hashes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

OLD_NS = 1_600_000_000_000_000_000


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that was written before the two seconds in which a time says too little; the cache root is private."""
    monkeypatch.setenv("TORPOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_SETTLED_NS", -(10**12))
    place = tmp_path / "file"
    place.write_bytes(b"content")
    return place


def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of files that are read from here on."""
    names: list[str] = []
    usual = module.whole_hash

    def noted(name: str) -> str:
        names.append(name)
        return usual(name)

    monkeypatch.setattr(module, "whole_hash", noted)
    return names


def whole(file: Path) -> str:
    """What one command finds: it reads what earlier ones left, and leaves what it read."""
    with known_hashes() as hashes:
        return hashes.whole(str(file))


def test_a_file_is_read_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second command takes the hash from the first."""
    names = reads(monkeypatch)
    assert whole(file) == whole(file) == hashlib.sha256(b"content").hexdigest()
    assert names == [str(file)]


def _rewrite(file: Path, content: bytes, changed_ns: int) -> None:
    """Write a file and set its time of change back; the kernel's own time may have steps of 4 ms."""
    before, until = file.stat().st_ctime_ns, time.monotonic() + 10
    while file.stat().st_ctime_ns == before:
        assert time.monotonic() < until
        file.write_bytes(content)
        os.utime(file, ns=(changed_ns, changed_ns))


def _same_size_and_time(file: Path) -> None:
    _rewrite(file, b"CONTENT", file.stat().st_mtime_ns)


def _replaced(file: Path) -> None:
    other = file.with_name("other")
    other.write_bytes(b"CONTENT")
    other.rename(file)


@pytest.mark.fault("a file changes after its hash was noted", area="another machine", outcome="refused")
@pytest.mark.parametrize(
    "change", [_same_size_and_time, _replaced, lambda file: file.write_bytes(b"longer than it was")]
)
def test_a_changed_file_is_read_again(file: Path, change: Callable[[Path], object]) -> None:
    """Also if size and time of change were set back: the kernel's own time tells."""
    whole(file)
    change(file)
    assert whole(file) == hashlib.sha256(file.read_bytes()).hexdigest() != hashlib.sha256(b"content").hexdigest()


def test_a_file_that_has_just_changed_is_not_noted(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later change could have the same time."""
    monkeypatch.setattr(module, "_SETTLED_NS", 10**12)
    names = reads(monkeypatch)
    whole(file)
    whole(file)
    assert len(names) == 2


def test_a_file_that_changes_while_it_is_read_is_not_noted(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hash may be that of neither state."""
    usual = module.whole_hash

    def changing(name: str) -> str:
        found = usual(name)
        file.write_bytes(b"meanwhile")
        return found

    with monkeypatch.context() as patched:
        patched.setattr(module, "whole_hash", changing)
        whole(file)
    assert whole(file) == hashlib.sha256(b"meanwhile").hexdigest()


def test_a_folder_of_code_is_read_again_if_one_file_changes(tmp_path: Path, file: Path) -> None:
    """Size and time of change alone do not decide."""
    (tmp_path / "code").mkdir()
    inner = tmp_path / "code" / "one.py"
    inner.touch()
    found = []
    for content in (b"a = 1", b"a = 2"):
        _rewrite(inner, content, OLD_NS)
        for _ in range(2):
            with known_hashes() as hashes:
                found.append(hashes.folder(f"{tmp_path}/code/"))
    assert found[0] == found[1] != found[2] == found[3]
    assert file.exists()


@pytest.mark.fault("the list of known hashes is damaged or forged", area="another machine", outcome="held")
@pytest.mark.parametrize("what", ["garbage", "deep", "schema", "open to all", "a link"])
def test_a_list_that_cannot_be_trusted_is_ignored(tmp_path: Path, file: Path, what: str) -> None:
    """Everything is read, and a good list is written again."""
    whole(file)
    listed = tmp_path / "cache" / "hashes.json"
    content = json.loads(listed.read_text())
    for entry in content["entries"].values():
        entry[1] = "0" * 64
    text = {"garbage": "{", "deep": "[" * 100_000, "schema": json.dumps({**content, "schema": 2})}.get(what)
    listed.write_text(text or json.dumps(content))
    if what == "open to all":
        listed.chmod(0o666)
    if what == "a link":
        listed.rename(tmp_path / "elsewhere.json")
        listed.symlink_to(tmp_path / "elsewhere.json")
    assert whole(file) == hashlib.sha256(b"content").hexdigest()
    assert oct(listed.lstat().st_mode & 0o7777) == "0o600"


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hash is right."""
    monkeypatch.setenv("TORPOR_CACHE", str(file / "no folder"))
    assert whole(file) == hashlib.sha256(b"content").hexdigest()


def test_the_list_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries that were used last stay."""
    monkeypatch.setattr(module, "_MOST_ENTRIES", 2)
    hashes = KnownHashes({f"whole:/{name}": ("", "") for name in "abc"})
    hashes._entries["whole:/a"] = hashes._entries.pop("whole:/a")
    assert list(hashes.entries()) == ["whole:/c", "whole:/a"]
