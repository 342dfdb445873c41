"""Sizes as people write them: `8 GB`, `1.5 TB`, `512 MiB`."""

from __future__ import annotations

import re

from torpor.errors import ConfigurationError
from torpor.values.field_types import shown

__all__ = ["bytes_of"]

_UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*")
_MOST = 1 << 50


def bytes_of(where: str, value: object) -> int:
    """The bytes that a text says.

    Args:
        where: the key, for the message.
        value: e.g. `"8 GB"`.

    Raises:
        ConfigurationError: it is no such text.
    """
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    unit = _UNITS.get(found.group(2).upper()) if found else None
    size = float(found.group(1)) * unit if found and unit else 0.0
    if not 0 < size <= _MOST:
        raise ConfigurationError(
            f'{where} is {shown(value)}; it has to be a size with its unit, e.g. "8 GB" or "512 MiB".'
        )
    return int(size)
