"""Which version of the engine is installed for this interpreter, and whether it is one that was checked."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from torpor.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ANY_ENGINE_VARIABLE", "check_version", "installed_version"]

ANY_ENGINE_VARIABLE = "TORPOR_ANY_ENGINE"


def installed_version(engine: str, distributions: Sequence[str], *, cure: str) -> str:
    """Return the version of the engine that this interpreter would import, without importing it.

    Args:
        engine: the engine's name, for the message.
        distributions: names under which it may be installed; the first that is there counts.
        cure: what to do where none is, a sentence.

    Raises:
        ConfigurationError: there is none.
    """
    from importlib import metadata  # noqa: PLC0415 - 8 ms, and a plugin itself has no use for it

    for distribution in distributions:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    raise ConfigurationError(f"{engine} is not installed for this Python; {cure}")


def check_version(engine: str, version: str, supported: Sequence[str]) -> None:
    """Refuse a version whose flags, routes and start-up were never checked, unless TORPOR_ANY_ENGINE=1.

    Raises:
        ConfigurationError: the version is not among the supported.
    """
    if version not in supported and os.environ.get(ANY_ENGINE_VARIABLE) != "1":
        raise ConfigurationError(
            f"{engine} {version} is not supported; supported are {', '.join(supported)}. The guard's route lists "
            f"and the launcher's patches are checked against exactly these. Set {ANY_ENGINE_VARIABLE}=1 to try it."
        )
