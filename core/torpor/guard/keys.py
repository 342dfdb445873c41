"""The keys that open the door. Only digests are kept, and every compare takes the same time whatever was given."""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING

from torpor.guard.rules import check_key

if TYPE_CHECKING:
    from torpor.guard.messages import Headers, Scope

__all__ = ["BEARER_HEADER", "KEY_HEADER", "BearerKeys", "LifecycleKey"]

KEY_HEADER = b"torpor-key"
BEARER_HEADER = b"authorization"


class LifecycleKey:
    """The key of this boot, which core alone holds.

    Args:
        key: the key; its SHA-256 is what is kept.

    Raises:
        ValueError: the key is too short, or not what a header can carry.
    """

    def __init__(self, key: object) -> None:
        self._digest = _sha256(check_key(key).encode())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LifecycleKey) and hmac.compare_digest(self._digest, other._digest)

    __hash__ = None  # type: ignore[assignment] # it changes

    def fits(self, given: bytes) -> bool:
        """Whether a header's value is the key."""
        return hmac.compare_digest(_sha256(given), self._digest)

    def replace(self, other: LifecycleKey) -> None:
        """Become another key."""
        self._digest = other._digest


class BearerKeys:
    """The keys that users of the public paths hold.

    Args:
        sha256: their digests, hex.
    """

    def __init__(self, sha256: tuple[str, ...]) -> None:
        self._digests = tuple(bytes.fromhex(digest) for digest in sha256)

    def fit(self, scope: Scope, headers: Headers) -> bool:
        """Whether a request carries one of them."""
        if scope.get("method") == "OPTIONS" and b"origin" in headers and b"access-control-request-method" in headers:
            return True  # a browser's preflight cannot carry a key (Fetch standard, 4.8), and runs no route's handler
        scheme, _, key = headers.get(BEARER_HEADER, b"").partition(b" ")
        if scheme.lower() != b"bearer":
            return False
        digest = _sha256(key.strip())
        # Every digest is compared, so that the time tells nothing about which one fits.
        return sum([hmac.compare_digest(digest, known) for known in self._digests]) > 0


def _sha256(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
