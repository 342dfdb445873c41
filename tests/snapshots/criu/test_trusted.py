"""`torpor.snapshots.criu.trusted` and CRIU's prefix: no other user may change what root runs."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from torpor import SnapshotError
from torpor.snapshots.criu.program import PREFIX_VARIABLE, candidates, find, in_prefix
from torpor.snapshots.criu.trusted import distrust
from torpor.snapshots.criu_install import mirror
from torpor.snapshots.criu_install.install import install, prefix_of
from torpor.snapshots.criu_install.lock import Deb

LIBRARIES = "root/usr/lib/x86_64-linux-gnu"
LOADER = "#!/bin/sh\necho Version: 4.2.1\n"


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The prefix is the test's own, and there is no other CRIU."""
    monkeypatch.delenv(PREFIX_VARIABLE, raising=False)
    monkeypatch.delenv("SUDO_UID", raising=False)


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """A prefix like the setup's, with a loader that only prints a version."""
    prefix = tmp_path / "above" / "criu"
    for name in (f"{LIBRARIES}/ld-linux-x86-64.so.2", f"{LIBRARIES}/libdemo.so.1", "root/usr/sbin/criu"):
        file = prefix / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(LOADER)
        file.chmod(0o755)
    (prefix / LIBRARIES / "libdemo.so").symlink_to("libdemo.so.1")
    for folder in (prefix.parent, *prefix.rglob("*")):
        if folder.is_dir():
            folder.chmod(0o755)
    return prefix


def test_the_users_own_prefix_is_used(prefix: Path) -> None:
    """Even in /tmp: because of its sticky bit nobody else can replace the user's folder there."""
    assert find(prefix).version == "4.2.1"


PLACES = [
    "..",
    ".",
    "root",
    "root/usr",
    "root/usr/sbin",
    "root/usr/sbin/criu",
    LIBRARIES,
    f"{LIBRARIES}/ld-linux-x86-64.so.2",
    f"{LIBRARIES}/libdemo.so.1",
]


@pytest.mark.fault(
    "an access control list lets another user write to CRIU's prefix", area="CRIU prefix", outcome="refused"
)
@pytest.mark.parametrize("place", ["root/usr", "root/usr/sbin/criu"])
def test_a_prefix_whose_access_control_list_names_others_is_not_run(prefix: Path, place: str) -> None:
    """The mode looks private: only the list says who else may write."""
    anybody, user, named = 0xFFFFFFFF, 0x02, 65534
    entries = [(0x01, 7, anybody), (user, 7, named), (0x04, 5, anybody), (0x10, 7, anybody), (0x20, 5, anybody)]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    try:
        os.setxattr(prefix / place, "system.posix_acl_access", acl)
    except OSError:
        pytest.skip("this disk has no access control lists")
    os.chown(prefix / place, os.geteuid(), os.geteuid())
    with pytest.raises(SnapshotError, match="has an access control list that lets other users write to it"):
        find(prefix)
    assert "access control list" in str(distrust([prefix / place]))


@pytest.mark.fault(
    "others may write to CRIU, its libraries or a folder above them", area="CRIU prefix", outcome="refused"
)
@pytest.mark.parametrize("place", PLACES)
def test_a_prefix_that_others_may_write_to_is_not_run(prefix: Path, place: str) -> None:
    """The message names the file or folder; no program in it was run."""
    (prefix / place).chmod(0o777)
    ran = prefix.parent.parent / "ran"
    (prefix / LIBRARIES / "ld-linux-x86-64.so.2").write_text(f"#!/bin/sh\ntouch {ran}\necho Version: 4.2.1\n")
    with pytest.raises(SnapshotError, match=r"is not run: .* may be written to by every user \(mode 777\)") as caught:
        find(prefix)
    assert str((prefix / place).resolve()) in str(caught.value)
    assert not any(str(prefix) in argv[0] for argv in candidates(prefix))
    assert not ran.exists()


@pytest.mark.fault("CRIU, a library or a folder above belongs to another user", area="CRIU prefix", outcome="refused")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("place", [*PLACES, f"{LIBRARIES}/libdemo.so"])
def test_a_prefix_that_belongs_to_another_user_is_not_run(prefix: Path, place: str) -> None:
    """Its owner can change it at any time, whatever the mode."""
    os.chown(prefix / place, 12345, 12345, follow_symlinks=False)
    with pytest.raises(SnapshotError, match="belongs to user 12345"):
        find(prefix)


