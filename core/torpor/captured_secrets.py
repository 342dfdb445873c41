"""Secrets in the environment of what a platform is about to write down.

A memory snapshot holds the environment of every process in it, and so do its copies, for as long as it is kept. What a
process was started with stays in its memory even after `os.environ.pop`, hence the look into /proc.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import psutil

from torpor.errors import SnapshotError
from torpor.events import log

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torpor.deployment import Deployment
    from torpor.engine import Engine

__all__ = ["check_captured", "check_environments", "looks_secret", "secret_names"]

PLATFORM_VARIABLES = frozenset({"MODAL_IDENTITY_TOKEN"})
"""What a platform itself puts into every container and nobody can keep out: Modal's own short-lived identity
(modal.com/docs/guide/environment_variables). Every memory snapshot there holds it."""

_SECRET = re.compile(
    r"(^|_)(TOKENS?|SECRETS?|PASSWORDS?|PASSWD|PASSPHRASE|CREDENTIALS?|(API|ACCESS|PRIVATE|SECRET|AUTH|LICENSE)_?KEYS?)(_|$)",
    re.IGNORECASE,
)
_HARMLESS = re.compile(
    r"^(TOKENIZERS_|MAX_|NUM_)|_(FILE|PATH|DIR|URL|URI)$|(^|_)((MAX|MIN|NUM)_(\w+_)?TOKENS|NEW_TOKENS?)(_|$)",
    re.IGNORECASE,
)
"""Places, not secrets; and counts of tokens: SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK, SGLANG_INIT_NEW_TOKEN_RATIO
(sglang/srt/environ.py), VLLM_MAX_TOKENS_PER_EXPERT_FUSED_MOE (vllm/envs.py)."""


def looks_secret(name: str) -> bool:
    """Whether a variable of that name will hold a secret."""
    return bool(_SECRET.search(name)) and not _HARMLESS.search(name)


def secret_names(env: Mapping[str, str]) -> tuple[str, ...]:
    """Names of the variables that look like secrets and hold something; values are never told."""
    return tuple(
        sorted(name for name, value in env.items() if value and looks_secret(name) and name not in PLATFORM_VARIABLES)
    )


def check_captured(deployment: Deployment, engine: Engine) -> None:
    """Look through the environments of all that a snapshot of the engine will hold.

    Raises:
        SnapshotError: see `check_environments`.
    """
    check_environments(deployment, [env for pid in engine.captured_pids() for env in _environments(pid)])


def check_environments(deployment: Deployment, environments: Iterable[Mapping[str, str]]) -> None:
    """Refuse what looks like a secret, or warn of it: as `Deployment.secrets_in_snapshot` says.

    Raises:
        SnapshotError: the names of the variables, never a value, and what to do.
    """
    names = sorted({name for env in environments for name in secret_names(env)})
    if not names:
        return
    if deployment.secrets_in_snapshot == "warn":
        log("warning", "secrets_in_snapshot", variables=names, deployment=deployment.name)
        return
    raise SnapshotError(
        f"Nothing was put to sleep: the environment holds what looks like a secret ({', '.join(names)}), and a snapshot keeps "
        "the environment of every process, readable by whoever gets it. Take the variable away from the server: a secret that "
        "a build step needs belongs to that step (BuildStep.secrets, on Modal no `secrets=` of the class), locally "
        f"`env {' '.join(f'-u {name}' for name in names)} ...`. If it is none, or may be kept, set "
        'Deployment(secrets_in_snapshot="warn").'
    )


def _environments(pid: int) -> Iterable[Mapping[str, str]]:
    """What a process was started with, and what this one has by now; nothing for one that has ended."""
    if pid == os.getpid():
        yield os.environ
    try:
        yield psutil.Process(pid).environ()
    except psutil.Error:
        return
