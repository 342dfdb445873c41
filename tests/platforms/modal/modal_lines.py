"""Lines of a Modal app's log, as the platform and a replica write them, for the tests of `torpor boots` and `prewarm`."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from torpor.telemetry.events import json_line

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
    "on_console",
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
    """Build a saved log from lines with a second and a container each, as `modal app logs` writes it with both options."""
    stamped = [(datetime.fromtimestamp(AT + second, UTC), container, text) for second, container, text in lines]
    return "".join(f"{at.isoformat(sep=' ', timespec='seconds')} {place} {text}\n" for at, place, text in stamped)


def stage(  # noqa: PLR0917 - the order of a record
    name: str, boot: str, replica_id: str, ended: float, seconds: float, count: int, error: str = ""
) -> str:
    """A stage's record as a container writes it."""
    facts: dict[str, object] = {"stage": name, "boot": boot, "restore_count": count, "ok": not error}
    facts |= {"seconds": seconds, "ended_at": AT + ended}
    facts |= {"replica_id": replica_id} if replica_id else {}
    facts |= {"error": error} if error else {}
    return json_line("error" if error else "info", "stage", **facts)


def on_console(line: str) -> str:
    """The same record as structlog's console wrote it in earlier versions."""
    facts = json.loads(line)
    event, level = facts.pop("torpor"), facts.pop("level")
    shown = " ".join(
        f"{name}={value!r}" if " " in str(value) else f"{name}={value}" for name, value in sorted(facts.items())
    )
    return f"2026-11-25 12:00:00 [{level:<9}] {event:<30} {shown}"


def cold(ended: float, *, replica_id: str = COLD_ID, serves: bool = False, error: str = "") -> list[str]:
    """The records of a cold start of ten seconds. Without `serves` the replica went to sleep afterwards."""
    last = stage("serve" if serves else "pre_snapshot", "cold", replica_id, ended, 1.0, 0, error)
    return [
        stage("preflight", "cold", "", ended - 9, 1.0, 0),
        stage("launch", "cold", replica_id, ended - 1, 8.0, 0),
        last,
    ]


def after(replica_id: str, *, restored: bool, captured: float = 20.0, count: int = 1) -> str:
    """The record in which a replica says, after a snapshot, whether it is restored or woken."""
    return json_line(
        "info",
        "after_snapshot",
        restored=restored,
        replica_id=replica_id,
        captured_replica_id=COLD_ID,
        captured_at=AT + captured,
        captured_in="ta-A",
        restored_in="ta-B",
        restore_count=count,
    )


def woken(replica_id: str, ended: float, *, count: int = 1, error: str = "", boot: str = "") -> list[str]:
    """The records of a wake of half a second: in place for the replica that made the snapshot, a restore for any other."""
    boot = boot or ("woken" if replica_id == COLD_ID else "restored")
    if error:
        return [stage("post_restore", boot, replica_id, ended, 0.25, count, error)]
    return [
        stage("post_restore", boot, replica_id, ended - 0.25, 0.25, count),
        stage("canary_check", boot, replica_id, ended, 0.125, count),
        stage("serve", boot, replica_id, ended, 0.125, count),
    ]
