"""`torpor snapshot setup`."""

from __future__ import annotations

from torpor.cli.console import console as make_console
from torpor.errors import SnapshotError
from torpor.platforms.local.backends import STANDBY_WORKS
from torpor.platforms.local.criu_backend import CriuBackend
from torpor.snapshots.criu_install.install import install
from torpor.snapshots.store.paths import criu_prefix

__all__ = ["run_setup"]


def run_setup(*, mirror: str, again: bool) -> None:
    """Install CRIU and try it; if it does not work here, say why."""
    console = make_console()
    criu = install(criu_prefix(), mirror=mirror or None, again=again, on_step=console.print)
    console.print(f"CRIU {criu.version} is at {criu.program}", soft_wrap=True)
    if reasons := CriuBackend().available():
        listed = "\n".join(f"  - {reason}" for reason in reasons)
        raise SnapshotError(f"It does not work on this machine:\n{listed}\n{STANDBY_WORKS}")
    console.print("a small dump and restore worked: snapshots work here")
