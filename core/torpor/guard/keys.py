"""The lifecycle key and the bearer keys. Only digests are kept, and they are compared in constant time."""

from __future__ import annotations

import hmac
import re
from typing import TYPE_CHECKING

from torpor.guard import protocol
from torpor.guard.identity import proof_key, sha256
from torpor.guard.rules import check_key

if TYPE_CHECKING:
    from torpor.guard.messages import Headers, Scope

__all__ = ["BEARER_HEADER", "KEY_HEADER", "BearerKeys", "LifecycleKey"]

KEY_HEADER = protocol.KEY_HEADER.encode()
BEARER_HEADER = b"authorization"

_HEX = re.compile("[0-9a-f]{64}")


class LifecycleKey:
    """The digests of this start's lifecycle key, which only core holds.

    The boot document holds the digests alone. The key itself is not in the engine's memory before a call carries it.

    Args:
        key: the key, or its digests as `digests` gives them.

    Raises:
        ValueError: the key is too short or does not fit into a header, or the digests are invalid.
    """

    _digest: bytes
    _proof_key: bytes

    def __init__(self, key: object) -> None:
        if isinstance(key, LifecycleKey):
            self._digest, self._proof_key = key._digest, key._proof_key  # noqa: SLF001 - its own class
        elif isinstance(key, dict):
            self._digest, self._proof_key = _digests(key)
        else:
            plain = check_key(key).encode()
            self._digest, self._proof_key = sha256(plain), proof_key(plain)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LifecycleKey) and hmac.compare_digest(self._digest, other._digest)

    __hash__ = None  # type: ignore[assignment] # it changes

    def fits(self, given: bytes) -> bool:
        """Whether a header's value is the key."""
        return hmac.compare_digest(sha256(given), self._digest)

    def replace(self, other: LifecycleKey) -> None:
        """Become another key."""
        self._digest, self._proof_key = other._digest, other._proof_key

    @property
    def proof_key(self) -> bytes:
        """The key of the proofs that this is the guard of this start; see `torpor.guard.identity`."""
        return self._proof_key

    @property
    def digests(self) -> dict[str, str]:
        """The digests as the boot document holds them."""
        return {"sha256": self._digest.hex(), "proof": self._proof_key.hex()}


class BearerKeys:
    """The bearer keys for the public paths.

    Args:
        sha256: their digests, hex.
    """

    def __init__(self, sha256: tuple[str, ...]) -> None:
        self._digests = tuple(bytes.fromhex(digest) for digest in sha256)

    def fit(self, scope: Scope, headers: Headers) -> bool:
        """Whether a request carries one of the keys."""
        if scope.get("method") == "OPTIONS" and b"origin" in headers and b"access-control-request-method" in headers:
            return True  # a browser's preflight carries no key (Fetch standard, 4.8) and runs no route
        scheme, _, key = headers.get(BEARER_HEADER, b"").partition(b" ")
        if scheme.lower() != b"bearer":
            return False
        digest = sha256(key.strip())
        # Compare every digest, so that the time does not tell which one fits.
        return sum([hmac.compare_digest(digest, known) for known in self._digests]) > 0


def _digests(given: dict[object, object]) -> tuple[bytes, bytes]:
    found = [given.get(name) for name in ("sha256", "proof")]
    if len(given) != len(found) or not all(isinstance(item, str) and _HEX.fullmatch(item) for item in found):
        raise ValueError("key has to be a string, or the two digests of one: sha256 and proof, 64 hex digits each")
    first, second = (bytes.fromhex(str(item)) for item in found)
    return first, second
