"""The versions of SGLang that this plugin supports."""

from __future__ import annotations

from torpor.launcher import EngineVersions

__all__ = ["DEFAULT_VERSION", "NCCL_VERSIONS", "SUPPORTED_VERSIONS", "VERSIONS"]

SUPPORTED_VERSIONS = ("0.5.6.post2", "0.5.16", "0.5.18", "0.5.23")
DEFAULT_VERSION = "0.5.6.post2"
NCCL_VERSIONS = (
    ("0.5.6.post2", "2.27.5"),
    ("0.5.16", "2.28.9"),
    ("0.5.18", "2.29.7"),
    ("0.5.23", "2.30.7"),
)
"""The NCCL that each version's torch pins, by the metadata of the wheels on PyPI: torch 2.9.1, 2.11.0, 2.13.0, 2.14.1."""

VERSIONS = EngineVersions(
    engine="SGLang",
    supported=SUPPORTED_VERSIONS,
    distributions=("sglang",),
    cure=(
        "run the launcher with the engine's own interpreter (locally .engines/sglang-<version>/bin/python, made by "
        "scripts/setup-local)."
    ),
)
