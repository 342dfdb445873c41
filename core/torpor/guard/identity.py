"""How the engine proves its identity to core, before core sends the lifecycle key.

Core sends a random nonce; the guard answers with HMAC-SHA256 of the nonce and of both ends of the TCP connection, under a key
that is derived from the lifecycle key. Core sends the lifecycle key on that same connection, once the proof is right.

The guard can prove its identity with what it keeps, but not act with it: neither the proof key nor the lifecycle key's SHA-256
opens a path. A proof cannot be replayed (each nonce is new) or relayed (a relay has its own connection to the guard).
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["NONCE_BYTES", "proof", "proof_key", "sha256"]

NONCE_BYTES = 32

_PURPOSE = b"torpor-proof-key"
_MAPPED = "::ffff:"


def sha256(key: bytes) -> bytes:
    """The digest that a key is checked against."""
    return hashlib.sha256(key).digest()


def proof_key(key: bytes) -> bytes:
    """The key of the proofs, derived from the lifecycle key; it opens no path."""
    return hmac.digest(key, _PURPOSE, "sha256")


def proof(key: bytes, nonce: bytes, *, client: Sequence[object], server: Sequence[object]) -> str:
    """The proof, 64 hex digits.

    Args:
        key: the proof key.
        nonce: `NONCE_BYTES` of core's choice.
        client: address and port of core's end of the connection.
        server: address and port of the server's end.
    """
    ends = f"{_end(client)} {_end(server)}"
    return hmac.new(key, b"torpor-identity " + nonce + ends.encode(), "sha256").hexdigest()


def _end(address: Sequence[object]) -> str:
    """One end of a connection; a server that listens on IPv6 sees IPv4 addresses as mapped ones (RFC 4291, 2.5.5.2)."""
    return f"{str(address[0]).removeprefix(_MAPPED)} {address[1]}"
