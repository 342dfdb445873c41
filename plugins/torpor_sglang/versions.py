"""The versions of SGLang that this plugin supports."""

from __future__ import annotations

from torpor.launcher import EngineVersions

__all__ = ["DEFAULT_VERSION", "SUPPORTED_VERSIONS", "VERSIONS"]

SUPPORTED_VERSIONS = ("0.5.6.post2", "0.5.16", "0.5.18", "0.5.23")
DEFAULT_VERSION = "0.5.6.post2"

VERSIONS = EngineVersions(
    engine="SGLang",
    supported=SUPPORTED_VERSIONS,
    distributions=("sglang",),
    cure=(
        "run the launcher with the engine's own interpreter (locally .engines/sglang-<version>/bin/python, made by "
        "scripts/setup-local)."
    ),
)
