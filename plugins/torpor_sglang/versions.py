"""The SGLang versions that this plugin knows, and which one is installed here."""

from __future__ import annotations

from torpor.errors import ConfigurationError

__all__ = ["ANY_ENGINE_VARIABLE", "DEFAULT_VERSION", "SUPPORTED_VERSIONS", "check_version", "installed_version"]

SUPPORTED_VERSIONS = ("0.5.6.post2", "0.5.16", "0.5.23")
DEFAULT_VERSION = "0.5.6.post2"
ANY_ENGINE_VARIABLE = "TORPOR_ANY_ENGINE"


def installed_version() -> str:
    """Return the version of the SGLang that this interpreter would import, without importing it.

    Raises:
        ConfigurationError: there is none.
    """
    from importlib import metadata  # noqa: PLC0415 - 8 ms, and the plugin itself has no use for it

    try:
        return metadata.version("sglang")
    except metadata.PackageNotFoundError:
        raise ConfigurationError(
            "SGLang is not installed for this Python; run the launcher with the engine's own interpreter "
            "(locally .engines/sglang-<version>/bin/python, made by scripts/setup-local)."
        ) from None


def check_version(version: str) -> None:
    """Refuse a version whose flags, routes and start-up were never checked.

    Raises:
        ConfigurationError: the version is not in `SUPPORTED_VERSIONS`.
    """
    if version not in SUPPORTED_VERSIONS:
        raise ConfigurationError(
            f"SGLang {version} is not supported; supported are {', '.join(SUPPORTED_VERSIONS)}. The guard's route lists "
            f"and the launcher's patches are checked against exactly these. Set {ANY_ENGINE_VARIABLE}=1 to try it."
        )
