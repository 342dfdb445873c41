"""Checks the files of a deployment's LoRA adapters before anything is started: as far as they are on this machine."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from torpor.deployment import plugin_name
from torpor.errors import ConfigurationError, PreflightError
from torpor.values.adapters import HUB_CACHE_VARIABLE
from torpor.values.findings import Finding
from torpor.values.model_source import hub_snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torpor.deployment import Deployment

__all__ = ["adapter_findings", "check_adapters"]

_FILES = "torpor.values.adapter_files"
"""Imported for a deployment that has adapters: its regular expressions cost every restore some milliseconds."""


def adapter_findings(
    deployment: Deployment, env: Mapping[str, str] | None = None, *, here: bool = False
) -> Iterator[Finding]:
    """An error for each adapter that cannot be loaded. One whose files are not here yet is passed over.

    Args:
        deployment: whose adapters.
        env: the engine's environment, for those on the hub.
        here: whether the engine runs on this machine: then a folder that is not there is an error.
    """
    for name, adapter in deployment.model.adapters.items():
        folder = adapter.folder(env or {})
        if folder is None or not (_is_folder(folder) or (here and adapter.path is not None)):
            continue
        try:
            _check(deployment, name, folder, env or {})
        except ConfigurationError as error:
            yield Finding(
                level="error", plugin=plugin_name(deployment.engine), what="adapters", seen=str(error).rstrip(".")
            )


def check_adapters(deployment: Deployment, env: Mapping[str, str]) -> None:
    """Check the files of every adapter, on the machine where the engine starts.

    Args:
        deployment: whose adapters.
        env: the engine's environment.

    Raises:
        PreflightError: the engine could not load one, or it was made for another model.
    """
    for name, adapter in deployment.model.adapters.items():
        folder = adapter.folder(env)
        if folder is None:
            continue  # `engine_argv` refuses it
        try:
            _check(deployment, name, folder, env)
        except ConfigurationError as error:
            raise PreflightError(f"Preflight check 'adapters' failed: {error}") from error


def _check(deployment: Deployment, name: str, folder: Path, env: Mapping[str, str]) -> None:
    model = deployment.model
    import_module(_FILES).check_adapter(
        name,
        model.adapters[name],
        folder,
        model=model.repo_id,
        model_folder=_model_folder(deployment, env),
        most_rank=deployment.engine.most_adapter_rank,
    )


def _model_folder(deployment: Deployment, env: Mapping[str, str]) -> Path | None:
    model, cache = deployment.model, env.get(HUB_CACHE_VARIABLE)
    if model.path is not None:
        folder = Path(model.path)
    elif cache and model.repo_id and model.revision:
        folder = hub_snapshot(cache, model.repo_id, model.revision)
    else:
        return None
    return folder if _is_folder(folder) else None


def _is_folder(folder: Path) -> bool:
    return os.path.isdir(folder)  # noqa: PTH112 - Path.is_dir raises for one that may not be read
