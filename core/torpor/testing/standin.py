"""A stand-in for an engine: `python -m torpor.testing.standin --port 8000 [--fault NAME]`.

A real process tree with a real HTTP server that speaks SGLang's dialect behind the real guard, ready in a fraction of a
second, with faults on request (`torpor.testing.faults`). It ends the way SGLang ends: when its scheduler fails, that
sends SIGQUIT to the server process, which kills the whole tree.

Flags of its own are below; unknown ones are accepted and ignored, so that a plugin's engine arguments do no harm.

Environment:
    TORPOR_BOOT_FD        the pipe with the guard's boot document; without it nothing is started
    TORPOR_UNGUARDED=1    start without a guard all the same, for debugging
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from typing import TYPE_CHECKING

from torpor.testing.faults import EXIT_CODE, Fault

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

    from torpor.guard import BootDocument
    from torpor.testing.standin_app import StandInApp

__all__ = ["main"]

UNGUARDED_VARIABLE = "TORPOR_UNGUARDED"


def main(argv: Sequence[str]) -> int:
    """Serve until SIGTERM; the process's exit code."""
    from torpor.guard import read_boot  # noqa: PLC0415 - the fork below copies what is imported

    args = _parse(argv)
    fault = Fault(args.fault) if args.fault else None
    boot = read_boot()
    if boot is None and os.environ.get(UNGUARDED_VARIABLE) != "1":
        _say(
            f"no boot document (TORPOR_BOOT_FD), so nothing is started; {UNGUARDED_VARIABLE}=1 would start it without a guard"
        )
        return 2
    if fault is Fault.EXIT_AT_START:
        _say(f"fault {fault}: exiting with code {EXIT_CODE}")
        return EXIT_CODE

    from torpor.testing.scheduler import fork_children  # noqa: PLC0415

    link, children = fork_children(fault)
    _kill_tree_on_sigquit(children)
    _say(f"pid {os.getpid()}, scheduler {children[0]}, detokenizer {children[1]}")

    from torpor.testing.standin_app import StandInApp, StandInOptions  # noqa: PLC0415

    options = StandInOptions(
        served_name=args.served_model_name,
        fault=fault,
        fault_s=args.fault_s,
        token_s=args.token_s,
        journal=args.journal,
    )
    if fault is Fault.HANG_AT_START:
        time.sleep(3600)
    if fault is Fault.SLOW_START:
        time.sleep(args.fault_s)
    try:
        _serve(args.host, args.port, StandInApp(options, link), boot, deaf=fault is Fault.IGNORE_SIGTERM)
    finally:
        if fault is not Fault.CHILDREN_IGNORE_SIGTERM:
            _kill_all(children)
    return 0


def _serve(host: str, port: int, app: StandInApp, boot: BootDocument | None, *, deaf: bool) -> None:
    from uvicorn.config import Config  # noqa: PLC0415 - most of the start
    from uvicorn.server import Server  # noqa: PLC0415

    from torpor.guard import Guard  # noqa: PLC0415

    class StandInServer(Server):
        """Uvicorn's server, but for what it does on a signal."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
            """Finish what is in flight and return from `run`; uvicorn's own raises the signal again."""
            self.should_exit = not deaf

    guarded = app if boot is None else Guard(app, boot.rules, key=boot.key, boot_id=boot.boot_id)
    config = Config(
        guarded,
        host=host,
        port=port,
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
    )
    StandInServer(config).run()


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m torpor.testing.standin", allow_abbrev=False)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--served-model-name", default="standin")
    parser.add_argument("--dialect", choices=("sglang",), default="sglang")
    parser.add_argument("--fault", choices=[str(fault) for fault in Fault])
    parser.add_argument("--fault-s", type=float, default=1.0)
    parser.add_argument("--token-s", type=float, default=0.0)
    parser.add_argument("--journal", default="")
    args, _ = parser.parse_known_args(argv)
    return args


def _kill_tree_on_sigquit(children: tuple[int, ...]) -> None:
    """What SGLang's server does when a child of it reports its own failure."""

    def kill_tree(_number: int, _frame: FrameType | None) -> None:
        _say("Received sigquit from a child process. It usually means the child failed.")
        _kill_all(children)
        os.kill(os.getpid(), signal.SIGKILL)

    signal.signal(signal.SIGQUIT, kill_tree)


def _kill_all(pids: tuple[int, ...]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _say(message: str) -> None:
    print(f"standin: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
