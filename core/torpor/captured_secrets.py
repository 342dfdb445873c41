"""Secrets in the environment of what a platform is about to write down.

A memory snapshot holds the environment of every process in it, and so do its copies, for as long as it is kept. What a
process was started with stays in its memory even after `os.environ.pop`, hence the look into /proc.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import psutil
import structlog

from torpor.errors import SnapshotError
from torpor.process import session_members
from torpor.snapshots.secret_names import secret_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torpor.deployment import Deployment
    from torpor.engine import Engine

__all__ = ["check_captured", "check_environments"]

PLATFORM_VARIABLES = frozenset({"MODAL_IDENTITY_TOKEN"})
"""What a platform itself puts into every container and nobody can keep out: Modal's own short-lived identity
(modal.com/docs/guide/environment_variables). Every memory snapshot there holds it."""


def check_captured(deployment: Deployment, engine: Engine) -> None:
    """Look through the environments of the engine's tree and of this process.

    Raises:
        SnapshotError: see `check_environments`.
    """
    check_environments(deployment, [os.environ, _environment(psutil.Process()), *map(_environment, _tree(engine))])


def check_environments(deployment: Deployment, environments: Iterable[Mapping[str, str]]) -> None:
    """Refuse what looks like a secret, or warn of it: as `Deployment.secrets_in_snapshot` says.

    Raises:
        SnapshotError: the names of the variables, never a value, and what to do.
    """
    names = sorted({name for env in environments for name in secret_names(env)} - PLATFORM_VARIABLES)
    if not names:
        return
    if deployment.secrets_in_snapshot == "warn":
        structlog.get_logger("torpor").warning("secrets_in_snapshot", variables=names, deployment=deployment.name)
        return
    raise SnapshotError(
        f"Nothing was put to sleep: the environment holds what looks like a secret ({', '.join(names)}), and a snapshot keeps "
        "the environment of every process, readable by whoever gets it. Take the variable away from the server: a secret that "
        "a build step needs belongs to that step (BuildStep.secrets, on Modal no `secrets=` of the class), locally "
        f"`env {' '.join(f'-u {name}' for name in names)} ...`. If it is none, or may be kept, set "
        'Deployment(secrets_in_snapshot="warn").'
    )


def _tree(engine: Engine) -> list[psutil.Process]:
    return session_members(engine.pid) if engine.pid else []


def _environment(process: psutil.Process) -> Mapping[str, str]:
    """What a process was started with; nothing for one that has ended."""
    try:
        return process.environ()
    except psutil.Error:
        return {}
