"""LoRA adapters for engine plugins: where their files are, and the names that an engine in its process has to know."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from torpor.errors import ConfigurationError
from torpor.launcher.public_requests import SERVED_NAMES_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torpor.deployment import Deployment

__all__ = ["ADAPTER_OPTIONS", "adapter_env", "adapter_folders"]

ADAPTER_OPTIONS = (
    "enable_adapters",
    "adapters_per_batch",
    "adapters_in_memory",
    "max_adapter_rank",
    "adapters",
)
"""What a table of flags calls those that load adapters. They are given only where `Model.adapters` has some."""


def adapter_folders(deployment: Deployment, env: Mapping[str, str]) -> dict[str, str]:
    """The folder of each adapter, by its name. An engine gets folders: it would take any commit of a repository.

    Args:
        deployment: whose adapters.
        env: the engine's environment.

    Raises:
        ConfigurationError: an adapter is a repository, and nothing keeps its files.
    """
    folders = {}
    for name, adapter in deployment.model.adapters.items():
        folder = adapter.folder(env)
        if folder is None:
            raise ConfigurationError(
                f"Model.adapters[{name!r}] is the repository {adapter.source!r}, and no plugin fetches it: add "
                "torpor_hf_cache.HFCache() to Deployment.plugins, or give a folder, Adapter(path=...)."
            )
        folders[name] = str(folder)
    return folders


def adapter_env(deployment: Deployment) -> dict[str, str]:
    """The variable with every served name, for the launcher's patch `public-requests`; none without adapters."""
    if not deployment.model.adapters:
        return {}
    return {SERVED_NAMES_VARIABLE: json.dumps(deployment.model.served_names)}
