"""`start_engine`: how an engine plugin starts its engine, wherever the platform puts it."""

from __future__ import annotations

import contextlib
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from torpor.engine.handle import Engine
    from torpor.guard import GuardRules

__all__ = ["Starter", "engines_started_by", "start_engine"]


class Starter(Protocol):
    """Starts engines in a place of its own, e.g. in a sandbox that can be captured."""

    def __call__(
        self, argv: Sequence[str], *, env: Mapping[str, str], cwd: Path | None, guard: GuardRules | None
    ) -> Engine:
        """Start a command; the arguments are those of `start_engine`."""


_starter: ContextVar[Starter | None] = ContextVar("starter", default=None)
_env: ContextVar[Mapping[str, str] | None] = ContextVar("env", default=None)


def start_engine(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    guard: GuardRules | None = None,
) -> Engine:
    """Start a command as the leader of its own session, with its output read from the first byte on.

    Args:
        argv: the command and its arguments; no shell.
        env: variables set over the caller's own environment. Keys of clients (`torpor.values.client_keys`) are left out.
        cwd: working folder; the caller's by default.
        guard: rules for the guard in the engine's server process. With them the child gets the guard's boot
            document through an inherited pipe (`TORPOR_BOOT_FD`) and has to read it.

    Returns:
        The started engine. It may have ended already: `poll` says so.

    Raises:
        ConfigurationError: there is no such program, or it may not be run.
    """
    start = _starter.get()
    if start is None:
        from torpor.engine.process import EngineProcess  # noqa: PLC0415 - psutil: 7 ms that a sandbox's start does not need

        start = EngineProcess
    return start(argv, env={**(env or {}), **(_env.get() or {})}, cwd=cwd, guard=guard)


@contextlib.contextmanager
def engines_started_by(starter: Starter | None, env: Mapping[str, str] | None = None) -> Iterator[None]:
    """Have `start_engine` use a starter inside the block.

    Args:
        starter: None stands for a child process of this one.
        env: variables of the place, which are set over those of the engine plugin: the GPUs that are visible there.
    """
    token, of_place = _starter.set(starter), _env.set(env)
    try:
        yield
    finally:
        _env.reset(of_place)
        _starter.reset(token)
