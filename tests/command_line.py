"""The command `torpor`, run as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["torpor"]


def torpor(
    *words: str,
    without: tuple[str, ...] = (),
    stdin: str = "",
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run it to its end, a minute at most.

    Args:
        words: the command line.
        without: beginnings of the names of variables that it does not get from here.
        stdin: its standard input.
        env: variables that it gets besides.
        cwd: its working folder; by default this one's.
    """
    kept = {name: value for name, value in os.environ.items() if not (without and name.startswith(without))}
    return subprocess.run(
        [sys.executable, "-m", "torpor.cli", *words],
        env={**kept, **(env or {})},
        cwd=cwd,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
