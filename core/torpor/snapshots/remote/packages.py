"""The packages that only a store needs, in one place: whoever lacks them learns how to get them.

They are the extra `store`. A server that restores its own snapshots needs none of them.
"""

from __future__ import annotations

from torpor.errors import ConfigurationError

try:
    import fsspec
    import pyrage
    import zstandard
    from cryptography.exceptions import InvalidSignature, InvalidTag
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF
    from fsspec.core import url_to_fs
    from fsspec.implementations.local import LocalFileSystem
except ImportError as error:
    raise ConfigurationError(
        f'A store of snapshots needs the Python package {error.name or error}: pip install "torpor[store]"'
    ) from error

__all__ = [
    "AESGCM",
    "HKDF",
    "InvalidSignature",
    "InvalidTag",
    "LocalFileSystem",
    "ed25519",
    "fsspec",
    "hashes",
    "pyrage",
    "serialization",
    "url_to_fs",
    "zstandard",
]
