"""The SGLang versions that this plugin knows, and which one is installed here."""

from __future__ import annotations

from torpor.launcher import versions

__all__ = ["DEFAULT_VERSION", "SUPPORTED_VERSIONS", "check_version", "installed_version"]

SUPPORTED_VERSIONS = ("0.5.6.post2", "0.5.16", "0.5.18", "0.5.23")
DEFAULT_VERSION = "0.5.6.post2"


def installed_version() -> str:
    """Return the version of the SGLang that this interpreter would import, without importing it.

    Raises:
        ConfigurationError: there is none.
    """
    cure = (
        "run the launcher with the engine's own interpreter (locally .engines/sglang-<version>/bin/python, made by "
        "scripts/setup-local)."
    )
    return versions.installed_version("SGLang", ("sglang",), cure=cure)


def check_version(version: str) -> None:
    """Refuse a version whose flags, routes and start-up were never checked.

    Raises:
        ConfigurationError: the version is not in `SUPPORTED_VERSIONS`.
    """
    versions.check_version("SGLang", version, SUPPORTED_VERSIONS)
