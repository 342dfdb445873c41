"""The store itself: URLs, attempts, stalls, and what a command says of a store that fails."""

from __future__ import annotations

import json
import os
import threading
import time
from typing import TYPE_CHECKING

import fsspec
import pytest

from tests.command_line import torpor
from tests.snapshots.small_snapshot import small_snapshot
from torpor import ConfigurationError, NoRoomError, StoreError
from torpor.snapshots.remote import local_files, parallel, store
from torpor.snapshots.remote.local_files import LocalFiles
from torpor.snapshots.remote.location import Location, location_of, shown_url
from torpor.snapshots.remote.parallel import each
from torpor.snapshots.remote.store import Store

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("url", "location"),
    [
        ("s3://bucket/snapshots/qwen3", Location("s3://bucket/snapshots", "qwen3")),
        ("s3://bucket/qwen3/", Location("s3://bucket", "qwen3")),
        ("/mnt/snapshots/qwen3", Location("/mnt/snapshots", "qwen3")),
        ("qwen3", Location(".", "qwen3")),
        ("memory://qwen3", Location("memory://", "qwen3")),
        ("hf://buckets/me/store/qwen3", Location("hf://buckets/me/store", "qwen3")),
    ],
)
def test_the_last_part_of_a_url_is_the_name(url: str, location: Location) -> None:
    """The rest is the store."""
    assert location_of(url) == location


@pytest.mark.parametrize(
    "url", ["", "/", "s3://", "s3://bucket", "/a/.hidden", "/a/b c", "a::b/c", "x/" + "n" * 101, "a\0/b"]
)
def test_a_url_without_a_name_is_refused(url: str) -> None:
    """With an example of a right one."""
    with pytest.raises(ConfigurationError, match="s3://bucket/snapshots/qwen3"):
        location_of(url)


def test_a_password_in_a_url_is_not_shown() -> None:
    """Neither in messages nor in results."""
    assert shown_url("sftp://me:secret@host/store/a") == "sftp://me:***@host/store/a"
    assert shown_url("s3://key:sec/r@t@bucket/a") == "s3://key:***@bucket/a"
    assert shown_url("no s3://k:a/b@c/d, no s3://k:e@f/g") == "no s3://k:***@c/d, no s3://k:***@f/g"


@pytest.mark.parametrize("url", ["s3://bucket/a@b", "sftp://me@host/a", "http://host:8080/a@b", "abfs://box@account/a"])
def test_a_url_without_a_password_is_shown_as_it_is(url: str) -> None:
    """A user, a port and a path with `@` are none."""
    assert shown_url(url) == url


def test_a_store_without_its_package_says_what_to_install() -> None:
    """Fsspec names the package."""
    fsspec.register_implementation("torpor-lacks", "no_such_package.FileSystem", clobber=True, errtxt="Install lacking")
    with pytest.raises(ConfigurationError, match="needs a package that is not installed: Install lacking"):
        Store("torpor-lacks://bucket/x")
    with pytest.raises(ConfigurationError, match="Protocol not known: nonsense"):
        Store("nonsense://x/y")


@pytest.mark.fault("a store fails now and then", area="snapshot store", outcome="held")
def test_a_store_that_fails_now_and_then_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With pauses; a missing permission is final at once, a full disk is said as such."""
    monkeypatch.setattr(store, "_FIRST_PAUSE_S", 0.001)
    errors = [TimeoutError("slow"), OSError(5, "Input/output error"), ConnectionResetError("gone")]
    calls = []

    def failing(files: LocalFiles, path: str, most: int) -> bytes:
        calls.append(path)
        if errors:
            raise errors.pop()
        return b"content"

    monkeypatch.setattr(LocalFiles, "read", failing)
    assert Store(str(tmp_path)).read("a", 10) == b"content"
    assert len(calls) == 4
    errors.extend([TimeoutError("slow")] * 9)
    with pytest.raises(StoreError, match=r"cannot read a .*it was tried 5 times"):
        Store(str(tmp_path)).read("a", 10)
    errors[:] = [PermissionError(13, "Permission denied")]
    with pytest.raises(StoreError, match="check the permissions"):
        Store(str(tmp_path)).read("a", 10)
    errors[:] = [OSError(28, "No space left on device")]
    with pytest.raises(NoRoomError, match="has no room left"):
        Store(str(tmp_path)).read("a", 10)


@pytest.mark.fault("a store no longer answers", area="snapshot store", outcome="refused")
def test_a_store_that_no_longer_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs that end reset the clock; a hanging one does not hold the command up."""
    monkeypatch.setattr(parallel, "_ENDING_S", 0.1)
    hanging = threading.Event()

    def hang(seconds: float) -> None:
        hanging.wait(seconds)

    begun = time.monotonic()
    with pytest.raises(StoreError, match="has stalled"):
        each([0.0, 0.1, 60.0], hang, count=1, stalled_s=0.5)
    assert time.monotonic() - begun < 20
    hanging.set()


def test_the_first_error_ends_the_work() -> None:
    """No further job begins."""
    done = []

    def work(number: int) -> None:
        done.append(number)
        if number == 3:
            raise ValueError("three")

    with pytest.raises(ValueError, match="three"):
        each(iter(range(1000)), work, count=1)
    assert done == [0, 1, 2, 3]


OLD, NEW = "0" * 32, "1" * 32


def test_what_a_killed_push_left_is_cleared(tmp_path: Path) -> None:
    """After a day; what another push writes now stays."""
    files = LocalFiles(tmp_path / "store")
    files.write("snapshots/a", b"a")
    for name, age in ((OLD, 90_000), (NEW, 100)):
        left = tmp_path / "store" / local_files.INCOMING / name
        left.write_bytes(b"x")
        os.utime(left, (time.time() - age,) * 2)
    Store(str(tmp_path / "store")).clear()
    assert [one.name for one in (tmp_path / "store" / local_files.INCOMING).iterdir()] == [NEW]


@pytest.mark.slow
def test_the_commands_as_a_user_types_them(tmp_path: Path) -> None:
    """Keys, push, ls, pull; a key never shows."""
    small_snapshot(tmp_path / "one")
    env = {"TORPOR_CACHE": str(tmp_path / "cache")}

    def run(*words: str, code: int = 0) -> str:
        ran = torpor(*words, env=env, cwd=tmp_path)
        assert ran.returncode == code, ran.stderr
        assert "PRIVATE" not in ran.stdout + ran.stderr
        assert "AGE-SECRET" not in ran.stdout + ran.stderr
        return ran.stdout + ran.stderr

    run("key", "signing", "mine")
    recipient = json.loads(run("key", "encryption", "identity", "--json"))["recipient"]
    run("snapshot", "push", "one", "store/a", "--key", "mine", "--recipient", recipient)
    (entry,) = json.loads(run("snapshot", "ls", "store", "--trust", "mine.pub", "--json"))["snapshots"]
    assert (entry["trusted"], entry["label"]["encrypted"]) == (True, True)
    assert "is encrypted" in run("snapshot", "pull", "store/a", "back", code=1)
    options = ("--trust", "mine.pub", "--identity", "identity")
    assert "Nothing was fetched" in run("snapshot", "pull", "store/a", "back", *options, code=1)
    run("snapshot", "pull", "store/a", "back", *options, "--any-machine")
    assert (tmp_path / "back" / "manifest.json").read_bytes() == (tmp_path / "one" / "manifest.json").read_bytes()
    assert "NVIDIA H200" in run("snapshot", "ls", "store")
