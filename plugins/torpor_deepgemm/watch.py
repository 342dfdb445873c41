"""Runs an engine's kernel compile command, and ends it if the server that it started has died. Runs as a bare file.

    python3 watch.py [--patience S] -- COMMAND [ARGUMENT]...

SGLang's `compile_deep_gemm` starts a server as its child and polls it over HTTP. It never checks that the child still runs
(0.5.6.post2, 0.5.16 and 0.5.23): after a crash it polls until its time limit, by default an hour of a GPU. This file
detects the crash from outside: the child is a zombie, and the command has no other child. It uses the standard library
only, because it runs in the engine's image.

Exit codes: the command's own (128 + n for signal n); 1: its server died; 2: wrong use; 127: no such program.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

_SERVER_DIED, _NOT_FOUND, _SIGNAL_BASE = 1, 127, 128
_LOOK_EVERY_S = 0.5
_GRACE_S = 10.0
_PYTHONS_OWN = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="watch.py", usage="watch.py [-h] [--patience S] -- COMMAND [ARGUMENT]...", allow_abbrev=False
    )
    parser.add_argument(
        "--patience", type=float, default=30.0, metavar="S", help="seconds to wait after the server died"
    )
    mark = arguments.index("--") if "--" in arguments else len(arguments)
    patience_s: float = parser.parse_args(arguments[:mark]).patience
    command = arguments[mark + 1 :]
    if not command:
        parser.error("the command to run is missing; write it after --.")
    try:
        process = subprocess.Popen(command)
    except FileNotFoundError:
        print(f"The image has no program {command[0]!r}.", file=sys.stderr)
        return _NOT_FOUND
    return _watch(process, shlex.join(command[:3]), patience_s)


def _watch(process: subprocess.Popen[bytes], shown: str, patience_s: float) -> int:
    alone_since: float | None = None
    while (code := _wait(process, _LOOK_EVERY_S)) is None:
        if not _lost_its_server(process.pid):
            alone_since = None
        elif alone_since is None:
            alone_since = time.monotonic()
        elif time.monotonic() - alone_since >= patience_s:
            print(
                f"The server that `{shown}` started has died (see its last lines above), but the command still waits for it. "
                "Ending the command.",
                file=sys.stderr,
                flush=True,
            )
            _end(process)
            return _SERVER_DIED
    return code if code >= 0 else _SIGNAL_BASE - code


def _wait(process: subprocess.Popen[bytes], timeout_s: float) -> int | None:
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return None


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    if _wait(process, _GRACE_S) is None:
        process.kill()
        process.wait()


def _lost_its_server(pid: int) -> bool:
    """Whether the process has a zombie child and no living one; Python's own helper processes do not count."""
    states = dict(_children(pid))
    living = [child for child, state in states.items() if state not in "ZX" and not _is_pythons_own(child)]
    return bool(states) and not living and "Z" in states.values()


def _children(pid: int) -> list[tuple[int, str]]:
    """Pid and state of every child, from /proc/PID/stat (proc(5)). The process name in it may contain any character."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
                if int(fields[1]) == pid:
                    found.append((int(entry.name), fields[0]))
    return found


def _is_pythons_own(pid: int) -> bool:
    with contextlib.suppress(OSError):
        line = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
        return any(name in line for name in _PYTHONS_OWN)
    return False


if __name__ == "__main__":
    sys.exit(main())
