"""Who may run here: signatures, trusted keys, encryption, and the files of keys."""

from __future__ import annotations

import stat
import subprocess
from typing import TYPE_CHECKING

import pyrage
import pytest

from tests.snapshots.remote.remote_store import (
    chunk_files,
    files_of,
    large_snapshot,
    manifest_parts,
    write_manifest,
)
from tests.snapshots.small_snapshot import small_snapshot
from torpor import ConfigurationError, DamagedSnapshotError, UntrustedSnapshotError
from torpor.snapshots.remote.encryption import new_identity, read_recipients
from torpor.snapshots.remote.listing import list_store
from torpor.snapshots.remote.opening import open_remote
from torpor.snapshots.remote.pull import pull
from torpor.snapshots.remote.push import push
from torpor.snapshots.remote.signature import fingerprint, new_signing_key, read_trust
from torpor.snapshots.remote.values import Trust

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORPOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TORPOR_TRUSTED_KEYS", raising=False)


@pytest.fixture
def keys(tmp_path: Path) -> tuple[str, str]:
    """Two public keys; the private ones are in `mine` and `theirs`."""
    return new_signing_key(tmp_path / "mine"), new_signing_key(tmp_path / "theirs")


def test_a_signature_of_a_trusted_key_is_demanded(tmp_path: Path, keys: tuple[str, str]) -> None:
    """Of one of them; the fingerprint is that of ssh-keygen."""
    mine, theirs = keys
    push(small_snapshot(tmp_path / "one"), f"{tmp_path}/store/one", key=tmp_path / "mine")
    remote = open_remote(f"{tmp_path}/store/one", trust=Trust(keys=(theirs, mine)))
    assert remote.signed_by == fingerprint(mine)
    with pytest.raises(UntrustedSnapshotError, match="is not signed by a trusted key") as caught:
        open_remote(f"{tmp_path}/store/one", trust=Trust(keys=(theirs,)))
    assert fingerprint(mine) in str(caught.value)
    (entry,) = list_store(f"{tmp_path}/store", trust=Trust(keys=(mine,)))
    assert (entry.signer, entry.trusted) == (fingerprint(mine), True)


@pytest.mark.fault("a signed manifest in a store is changed", area="snapshot store", outcome="refused")
@pytest.mark.parametrize("what", ["label", "signature", "body", "signer"])
def test_a_changed_manifest_is_not_trusted(tmp_path: Path, keys: tuple[str, str], what: str) -> None:
    """The signature covers the label, the label the body; a foreign signature under a trusted name is none."""
    _, theirs = keys
    push(small_snapshot(tmp_path / "one"), f"{tmp_path}/store/one", key=tmp_path / "mine")
    first, label, body = manifest_parts(tmp_path / "store", "one")
    (signature,) = first["signatures"]
    if what == "label":
        label["deployment"] = "other"
    elif what == "signature":
        signature["signature"] = "00" * 64
    elif what == "signer":
        signature["key"] = theirs
    else:
        body = body[:-1] + b"x"
    write_manifest(tmp_path / "store", "one", first, label, body)
    expected = DamagedSnapshotError if what == "body" else UntrustedSnapshotError
    with pytest.raises(expected):
        open_remote(f"{tmp_path}/store/one", trust=Trust(keys=keys))


def test_without_keys_only_a_folder_of_this_user_is_trusted(tmp_path: Path) -> None:
    """One that others may write to, or a store elsewhere, needs --unsigned."""
    snapshot = small_snapshot(tmp_path / "one")
    push(snapshot, f"{tmp_path}/store/one")
    assert open_remote(f"{tmp_path}/store/one").signed_by == ""
    (tmp_path / "store" / "snapshots").chmod(0o777)
    with pytest.raises(UntrustedSnapshotError, match="may be written to by other users"):
        open_remote(f"{tmp_path}/store/one")
    push(snapshot, "memory://trust/one")
    with pytest.raises(UntrustedSnapshotError, match="--unsigned"):
        open_remote("memory://trust/one")
    assert open_remote("memory://trust/one", trust=Trust(unsigned=True)).signed_by == ""


