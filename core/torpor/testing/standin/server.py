"""The stand-in's server process: its flags, its children, its HTTP server."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from torpor.guard import Guard, read_boot
from torpor.launcher.http_limits import limit_uvicorn
from torpor.launcher.start import UNGUARDED_VARIABLE
from torpor.tasks.routes import TASKS
from torpor.testing.faults import EXIT_CODE, Fault
from torpor.testing.standin.app import StandInOptions
from torpor.testing.standin.ranks import RankFault, RankOptions
from torpor.testing.standin.scheduler import fork_children
from torpor.testing.standin.sglang import SGLangApp
from torpor.testing.standin.vllm import VLLMApp

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

    from torpor.guard import BootDocument
    from torpor.testing.standin.app import StandInApp

__all__ = ["main"]

_APPS: dict[str, type[StandInApp]] = {"sglang": SGLangApp, "vllm": VLLMApp}
"""The dialects."""


def main(argv: Sequence[str]) -> int:
    """Serve until SIGTERM and return the exit code."""
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

    kind = _APPS[args.dialect]
    deaf = fault in (Fault.CHILDREN_IGNORE_SIGTERM, Fault.IGNORE_SIGTERM)
    scheduler = kind.scheduler(fault, args.fault_once)
    scheduler.adapters = {name: _weights(folder) for name, folder in map(_adapter, args.lora_modules)}
    link, children = fork_children(scheduler, _ranks(args), deaf=deaf)
    kind.prepare_process(children)
    *ranks, last = children
    _say(f"pid {os.getpid()}, {args.dialect}, scheduler {' '.join(map(str, ranks))}, other child {last}")
    if fault is Fault.HANG_AT_START:
        time.sleep(3600)
    if fault is Fault.SLOW_START:
        time.sleep(args.fault_s)
    try:
        app, deaf = kind(_options(args), link), fault is Fault.IGNORE_SIGTERM
        _serve(args.host, args.port, app, boot, http=args.http, deaf=deaf)
    finally:
        if fault is not Fault.CHILDREN_IGNORE_SIGTERM:
            _kill_all(children)
    return 0


def _serve(host: str, port: int, app: StandInApp, boot: BootDocument | None, *, http: str, deaf: bool) -> None:
    from uvicorn.config import Config  # noqa: PLC0415 - only with the extra `testing`
    from uvicorn.server import Server  # noqa: PLC0415

    class StandInServer(Server):
        """Uvicorn's server with another reaction to signals."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
            """Finish the requests in flight and return from `run`; uvicorn itself would raise the signal again."""
            self.should_exit = not deaf

    limit_uvicorn()
    guarded = app if boot is None else Guard(app, boot.rules, key=boot.key, replica_id=boot.replica_id)
    config = Config(
        guarded,
        host=host,
        port=port,
        loop="asyncio",
        http=http,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
    )
    StandInServer(config).run()


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m torpor.testing.standin", allow_abbrev=False)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--served-model-name", default="standin")
    parser.add_argument("--dialect", choices=tuple(_APPS), default="sglang")
    parser.add_argument("--task", choices=TASKS, default="chat")
    parser.add_argument("--http", choices=("h11", "httptools"), default="h11", help="uvicorn's HTTP parser")
    parser.add_argument("--fault", choices=[str(fault) for fault in Fault])
    parser.add_argument("--fault-s", type=float, default=1.0)
    parser.add_argument("--fault-once", default="")
    parser.add_argument("--tp-size", "--tensor-parallel-size", type=int, default=1)
    parser.add_argument("--rank-fault", choices=[str(fault) for fault in RankFault])
    parser.add_argument("--fault-rank", type=int, default=1)
    parser.add_argument("--rank-deadline-s", type=float, default=20.0)
    parser.add_argument("--token-s", type=float, default=0.0)
    parser.add_argument("--journal", default="")
    parser.add_argument("--lora-modules", "--lora-paths", nargs="*", default=[], metavar="ADAPTER")
    parser.add_argument("--draft-tokens", type=int, default=0)
    parser.add_argument(
        "--speculative-num-draft-tokens", type=int, default=1, help="SGLang's: the model's own token, too"
    )
    parser.add_argument("--speculative-config", type=json.loads, default={})
    args, _ = parser.parse_known_args(argv)
    return args


def _options(args: argparse.Namespace) -> StandInOptions:
    return StandInOptions(
        served_name=args.served_model_name,
        adapters=tuple(name for name, _ in map(_adapter, args.lora_modules)),
        fault=Fault(args.fault) if args.fault else None,
        fault_s=args.fault_s,
        fault_once=args.fault_once,
        token_s=args.token_s,
        drafts=args.draft_tokens
        or args.speculative_config.get("num_speculative_tokens", args.speculative_num_draft_tokens - 1),
        task=args.task,
        journal=args.journal,
    )


def _adapter(word: str) -> tuple[str, str]:
    """Name and folder of an adapter: NAME=PATH, or JSON as the engines take it."""
    if word.startswith("{"):
        given = {key.removeprefix("lora_"): value for key, value in json.loads(word).items()}
        return str(given["name"]), str(given["path"])
    name, _, folder = word.partition("=")
    return name, folder


def _weights(folder: str) -> str:
    """What stands for an adapter's weights: a digest of its files, or of its path if it has none."""
    files = sorted(Path(folder).glob("adapter_model.*"))
    content = b"".join(file.read_bytes() for file in files) or folder.encode()
    return hashlib.sha256(content).hexdigest()


def _ranks(args: argparse.Namespace) -> RankOptions:
    return RankOptions(
        size=args.tp_size,
        fault=RankFault(args.rank_fault) if args.rank_fault else None,
        fault_rank=args.fault_rank,
        deadline_s=args.rank_deadline_s,
    )


def _kill_all(pids: tuple[int, ...]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _say(message: str) -> None:
    print(f"standin: {message}", file=sys.stderr, flush=True)
