"""Signatures of a snapshot in a store: Ed25519, with keys in OpenSSH's form.

`torpor key signing FILE` makes a pair, and so does `ssh-keygen -t ed25519`. A signature covers the exact bytes of the label, with a
prefix, so that it can never count for anything else. The label holds the hash of the body, and the body the hashes of all chunks.
"""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torpor.errors import ConfigurationError
from torpor.snapshots.remote.key_files import read_private, read_public, write_private_key
from torpor.snapshots.remote.packages import InvalidSignature, ed25519, serialization
from torpor.snapshots.remote.values import Trust

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "Signature",
    "fingerprint",
    "is_public_key",
    "new_signing_key",
    "read_trust",
    "signed",
    "signed_by",
    "signer",
]

TRUSTED_KEYS = "TORPOR_TRUSTED_KEYS"
"""A file of trusted keys, for a machine on which every command wants them."""

_PURPOSE = b"torpor snapshot label 1\n"
_KIND = "ssh-ed25519"
_WORDS = 2
_SIGNATURE_BYTES = 64


class Signature(NamedTuple):
    """Who signed (a public key, `ssh-ed25519 AAAA...`), and 64 bytes."""

    key: str
    signature: bytes


def new_signing_key(file: Path) -> str:
    """Make a pair of keys: the private one in `file` (0600), the public one beside it in `file.pub`.

    Returns:
        The public key, one line.

    Raises:
        ConfigurationError: a file exists, or cannot be written.
    """
    public_file = file.with_name(f"{file.name}.pub")
    if os.path.lexists(public_file):
        raise ConfigurationError(f"{public_file} exists, and a key is never overwritten; name another file.")
    key = ed25519.Ed25519PrivateKey.generate()
    content = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    write_private_key(file, content)
    public = _line(key.public_key())
    try:
        public_file.write_text(f"{public}\n", encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{public_file} cannot be written ({error.strerror}).") from error
    return public


def signer(file: Path) -> ed25519.Ed25519PrivateKey:
    """The private key in a file.

    Raises:
        ConfigurationError: it holds none that can be used.
    """
    content = read_private(file, "signing key")
    try:
        key = serialization.load_ssh_private_key(content, password=None)
    except Exception as error:
        raise ConfigurationError(
            f"The signing key {file} cannot be used: it has to be an Ed25519 key in OpenSSH's form without a passphrase. "
            f"`torpor key signing FILE` makes one. ({type(error).__name__})"
        ) from None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise ConfigurationError(
            f"The signing key {file} is of another kind; allowed is Ed25519 (`torpor key signing FILE` makes one)."
        )
    return key


def signed(key: ed25519.Ed25519PrivateKey, label: bytes) -> Signature:
    """Sign the bytes of a label."""
    return Signature(_line(key.public_key()), key.sign(_PURPOSE + label))


def signed_by(label: bytes, signatures: Sequence[Signature], trusted: Sequence[str]) -> str:
    """The first trusted key that signed a label; empty if none did.

    Args:
        label: its exact bytes.
        signatures: those that were found with it.
        trusted: public keys.
    """
    for one in signatures:
        if one.key in trusted and len(one.signature) == _SIGNATURE_BYTES:
            try:
                _public(one.key).verify(one.signature, _PURPOSE + label)
            except (InvalidSignature, ValueError):
                continue
            return one.key
    return ""


def read_trust(file: Path | None, *, unsigned: bool = False) -> Trust:
    """Whom a command trusts.

    Args:
        file: public keys, one a line, as in OpenSSH's `authorized_keys`; None for the file that `TORPOR_TRUSTED_KEYS` names.
        unsigned: accept snapshots that none of the keys signed; then the file of the variable does not count.

    Raises:
        ConfigurationError: a file cannot be used, or both are given.
    """
    if file and unsigned:
        raise ConfigurationError("--trust and --unsigned exclude each other: give the one or the other.")
    named = os.environ.get(TRUSTED_KEYS, "")
    file = file or (Path(named) if named and not unsigned else None)
    if not file:
        return Trust(unsigned=unsigned)
    keys = tuple(
        _checked(line, file) for line in read_public(file, "file of trusted keys").splitlines() if _counts(line)
    )
    if not keys:
        raise ConfigurationError(
            f"{file} holds no public key; a line is `{_KIND} AAAA...`, as in the .pub file of a key."
        )
    return Trust(keys=keys)


def fingerprint(key: str) -> str:
    """A public key as `ssh-keygen -l` shows it."""
    digest = hashlib.sha256(base64.b64decode(key.split()[1])).digest()
    return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"


def is_public_key(line: str) -> bool:
    """Whether a text is an Ed25519 public key, without a remark."""
    try:
        return line == _line(_public(line))
    except (ValueError, UnicodeError, ConfigurationError):
        return False


def _counts(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _checked(line: str, file: Path) -> str:
    """A line's key without its remark."""
    key = " ".join(line.split()[:_WORDS])
    if not is_public_key(key):
        raise ConfigurationError(
            f"{file} has a line that is no Ed25519 public key: {line[:40]!r}. A line is `{_KIND} AAAA...`, as in the .pub file "
            "of a key; options before the key are not allowed."
        )
    return key


def _public(line: str) -> ed25519.Ed25519PublicKey:
    if not line.startswith(f"{_KIND} "):
        raise ValueError("another kind of key")
    key = serialization.load_ssh_public_key(line.encode())
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise TypeError("another kind of key")
    return key


def _line(key: ed25519.Ed25519PublicKey) -> str:
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
