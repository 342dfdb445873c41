"""Every error that Torpor raises on purpose.

    TorporError                    exit code 1
    ├── ConfigurationError         exit code 2: a value, an app file or a plugin list is wrong
    │   ├── ConflictError          two plugins set different values for the same thing
    │   └── PluginError            a plugin breaks the contract (unknown hook, missing marker, ...)
    ├── BuildStepError             a build step of the recipe failed
    ├── PreflightError             a check before the launch failed
    ├── PortInUseError             exit code 2: another program listens on the engine's port
    ├── EngineError                the running engine failed
    │   ├── EngineExitedError      the engine's process ended: exit code and last log lines
    │   ├── EngineTimeoutError     a stage took longer than its deadline
    │   ├── EngineRequestError     the engine answered a lifecycle request with an error
    │   └── ForeignServerError     the port answers, but not our engine
    ├── GuardStateError            the guard refused a transition that is out of order
    │   └── DrainTimeoutError      requests were still in flight at the drain deadline
    ├── CanaryError                the engine answers differently than before the sleep
    ├── SnapshotError              a snapshot cannot be taken or restored here
    │   ├── SnapshotMisfitError    the snapshot does not fit this machine, app file or model
    │   ├── DamagedSnapshotError   the folder holds no usable snapshot: missing, damaged or of another format
    │   ├── SecretFoundError       a secret would be written into the snapshot
    │   ├── NoRoomError            the disk or the host's memory has too little room
    │   ├── CriuError              CRIU is missing, too old, or failed
    │   ├── GpuSnapshotError       the GPU driver cannot save or restore the GPU's state
    │   ├── StoreError             a store of snapshots cannot be reached, read or written
    │   ├── UntrustedSnapshotError a snapshot of a store has no trusted signature, or is encrypted for somebody else
    │   └── TrialWakeError         the trial replica of a new snapshot did not wake
    └── ServerUnavailableError     a deployed server did not answer within the client's deadline

A message names the part (plugin, hook, stage) and the place (file, flag, URL), what was found, what is allowed, and the next
step.
"""

from __future__ import annotations

__all__ = [
    "BuildStepError",
    "CanaryError",
    "ConfigurationError",
    "ConflictError",
    "CriuError",
    "DamagedSnapshotError",
    "DrainTimeoutError",
    "EngineError",
    "EngineExitedError",
    "EngineRequestError",
    "EngineTimeoutError",
    "ForeignServerError",
    "GpuSnapshotError",
    "GuardStateError",
    "NoRoomError",
    "PluginError",
    "PortInUseError",
    "PreflightError",
    "SecretFoundError",
    "ServerUnavailableError",
    "SnapshotError",
    "SnapshotMisfitError",
    "StoreError",
    "TorporError",
    "TrialWakeError",
    "UntrustedSnapshotError",
]


class TorporError(Exception):
    """The base class of every error that Torpor raises on purpose."""

    exit_code = 1


class ConfigurationError(TorporError):
    """A value, an app file or a plugin list is wrong; the message says what to change."""

    exit_code = 2


class ConflictError(ConfigurationError):
    """Two plugins set different values for the same thing; the message names both."""


class PluginError(ConfigurationError):
    """A plugin breaks the contract: a hook lacks its marker or has an unknown name, or the plugin cannot be loaded."""


class BuildStepError(TorporError):
    """A build step of the recipe failed; the message has its name, exit code and last output lines."""


class PreflightError(TorporError):
    """A check before the launch failed; the message ends with the cure."""


class PortInUseError(TorporError):
    """Another program listens on the port that the engine should get."""

    exit_code = 2


class EngineError(TorporError):
    """The running engine failed; the subclasses say how."""


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
    """A stage took longer than its deadline; the engine was ended."""


class EngineRequestError(EngineError):
    """The engine answered a lifecycle request with an error."""


class ForeignServerError(EngineError):
    """The port answers, but not the engine that was started here."""


class GuardStateError(TorporError):
    """The guard refused a transition that is out of order or repeated."""


class DrainTimeoutError(GuardStateError):
    """Requests were still in flight at the drain deadline; the server keeps serving and nothing was put to sleep."""


class CanaryError(TorporError):
    """The engine woke, but answers differently than before the sleep."""


class SnapshotError(TorporError):
    """A snapshot cannot be taken or restored here; the subclasses say why, where the caller can act on it."""


class SnapshotMisfitError(SnapshotError):
    """The snapshot does not fit this machine, this app file or these files; the message lists every difference."""


class DamagedSnapshotError(SnapshotError):
    """The folder holds no usable snapshot: it is missing, damaged, open to other users, or of another format."""


class SecretFoundError(SnapshotError):
    """A secret would be written into the snapshot; the message names its variable or flag, never its value."""


class NoRoomError(SnapshotError):
    """The disk or the host's memory has too little room; the message says where."""


class CriuError(SnapshotError):
    """CRIU is missing, too old, or failed; the message has the lines of its log that say why."""


class GpuSnapshotError(SnapshotError):
    """The GPU driver cannot move the GPU's state to host memory or back."""


class StoreError(SnapshotError):
    """A store of snapshots cannot be reached, read or written, or holds no such snapshot."""


class UntrustedSnapshotError(SnapshotError):
    """No trusted key has signed a snapshot of a store, or no identity of this user opens it."""


class TrialWakeError(SnapshotError):
    """The trial replica of a new snapshot was restored, but did not wake."""


class ServerUnavailableError(TorporError):
    """A deployed server did not answer within the client's deadline."""
