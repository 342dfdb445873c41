"""A store that is not there is an error that says what is in its place, for every command; an empty one is not."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from uuid import uuid4

import fsspec
import pytest

from tests.snapshots.remote.remote_store import large_snapshot
from tests.snapshots.small_snapshot import small_snapshot
from torpor import ConfigurationError, StoreError
from torpor.cli.store import run_ls, run_push
from torpor.snapshots.remote import store as store_module
from torpor.snapshots.remote.fsspec_files import FsspecFiles
from torpor.snapshots.remote.listing import list_store
from torpor.snapshots.remote.opening import open_remote
from torpor.snapshots.remote.push import push
from torpor.snapshots.remote.store import Store

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORPOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "leads_nowhere").symlink_to(tmp_path / "gone")


@pytest.mark.fault("the store is not there", area="snapshot store", outcome="refused")
@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nowhere", "no such folder"),
        ("leads_nowhere", "no such folder"),
        ("file", "it is a file"),
        ("file/inside", "a part of its path is a file"),
        ("memory://nowhere", "nothing lies there"),
    ],
)
def test_a_store_that_is_not_there_is_no_empty_store(tmp_path: Path, url: str, said: str) -> None:
    """`ls` and `pull` say what is in its place, and how a store is made."""
    for act in (lambda: list_store(url), lambda: open_remote(f"{url}/one")):
        with pytest.raises(
            StoreError, match=f"There is no store at {url}: .*{said}.*torpor snapshot push DIR {url}/NAME"
        ):
            act()
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_without_snapshots_is_an_empty_store(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0."""
    run_ls("empty", trust=None, as_json=False)
    assert capsys.readouterr().out == "there are no snapshots in empty\n"


def test_the_url_of_a_snapshot_is_no_store(tmp_path: Path) -> None:
    """The message has the command that lists its store."""
    push(small_snapshot(tmp_path / "one"), "there/one")
    with pytest.raises(StoreError, match=r"is the snapshot 'one' of the store there\. .* torpor snapshot ls there"):
        list_store("there/one")


@pytest.mark.parametrize("url", ["", "s3://", "gs:///", "a::b"])
def test_a_url_without_a_store_is_refused(url: str) -> None:
    """Before anything is asked, with an example."""
    with pytest.raises(ConfigurationError, match="s3://bucket/snapshots"):
        list_store(url)


@pytest.mark.fault("a push goes where no store can be", area="snapshot store", outcome="refused")
@pytest.mark.parametrize(
    ("url", "said"), [("file/one", "is a file"), ("leads_nowhere/one", "a link that leads nowhere")]
)
def test_a_push_that_cannot_be_written_reads_nothing(tmp_path: Path, url: str, said: str) -> None:
    """The place is checked before the snapshot is."""
    with pytest.raises(StoreError, match=f"cannot be written: .*{said}"):
        run_push(
            tmp_path / "no snapshot",
            url,
            key=None,
            recipients=(),
            recipients_file=None,
            again=False,
            jobs=0,
            as_json=True,
        )


def test_a_push_makes_folders_below_what_is_there(tmp_path: Path) -> None:
    """As deep as the URL says."""
    Store("some/new/store").check_writable()
    push(large_snapshot(tmp_path / "one"), "some/new/store/one")
    assert [one.name for one in list_store("some/new/store")] == ["one"]


def test_a_missing_bucket_is_told_from_an_empty_place_in_one() -> None:
    """A push may begin in the second, not in the first; the stand-in lists as s3fs does."""
    system = fsspec.filesystem("memory")
    bucket = uuid4().hex
    system.mkdir(f"/{bucket}")
    files = {root: FsspecFiles(system, root) for root in (f"{bucket}/below", f"no{bucket}/below", f"no{bucket}")}
    for one in files.values():
        one._in_bucket = True
    found = [(one.missing(), one.unwritable()) for one in files.values()]
    no_bucket = f"there is no bucket no{bucket}"
    assert found == [("nothing lies there", ""), (no_bucket, no_bucket), (no_bucket, no_bucket)]


@pytest.mark.fault("a cloud has no credentials of this machine", area="snapshot store", outcome="refused")
def test_missing_credentials_are_final(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not tried again, and the advice is about them."""
    monkeypatch.setattr(store_module, "_FIRST_PAUSE_S", 60.0)

    class NoCredentialsError(Exception):
        """As botocore has it."""

    def fail(files: FsspecFiles, folder: str) -> None:
        raise NoCredentialsError(f"Unable to locate credentials for {folder} of {files}")

    monkeypatch.setattr(FsspecFiles, "listed", fail)
    with pytest.raises(StoreError, match="check the permissions, or the credentials of this machine"):
        list_store("memory://bucket")


def test_a_folder_that_this_user_may_not_write_is_known_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the nearest folder that is there. Root may write everywhere, so the kernel's answer is replaced."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(StoreError, match=r"you may not write to \S+/empty\."):
        Store("empty/store/deep").check_writable()
