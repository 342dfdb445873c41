"""A URL of a snapshot: the store, and the snapshot's name in it.

`s3://bucket/snapshots/qwen3` is the snapshot `qwen3` in the store `s3://bucket/snapshots`. A path without a scheme is a folder of
this machine.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from torpor.errors import ConfigurationError
from torpor.values.plain_text import one_line

__all__ = ["Location", "has_password", "location_of", "names_store", "shown_url", "store_of"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_PASSWORD = re.compile(r"(?<=://)([^/@\s]*?):(?!\d{1,5}/)\S*@")
"""A secret key of a bucket may have slashes. What only looks like one, such as a port, is left."""

_LONGEST_URL = 2048


class Location(NamedTuple):
    """Where a snapshot is: the URL of its store, and its name."""

    store: str
    name: str


def location_of(url: str) -> Location:
    """The store and the name that a URL means.

    Raises:
        ConfigurationError: it names no snapshot in a store.
    """
    checked = _checked(url)
    store, _, name = checked.rpartition("/")
    if not _NAME.fullmatch(name) or (_SCHEME.match(checked) and not checked.startswith("memory:") and _is_bare(store)):
        raise ConfigurationError(
            f"{shown_url(url)} names no snapshot in a store. Give the store and a name as the last part, e.g. "
            "s3://bucket/snapshots/qwen3 or /mnt/snapshots/qwen3; a name has letters, digits, `.`, `_` and `-`, at most 100."
        )
    return Location(f"{store}/" if store.endswith(":/") else store or ("/" if checked.startswith("/") else "."), name)


def store_of(url: str) -> str:
    """The URL of a store, without a slash at its end.

    Raises:
        ConfigurationError: it names no store.
    """
    checked = _checked(url) or "/"
    if _SCHEME.match(f"{checked}//") and not checked.startswith("memory:") and _is_bare(checked):
        raise ConfigurationError(
            f"{shown_url(url)} names no store. Give a bucket or a folder, too, e.g. s3://bucket/snapshots or /mnt/snapshots."
        )
    return f"{checked}//" if checked.endswith(":") else checked


def names_store(text: str) -> bool:
    """Whether a snapshot is named by a URL with a scheme, such as `s3://`, not by a folder of this machine."""
    return _SCHEME.match(text) is not None


def has_password(url: str) -> bool:
    """Whether a URL has a password in it."""
    return _PASSWORD.search(url) is not None


def shown_url(url: str) -> str:
    """A URL for messages and files: on one line, without a password."""
    return _PASSWORD.sub(r"\1:***@", one_line(url))


def _checked(url: str) -> str:
    """The URL without a slash at its end.

    Raises:
        ConfigurationError: it is empty, too long, or several URLs in one.
    """
    if not url.strip() or "\0" in url or len(url) > _LONGEST_URL or "::" in url:
        raise ConfigurationError(
            f"{shown_url(url[:_LONGEST_URL])!r} is no URL of a store or a snapshot: allowed are a path, or a single URL such as "
            "s3://bucket/snapshots/qwen3."
        )
    return url.rstrip("/")


def _is_bare(store: str) -> bool:
    """Whether a URL ends before its path begins: `s3:/`, `s3://`."""
    return store.rstrip("/").endswith(":")
