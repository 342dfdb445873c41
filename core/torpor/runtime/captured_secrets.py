"""Finds secrets in the environments and command lines of processes before they are captured.

A snapshot holds the environment of every process in it, and so does every replica restored from it. The environment that a
process was started with stays in its memory even after `os.environ.pop`, so this module reads it from /proc.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import psutil

from torpor.errors import SecretFoundError
from torpor.telemetry.events import log
from torpor.values.secret_shapes import (
    BY_NAME,
    looks_secret,
    secret_arguments,
    secret_kind,
    secrets_in,
    set_by_platform,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torpor.deployment import Deployment
    from torpor.engine.handle import Engine

__all__ = ["check_captured", "check_environments", "looks_secret", "secret_names"]


def secret_names(env: Mapping[str, str]) -> tuple[str, ...]:
    """Names of the variables that hold a secret by name or value, except those that the platform sets; never their values."""
    return tuple(secrets_in(env))


def check_captured(deployment: Deployment, engine: Engine) -> None:
    """Check the environments and command lines of all processes that a snapshot of the engine will hold.

    Raises:
        SecretFoundError: see `check_environments`.
    """
    pids = engine.captured_pids()
    check_environments(
        deployment,
        [env for pid in pids for env in _environments(pid)],
        command_lines=[_command_line(pid) for pid in pids],
    )


def check_environments(
    deployment: Deployment, environments: Iterable[Mapping[str, str]], *, command_lines: Iterable[Sequence[str]] = ()
) -> None:
    """Refuse what looks like a secret, or warn of it, as `Deployment.secrets_in_snapshot` says.

    A secret that the platform puts into every container only causes a warning: nobody can remove it.

    Raises:
        SecretFoundError: it names the variables and flags, the kind of secret and the cure; never a value.
    """
    variables: dict[str, str] = {}
    from_platform: set[str] = set()
    for env in environments:
        variables |= secrets_in(env)
        from_platform |= {name for name in env if set_by_platform(name, env) and secret_kind(name, env[name])}
    arguments = {flag: kind for argv in command_lines for flag, kind in secret_arguments(argv).items()}
    if from_platform:
        log("warning", "secrets_of_platform_in_snapshot", variables=sorted(from_platform), deployment=deployment.name)
    if not variables and not arguments:
        return
    if deployment.secrets_in_snapshot == "warn":
        told = {"variables": sorted(variables)} | ({"arguments": sorted(arguments)} if arguments else {})
        log("warning", "secrets_in_snapshot", **told, deployment=deployment.name)
        return
    raise SecretFoundError(_refusal(variables, arguments))


def _refusal(variables: Mapping[str, str], arguments: Mapping[str, str]) -> str:
    flags = ", ".join(_told(name, kind) for name, kind in sorted(arguments.items()))
    drop = "Remove the argument from the engine plugin's extra_args, or from the ImagePatch.engine_args that adds it. "
    keep = 'If it is not a secret, or the snapshot may keep it, set Deployment(secrets_in_snapshot="warn").'
    if not variables:
        return (
            f"Nothing was put to sleep: the engine's arguments hold what looks like a secret ({flags}), and a snapshot keeps the "
            f"command line of every process, readable by whoever gets it. {drop}{keep}"
        )
    names = ", ".join(_told(name, kind) for name, kind in sorted(variables.items()))
    unset = " ".join(f"-u {name}" for name in sorted(variables))
    return (
        f"Nothing was put to sleep: the environment holds what looks like a secret ({names}), and a snapshot keeps "
        "the environment of every process, readable by whoever gets it. Start the server without the variable: a secret that "
        "a build step needs belongs to that step (BuildStep.secrets, on Modal no `secrets=` of the class), locally "
        f"`env {unset} ...`. " + (f"The engine's arguments hold one too ({flags}). {drop}" if flags else "") + keep
    )


def _told(name: str, kind: str) -> str:
    return name if kind == BY_NAME else f"{name}: {kind}"


def _command_line(pid: int) -> Sequence[str]:
    try:
        return psutil.Process(pid).cmdline()
    except psutil.Error:
        return ()


def _environments(pid: int) -> Iterable[Mapping[str, str]]:
    """The environment that a process was started with, and the current one of this process; nothing if it has ended."""
    if pid == os.getpid():
        yield os.environ
    try:
        yield psutil.Process(pid).environ()
    except psutil.Error:
        return
