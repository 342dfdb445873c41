"""Encryption of a snapshot in a store, by age (https://age-encryption.org) in its Rust implementation.

age encrypts the manifest's body for every recipient. The body holds the secret of the chunks (`torpor.snapshots.remote.chunks`).

This machine keeps that secret for each store and set of recipients, so a push that was interrupted goes on, and a later push of the
same files sends nothing twice. Another machine cannot know it, and pushes the same files under other names: to take a secret from
the store would let whoever writes to the store choose it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from typing import TYPE_CHECKING

from torpor.errors import ConfigurationError, StoreError, UntrustedSnapshotError
from torpor.snapshots.remote.key_files import read_private, read_public, write_private_key
from torpor.snapshots.remote.packages import pyrage
from torpor.snapshots.store.paths import cache_root

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = [
    "checked_recipients",
    "decrypted",
    "encrypted",
    "kept_secret",
    "new_identity",
    "read_identities",
    "read_recipients",
]

_IDENTITY = "AGE-SECRET-KEY-1"
_SECRET_BYTES = 32


def new_identity(file: Path) -> str:
    """Make an age identity in a file (0600), as `age-keygen` does.

    Returns:
        Its recipient, `age1...`, for those who push.

    Raises:
        ConfigurationError: the file exists, or cannot be written.
    """
    identity = pyrage.x25519.Identity.generate()
    recipient = str(identity.to_public())
    write_private_key(file, f"# public key: {recipient}\n{identity}\n".encode())
    return recipient


def read_recipients(given: Sequence[str], file: Path | None) -> tuple[str, ...]:
    """The recipients that a command names, each checked.

    Raises:
        ConfigurationError: one is wrong, or the file cannot be read.
    """
    lines = read_public(file, "file of recipients").splitlines() if file else []
    found = [*given, *(line.strip() for line in lines if line.strip() and not line.startswith("#"))]
    if file and len(found) == len(given):
        raise ConfigurationError(f"{file} holds no recipient; a line is `age1...`.")
    return checked_recipients(found)


def checked_recipients(given: Sequence[str]) -> tuple[str, ...]:
    """Recipients without repetition, in a fixed order.

    Raises:
        ConfigurationError: one is no age recipient.
    """
    for one in given:
        try:
            pyrage.x25519.Recipient.from_str(one)
        except pyrage.RecipientError:
            shown = "a private key, which is not shown" if one.startswith(_IDENTITY) else repr(one[:80])
            raise ConfigurationError(
                f"A recipient is {shown}; allowed is an age recipient, `age1...` (`torpor key encryption FILE` makes one)."
            ) from None
    return tuple(sorted(set(given)))


def encrypted(content: bytes, recipients: Sequence[str]) -> bytes:
    """Encrypt for every recipient."""
    result: bytes = pyrage.encrypt(content, [pyrage.x25519.Recipient.from_str(one) for one in recipients])
    return result


def decrypted(content: bytes, identity: Path | None, what: str) -> bytes:
    """Decrypt with the identities in a file.

    Args:
        content: an age file.
        identity: file with identities; None if the user gave none.
        what: the snapshot, for messages.

    Raises:
        ConfigurationError: the file holds no identity.
        UntrustedSnapshotError: none was given, or it is encrypted for somebody else.
    """
    if identity is None:
        raise UntrustedSnapshotError(f"{what} is encrypted: give the file of an age identity, --identity FILE.")
    identities = read_identities(identity)
    try:
        result: bytes = pyrage.decrypt(content, identities)
    except pyrage.DecryptError as error:
        raise UntrustedSnapshotError(
            f"{what} cannot be decrypted with {identity} ({error}): it was encrypted for other recipients, or is damaged. Give "
            "the identity of one of its recipients."
        ) from None
    return result


def kept_secret(store: str, recipients: Sequence[str]) -> bytes:
    """The secret of this machine's chunks in a store, made once for each set of recipients.

    Raises:
        StoreError: it cannot be kept.
    """
    digest = hashlib.sha256("\0".join([store, *recipients]).encode(errors="surrogateescape")).hexdigest()
    folder = cache_root() / "store-secrets"
    file = folder / digest[:32]
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        unfinished = folder / f".{os.urandom(8).hex()}"
        write_private_key(unfinished, os.urandom(_SECRET_BYTES))
        with contextlib.suppress(FileExistsError):  # only the first one of several pushes makes it
            os.link(unfinished, file)
        unfinished.unlink()
    except OSError as error:
        raise StoreError(f"The secret of an encrypted store cannot be kept in {folder} ({error.strerror}).") from error
    secret = read_private(file, "secret of the store")
    if len(secret) != _SECRET_BYTES:
        raise StoreError(
            f"{file} is damaged: it has {len(secret)} bytes, not {_SECRET_BYTES}; remove it and push again."
        )
    return secret


def read_identities(file: Path) -> list[object]:
    """The age identities in a file.

    Raises:
        ConfigurationError: it cannot be read, others can read it, or it holds none.
    """
    found = []
    for line in read_private(file, "file of an identity").decode(errors="replace").splitlines():
        if line.startswith(_IDENTITY):
            try:
                found.append(pyrage.x25519.Identity.from_str(line.strip()))
            except pyrage.IdentityError:
                raise ConfigurationError(f"{file} holds a damaged identity; name another file.") from None
    if not found:
        raise ConfigurationError(
            f"{file} holds no age identity, a line that begins with {_IDENTITY} (`torpor key encryption FILE` makes one)."
        )
    return found
