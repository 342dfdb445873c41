"""`python -m benchmarks.gpu.vllm_serve <arguments of vllm>`: vLLM's own command line, its server behind Torpor's guard."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from benchmarks.gpu import vllm_serve as kept

from torpor.guard import BootDocument, Guard, read_boot

if TYPE_CHECKING:
    from torpor.guard.messages import App

boot: BootDocument | None = None


class Door(Guard):
    """The guard as vLLM takes a middleware: a class that gets the application alone."""

    def __init__(self, app: App) -> None:
        if kept.boot is None:
            raise RuntimeError("vllm_serve got no boot document (TORPOR_BOOT_FD), so the guard has no key")
        super().__init__(app, kept.boot.rules, key=kept.boot.key, replica_id=kept.boot.replica_id)


if __name__ == "__main__":
    kept.boot = read_boot()  # before any other process is there that could hold its pipe
    from vllm.entrypoints.cli.main import main

    sys.argv = ["vllm", *sys.argv[1:], "--middleware", "benchmarks.gpu.vllm_serve.Door"]
    main()
