"""An engine's versions: which one is installed for this interpreter, and which ones were checked."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torpor.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ANY_ENGINE_VARIABLE", "EngineVersions"]

ANY_ENGINE_VARIABLE = "TORPOR_ANY_ENGINE"
"""With the value 1 a launcher starts a version of its engine that nobody has checked; otherwise it refuses it."""


@dataclass(frozen=True, kw_only=True)
class EngineVersions:
    """The versions of one engine.

    Args:
        engine: the engine's name, for messages.
        supported: versions whose flags, routes and start-up were checked.
        distributions: names under which the engine may be installed; the first one found counts.
        cure: what to do if none is installed, a sentence.
    """

    engine: str
    supported: tuple[str, ...]
    distributions: tuple[str, ...]
    cure: str

    def installed(self) -> str:
        """Return the version of the engine that this interpreter would import, without importing it.

        A supported version is spelt as in `supported`.

        Raises:
            ConfigurationError: the engine is not installed.
        """
        from importlib import metadata  # noqa: PLC0415 - importlib.metadata: 4 ms of a restore

        for distribution in self.distributions:
            try:
                return _spelt_as(self.supported, metadata.version(distribution))
            except metadata.PackageNotFoundError:
                continue
        raise ConfigurationError(f"{self.engine} is not installed for this Python; {self.cure}")

    def check(self, version: str) -> None:
        """Refuse a version whose flags, routes and start-up were never checked, unless TORPOR_ANY_ENGINE=1.

        Raises:
            ConfigurationError: the version is not supported.
        """
        if version not in self.supported and os.environ.get(ANY_ENGINE_VARIABLE) != "1":
            raise ConfigurationError(
                f"{self.engine} {version} is not supported; supported are {', '.join(self.supported)}. The guard's route lists "
                f"and the launcher's patches are checked against exactly these. Set {ANY_ENGINE_VARIABLE}=1 to try it."
            )


def _spelt_as(known: Sequence[str], found: str) -> str:
    """The known version that equals the one found, else the one found; by PEP 440 where the engine has `packaging`."""
    if found in known:
        return found
    try:
        from packaging.version import InvalidVersion, Version  # noqa: PLC0415 - only where the engine has it
    except ImportError:
        return found
    try:
        wanted = Version(found)
    except InvalidVersion:
        return found
    return next((version for version in known if Version(version) == wanted), found)
