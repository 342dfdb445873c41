"""`python -m torpor_sglang.serve <engine flags>`: the only way in which Torpor starts SGLang.

Starts SGLang's own HTTP server, unchanged but for the patches of `torpor_sglang.patches`, with the guard as the outermost
layer of its application. The flags are SGLang's; its own parser reads them.

Environment:
    TORPOR_BOOT_FD        the pipe with the guard's boot document; without it nothing is started
    TORPOR_UNGUARDED=1    start without a guard, for debugging
    TORPOR_PATCHES        patches to switch off: -name,-other
    TORPOR_ANY_ENGINE=1   try an SGLang version that is not supported

The module's top level runs again in every process that SGLang spawns (its scheduler, its detokenizer), so the patches
reach those as well; whatever is not in `main` must therefore be cheap and harmless to repeat. On a CPU the scheduler is a
fork and the detokenizer a thread, which have the patches of this process.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import TYPE_CHECKING

from torpor.launcher import run_launcher
from torpor_sglang.cpu_ranks import share_cpus
from torpor_sglang.patches import apply_all
from torpor_sglang.patches.cpu import choose_cpu, is_cpu_engine
from torpor_sglang.reserved import RESERVED
from torpor_sglang.several_gpus import check_several_gpus
from torpor_sglang.versions import VERSIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torpor.guard import BootDocument
    from torpor.launcher import PatchReport

__all__ = ["main"]

NAME = "torpor_sglang"


def main(argv: Sequence[str]) -> int:
    """Start the server and wait until it ends.

    Args:
        argv: the engine's flags.

    Returns:
        The process's exit code: 0 after a server that ended by itself, 2 for a configuration that cannot work.
    """
    return run_launcher(
        argv,
        name=NAME,
        versions=VERSIONS,
        check_environment=RESERVED.check_environment,
        prepare=_prepare_process,
        serve=_serve,
    )


def _prepare_process(argv: Sequence[str]) -> PatchReport:
    """Apply the patches. Every process of the engine does so before it imports SGLang."""
    choose_cpu(argv, os.environ)
    if is_cpu_engine():
        share_cpus(argv, os.environ)
    return apply_all(os.environ)


def _serve(argv: Sequence[str], version: str, boot: BootDocument | None) -> None:
    """Run SGLang's server in this process, and end all its processes at the end."""
    _load_engine_plugins()
    from sglang.srt.server_args import prepare_server_args  # noqa: PLC0415 - the engine's

    server_args = prepare_server_args(list(argv))
    RESERVED.check_parsed_args(version, server_args)
    check_several_gpus(server_args)

    from sglang.srt.entrypoints import http_server  # noqa: PLC0415 - the engine's
    from sglang.srt.utils import kill_process_tree  # noqa: PLC0415

    try:
        if boot is not None:
            from torpor.launcher import install_guard  # noqa: PLC0415 - asyncio: 15 ms of each spawned process

            install_guard(http_server.app, boot)
        http_server.launch_server(server_args)
    finally:
        kill_process_tree(os.getpid(), include_parent=False)


def _load_engine_plugins() -> None:
    """Load SGLang's plugins like its own launcher (sglang/launch_server.py of 0.5.16 and 0.5.23)."""
    if importlib.util.find_spec("sglang.srt.plugins") is not None:
        from sglang.srt.plugins import load_plugins  # noqa: PLC0415 - the engine's; 0.5.6.post2 has none

        load_plugins()


if __name__ == "__mp_main__":  # a process that SGLang spawned: multiprocessing hands it the launcher's argv
    _prepare_process(sys.argv[1:])

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