def test_a_sticky_folder_is_safe_only_above_the_prefix(prefix: Path) -> None:
    """In /tmp nobody can replace another user's folder; inside the prefix anybody could add a library."""
    prefix.parent.chmod(0o1777)
    assert find(prefix).version == "4.2.1"
    prefix.chmod(0o1777)
    with pytest.raises(SnapshotError, match="may be written to by every user"):
        find(prefix)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_only_the_owners_own_group_may_write(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a umask of 002 each user's own group may write; any other group has other users."""
    (prefix / "root").chmod(0o775)
    assert find(prefix).version == "4.2.1"
    os.chown(prefix / "root", 0, 12345)
    with pytest.raises(SnapshotError, match="may be written to by group 12345"):
        find(prefix)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_files_of_the_user_behind_sudo_are_trusted(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This user can become root anyway."""
    os.chown(prefix, 12345, 12345)
    monkeypatch.setenv("SUDO_UID", "12345")
    assert distrust([prefix]) is None
    monkeypatch.setenv("SUDO_UID", "x")
    assert distrust([prefix]) is not None


@pytest.mark.fault("TORPOR_CRIU_PREFIX holds `..`, is relative or a link", area="CRIU prefix", outcome="held")
@pytest.mark.parametrize("how", ["with ..", "with .. after a link", "relative", "a link", "with a slash"])
def test_a_prefix_may_be_named_in_every_way(prefix: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """The setup and the search use the same folder, whatever the working folder is later."""
    link = prefix.parent / "link"
    link.symlink_to("criu")
    (prefix.parent.parent / "inner").symlink_to(prefix / "root")
    monkeypatch.chdir(prefix.parent.parent)
    named = {
        "with ..": f"{prefix}/root/..",
        "with .. after a link": f"{prefix.parent.parent}/inner/../../criu",
        "relative": "above/criu",
        "a link": str(link),
        "with a slash": f"{prefix}//",
    }[how]
    monkeypatch.setenv(PREFIX_VARIABLE, named)
    assert prefix_of(Path("/elsewhere")) == prefix
    found = find(Path("/elsewhere"))
    assert found.program == prefix / "root/usr/sbin/criu"
    assert ".." not in "".join(found.argv)
    assert in_prefix(Path(named)) == in_prefix(prefix)


@pytest.mark.fault("a link to the prefix lies where others may change it", area="CRIU prefix", outcome="refused")
def test_a_link_in_a_folder_of_others_is_not_followed(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user could change the link."""
    shared = prefix.parent.parent / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    (shared / "criu").symlink_to(prefix)
    for named in (shared / "criu", shared / "criu" / ".." / "criu"):
        monkeypatch.setenv(PREFIX_VARIABLE, str(named))
        with pytest.raises(SnapshotError, match="may be written to by every user"):
            find()


@pytest.mark.fault("the setup is to put CRIU where others may write", area="CRIU prefix", outcome="refused")
def test_the_setup_refuses_a_folder_of_others(tmp_path: Path) -> None:
    """Before anything is fetched."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(SnapshotError, match=r"is not installed into .* may be written to by every user"):
        install(shared / "criu", mirror="http://127.0.0.1:1/debian")
    assert list(shared.iterdir()) == []


@pytest.mark.parametrize("name", ["criu", "cache/criu"])
def test_the_setup_accepts_a_sticky_folder_above_the_prefix(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as /tmp: the setup goes on to the mirror, which does not answer."""
    monkeypatch.setattr(mirror, "_APT_HELPERS", ())  # apt would try for seconds
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    lock = (Deb("pool/criu.deb", "0" * 64, 1000),)
    with pytest.raises(SnapshotError, match=r"127\.0\.0\.1:1"):
        install(shared / name, mirror="http://127.0.0.1:1/debian", lock=lock, timeout_s=20)


@pytest.mark.fault("the lock of the setup is a link to another's file", area="CRIU prefix", outcome="refused")
def test_the_setup_refuses_a_link_as_its_lock(tmp_path: Path) -> None:
    """In a sticky folder any user could have put it there."""
    (tmp_path / "victim").write_text("precious")
    (tmp_path / ".criu.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(SnapshotError, match="Cannot install CRIU into"):
        install(tmp_path / "criu", mirror="http://127.0.0.1:1/debian")
    assert (tmp_path / "victim").read_text() == "precious"