def test_trusted_keys_come_from_a_file_or_a_variable(
    tmp_path: Path, keys: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One key a line, with remarks and comments."""
    file = tmp_path / "trusted"
    file.write_text(f"# ours\n\n{keys[0]} ci@example.org\n{keys[1]}\n")
    assert read_trust(file) == Trust(keys=keys)
    assert read_trust(None) == Trust()
    monkeypatch.setenv("TORPOR_TRUSTED_KEYS", str(file))
    assert read_trust(None) == Trust(keys=keys)
    assert read_trust(None, unsigned=True) == Trust(unsigned=True)
    with pytest.raises(ConfigurationError, match="exclude each other"):
        read_trust(file, unsigned=True)
    file.write_text("# none\n")
    with pytest.raises(ConfigurationError, match="holds no public key"):
        read_trust(file)
    file.write_text("ssh-rsa AAAA\n")
    with pytest.raises(ConfigurationError, match="no Ed25519 public key"):
        read_trust(file)


def test_key_files_are_private(tmp_path: Path, keys: tuple[str, str]) -> None:
    """New ones are, an open one is refused, and none is overwritten."""
    assert stat.S_IMODE((tmp_path / "mine").stat().st_mode) == 0o600
    assert (tmp_path / "mine.pub").read_text() == f"{keys[0]}\n"
    with pytest.raises(ConfigurationError, match="never overwritten"):
        new_signing_key(tmp_path / "mine")
    new_identity(tmp_path / "identity")
    with pytest.raises(ConfigurationError, match="never overwritten"):
        new_identity(tmp_path / "identity")
    (tmp_path / "mine").chmod(0o640)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        push(small_snapshot(tmp_path / "one"), f"{tmp_path}/store/one", key=tmp_path / "mine")
    (tmp_path / "junk").write_bytes(b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n")
    (tmp_path / "junk").chmod(0o600)
    with pytest.raises(ConfigurationError, match="has to be an Ed25519 key"):
        push(tmp_path / "one", f"{tmp_path}/store/one", key=tmp_path / "junk")


def test_a_key_of_ssh_keygen_signs(tmp_path: Path) -> None:
    """Users have such keys."""
    try:
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "ssh")], check=True, timeout=30
        )
    except FileNotFoundError:
        pytest.skip("ssh-keygen is not installed")
    push(small_snapshot(tmp_path / "one"), f"{tmp_path}/store/one", key=tmp_path / "ssh")
    assert open_remote(f"{tmp_path}/store/one", trust=read_trust(tmp_path / "ssh.pub")).signed_by


def test_an_encrypted_snapshot_tells_nothing_but_its_label(tmp_path: Path) -> None:
    """Names of chunks are keyed, and neither a path nor a byte of content is in the store."""
    snapshot = large_snapshot(tmp_path / "one")
    recipient = new_identity(tmp_path / "identity")
    push(snapshot, f"{tmp_path}/plain/one")
    pushed = push(snapshot, f"{tmp_path}/store/one", recipients=[recipient])
    assert pushed.label.encrypted
    names = {file.name for file in chunk_files(tmp_path / "store")}
    assert names.isdisjoint(file.name for file in chunk_files(tmp_path / "plain"))
    everything = b"".join(files_of(tmp_path / "store").values())
    assert b"memory-1000.img" not in everything
    remote = open_remote(f"{tmp_path}/store/one", identity=tmp_path / "identity")
    pull(remote, tmp_path / "back")
    assert files_of(tmp_path / "back") == files_of(snapshot)
    assert push(snapshot, f"{tmp_path}/store/again", recipients=[recipient]).sent == 0
    assert "secret" not in repr(remote).lower()


@pytest.mark.fault("an encrypted snapshot is opened without its identity", area="snapshot store", outcome="refused")
def test_only_a_recipient_opens_it(tmp_path: Path) -> None:
    """Each of several recipients can; somebody else, or a key that is no identity, is refused without showing a key."""
    snapshot = small_snapshot(tmp_path / "one")
    recipients = [new_identity(tmp_path / name) for name in ("a", "b")]
    new_identity(tmp_path / "other")
    push(snapshot, f"{tmp_path}/store/one", recipients=recipients)
    for name in ("a", "b"):
        assert open_remote(f"{tmp_path}/store/one", identity=tmp_path / name).manifest.deployment.name == "small"
    with pytest.raises(UntrustedSnapshotError, match="--identity FILE"):
        open_remote(f"{tmp_path}/store/one")
    with pytest.raises(UntrustedSnapshotError, match="other recipients"):
        open_remote(f"{tmp_path}/store/one", identity=tmp_path / "other")
    (tmp_path / "empty").write_text("# nothing\n")
    (tmp_path / "empty").chmod(0o600)
    with pytest.raises(ConfigurationError, match="holds no age identity"):
        open_remote(f"{tmp_path}/store/one", identity=tmp_path / "empty")


@pytest.mark.fault("an encrypted chunk of a store is replaced or changed", area="snapshot store", outcome="refused")
@pytest.mark.parametrize("what", ["changed", "short", "swapped"])
def test_a_changed_encrypted_chunk_is_refused(tmp_path: Path, what: str) -> None:
    """A chunk is bound to its name."""
    push(large_snapshot(tmp_path / "one"), f"{tmp_path}/store/one", recipients=[new_identity(tmp_path / "identity")])
    one, other, *_ = chunk_files(tmp_path / "store")
    stored = one.read_bytes()
    one.write_bytes(
        {"changed": stored[:-1] + bytes([stored[-1] ^ 1]), "short": b"x", "swapped": other.read_bytes()}[what]
    )
    with pytest.raises(DamagedSnapshotError, match=r"cannot be decrypted|has only 1 bytes"):
        pull(open_remote(f"{tmp_path}/store/one", identity=tmp_path / "identity"), tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_recipients_are_checked_and_a_private_key_is_not_shown(tmp_path: Path) -> None:
    """Somebody may mix up the two."""
    identity = pyrage.x25519.Identity.generate()
    with pytest.raises(ConfigurationError) as caught:
        read_recipients([str(identity)], None)
    assert str(identity)[20:] not in str(caught.value)
    file = tmp_path / "recipients"
    file.write_text(f"# team\n{identity.to_public()}\n")
    assert read_recipients([], file) == (str(identity.to_public()),)
    file.write_text("# none\n")
    with pytest.raises(ConfigurationError, match="holds no recipient"):
        read_recipients([], file)
