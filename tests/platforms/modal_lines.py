"""Lines of a Modal app's log, as the platform and a replica write them, for the tests of `torpor boots` and `prewarm`."""

from __future__ import annotations

from datetime import UTC, datetime

__all__ = [
    "AT",
    "COLD_ID",
    "CREATED",
    "CREATING",
    "FAILED",
    "RESTORING",
    "SEGFAULT",
    "after",
    "cold",
    "log",
    "stage",
    "woken",
]

AT = 1_795_608_000.0
"""2026-11-25 12:00:00 UTC, when the logs of the tests begin."""

COLD_ID = "00000000000000aa"

CREATING = "Creating GPU memory snapshot for Function."
CREATED = "Snapshot created. Restoring Function from memory snapshot."
RESTORING = "Restoring Function from memory snapshot."
FAILED = (
    "Transient snapshot error: failed to restore container from snapshot with exit code 222. "
    "Will retry with no snapshots."
)
SEGFAULT = "Runner segmentation fault (SIGSEGV), exit code: 139."


def log(*lines: tuple[float, str, str]) -> str:
    """A saved log, of lines with their second and their container, as `modal app logs` writes it with both options."""
    stamped = [(datetime.fromtimestamp(AT + second, UTC), container, text) for second, container, text in lines]
    return "".join(f"{at.isoformat(sep=' ', timespec='seconds')} {place} {text}\n" for at, place, text in stamped)


def stage(  # noqa: PLR0917 - the order of a record
    name: str, boot: str, boot_id: str, ended: float, seconds: float, count: int, error: str = ""
) -> str:
    """A stage's record, as structlog's console shows it."""
    said = f" error={error!r}" if error else ""
    named = f" boot_id={boot_id}" if boot_id else ""
    return (
        f"2026-11-25 12:00:00 [info     ] stage                          boot={boot}{named} ended_at={AT + ended}{said} "
        f"ok={not error} restore_count={count} seconds={seconds} stage={name}"
    )


def cold(ended: float, *, boot_id: str = COLD_ID, serves: bool = False, error: str = "") -> list[str]:
    """The records of a cold start of ten seconds; without `serves` it went to sleep after it."""
    last = stage("serve" if serves else "pre_snapshot", "cold", boot_id, ended, 1.0, 0, error)
    return [
        stage("preflight", "cold", "", ended - 9, 1.0, 0),
        stage("launch", "cold", boot_id, ended - 1, 8.0, 0),
        last,
    ]


def after(boot_id: str, *, copy: bool, captured: float = 20.0, count: int = 1) -> str:
    """A replica's word for what it is behind a snapshot."""
    return (
        f"2026-11-25 12:00:00 [info     ] after_snapshot                 boot_id={boot_id} captured_at={AT + captured} "
        f"captured_boot_id={COLD_ID} captured_in=ta-A copy={copy} restore_count={count} restored_in=ta-B"
    )


def woken(boot_id: str, ended: float, *, count: int = 1, error: str = "") -> list[str]:
    """The records of a wake of half a second."""
    if error:
        return [stage("post_restore", "restored", boot_id, ended, 0.25, count, error)]
    return [
        stage("post_restore", "restored", boot_id, ended - 0.25, 0.25, count),
        stage("canary_check", "restored", boot_id, ended, 0.125, count),
        stage("serve", "restored", boot_id, ended, 0.125, count),
    ]
