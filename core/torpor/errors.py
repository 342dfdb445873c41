"""Every error that Torpor raises on purpose.

    TorporError                    exit code 1
    ├── ConfigurationError         exit code 2: a value, an app file or a plugin list that cannot work
    │   ├── ConflictError          two plugins claim different values for one thing
    │   └── PluginError            a plugin that is not what it has to be (unknown hook, missing marker, ...)
    ├── BuildStepError             a build step of the recipe failed
    ├── PreflightError             a check that runs before the launch failed
    ├── PortInUseError             exit code 2: somebody else listens where the engine should
    ├── EngineError                something about the running engine
    │   ├── EngineExitedError      the process ended: exit code and last log lines
    │   ├── EngineTimeoutError     a stage did not end within its deadline
    │   ├── EngineRequestError     the engine answered a lifecycle request with an error
    │   └── ForeignServerError     the port answers, but it is not our engine
    ├── GuardStateError            the guard refused a transition that is out of order
    │   └── DrainTimeoutError      requests were still in flight at the drain deadline
    ├── CanaryError                the engine woke, and answers differently than before the sleep
    ├── SnapshotError              a snapshot cannot be taken or restored here
    └── ServerUnavailableError     a deployed server did not answer within the client's deadline

A message says who (plugin, hook, stage), where (file, flag, URL), what was seen, what is allowed, and the next step.
"""

from __future__ import annotations

__all__ = [
    "BuildStepError",
    "CanaryError",
    "ConfigurationError",
    "ConflictError",
    "DrainTimeoutError",
    "EngineError",
    "EngineExitedError",
    "EngineRequestError",
    "EngineTimeoutError",
    "ForeignServerError",
    "GuardStateError",
    "PluginError",
    "PortInUseError",
    "PreflightError",
    "ServerUnavailableError",
    "SnapshotError",
    "TorporError",
]


class TorporError(Exception):
    """The root: `except TorporError` catches what Torpor raises on purpose, and nothing else."""

    exit_code = 1


class ConfigurationError(TorporError):
    """A value, an app file or a plugin list that cannot work; the message says what to change."""

    exit_code = 2


class ConflictError(ConfigurationError):
    """Two plugins claim different values for one thing; the message names both."""


class PluginError(ConfigurationError):
    """A plugin that is not what it has to be: a hook without its marker, an unknown name, a load failure."""


class BuildStepError(TorporError):
    """A build step of the recipe failed: its name, exit code and last output lines are in the message."""


class PreflightError(TorporError):
    """A check that runs before the launch failed; the message ends with the cure."""


class PortInUseError(TorporError):
    """Somebody else listens on the port that the engine should get."""

    exit_code = 2


class EngineError(TorporError):
    """Something about the running engine; the subclasses say what."""


class EngineExitedError(EngineError):
    """The engine's process ended.

    Attributes:
        exit_code_seen: the process's exit code; negative for a signal, as in `subprocess`.
        log_tail: the engine's last output lines.
    """

    def __init__(self, message: str, *, exit_code_seen: int, log_tail: tuple[str, ...]) -> None:
        super().__init__(message)
        self.exit_code_seen = exit_code_seen
        self.log_tail = log_tail

    def __reduce__(self) -> tuple[object, ...]:
        """Make the keyword-only arguments survive pickling (a container hands its errors to the client that way)."""
        return _rebuild_exited, (str(self), self.exit_code_seen, self.log_tail)


def _rebuild_exited(message: str, exit_code_seen: int, log_tail: tuple[str, ...]) -> EngineExitedError:
    return EngineExitedError(message, exit_code_seen=exit_code_seen, log_tail=log_tail)


class EngineTimeoutError(EngineError):
    """A stage did not end within its deadline; the engine was ended."""


class EngineRequestError(EngineError):
    """The engine answered a lifecycle request with an error."""


class ForeignServerError(EngineError):
    """The port answers, but it is not the engine that this boot launched."""


class GuardStateError(TorporError):
    """The guard refused a transition that is out of order or repeated."""


class DrainTimeoutError(GuardStateError):
    """Requests were still in flight at the drain deadline; the server serves on, nothing was put to sleep."""


class CanaryError(TorporError):
    """The engine woke, and answers differently than before the sleep."""


class SnapshotError(TorporError):
    """A snapshot cannot be taken or restored here."""


class ServerUnavailableError(TorporError):
    """A deployed server did not answer within the client's deadline."""
