"""`torpor key new`: a bearer key for the public paths, and what the configuration holds of it."""

from __future__ import annotations

import hashlib
import json
import secrets

from torpor.cli.terminal import result, say

__all__ = ["show_new_key"]

_KEY_BYTES = 32
"""256 random bits, 43 characters: with so many a plain SHA-256 cannot be searched, and needs no salt."""


def show_new_key(*, as_json: bool) -> None:
    """Print a key and its digest, and forget both."""
    key = secrets.token_urlsafe(_KEY_BYTES)
    digest = hashlib.sha256(key.encode()).hexdigest()
    if as_json:
        result(json.dumps({"key": key, "sha256": digest}))
        return
    result(f"key     {key}")
    result(f"sha256  {digest}")
    say("The key is shown once: give it to the clients, and the SHA-256 to the engine's plugin, as in")
    say(f'  api_key_sha256=("{digest}",)')
