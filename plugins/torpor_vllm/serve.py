"""`python -m torpor_vllm.serve MODEL <engine flags>`: the only way in which Torpor starts vLLM.

What `vllm serve` does, through the same interface of vLLM's own command line, with the guard as the outermost layer of its
application and the patches of `torpor.launcher`. The flags are vLLM's; its own parser reads them.

Environment:
    TORPOR_BOOT_FD        the pipe with the guard's boot document; without it nothing is started
    TORPOR_UNGUARDED=1    start without a guard, for debugging
    TORPOR_PATCHES        patches to switch off: -name,-other
    TORPOR_ANY_ENGINE=1   try a vLLM version that is not supported

The module's top level runs again in every process that vLLM spawns (its engine core, its workers), so the patches reach
those as well; whatever is not in `main` must therefore be cheap and harmless to repeat.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Protocol

from torpor.launcher import (
    apply_patches,
    http_limits,
    named_locks,
    orphans,
    process_identity,
    published_files,
    run_launcher,
    tqdm_lock,
)
from torpor_vllm import public_requests, rank_store, sigterm, tile_permission
from torpor_vllm.reserved import RESERVED
from torpor_vllm.versions import SUPPORTED_VERSIONS, VERSIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torpor.guard import BootDocument
    from torpor.launcher import PatchReport

__all__ = ["main"]

NAME = "torpor_vllm"


class _Arguments(Protocol):
    """The part of vLLM's parsed arguments that the launcher uses."""

    middleware: list[str]


class _Command(Protocol):
    """vLLM's `serve` command."""

    def subparser_init(self, subparsers: object) -> object:
        """Add the parser of the command."""

    def validate(self, args: _Arguments) -> None:
        """Validate the arguments."""

    def cmd(self, args: _Arguments) -> None:
        """Serve until the server ends."""


def main(argv: Sequence[str]) -> int:
    """Start the server and wait until it ends.

    Args:
        argv: the model, then the engine's flags.

    Returns:
        The process's exit code: 0 after a server that ended by itself, 2 for a configuration that cannot work.
    """
    return run_launcher(
        argv,
        name=NAME,
        versions=VERSIONS,
        check_environment=RESERVED.check_environment,
        prepare=lambda _: _prepare_process(),
        serve=_serve,
    )


def _prepare_process() -> PatchReport:
    """Apply the patches. Every process of the engine does so before it imports vLLM."""
    patches = (
        orphans(SUPPORTED_VERSIONS),
        process_identity(SUPPORTED_VERSIONS),
        tqdm_lock(SUPPORTED_VERSIONS),
        http_limits(SUPPORTED_VERSIONS),
        public_requests.PATCH,
        named_locks(SUPPORTED_VERSIONS),
        published_files(SUPPORTED_VERSIONS),
        sigterm.PATCH,
        rank_store.PATCH,
        tile_permission.PATCH,
    )
    return apply_patches(os.environ, patches)


def _serve(argv: Sequence[str], version: str, boot: BootDocument | None) -> None:
    """Run vLLM's server in this process, as `vllm serve` does, through the interface of its command line.

    That is entrypoints/cli/main.py and serve.py; its parser ends the process on arguments that it does not know.
    """
    from vllm.entrypoints.cli.serve import cmd_init  # noqa: PLC0415 - the engine's
    from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: PLC0415

    parser = FlexibleArgumentParser(prog=f"python -m {NAME}.serve")
    command: _Command
    (command,) = cmd_init()
    command.subparser_init(parser.add_subparsers(required=True))
    args: _Arguments = parser.parse_args(["serve", *argv])
    RESERVED.check_parsed_args(version, args)
    if boot is not None:
        from torpor_vllm.guarded import MIDDLEWARE, BootGuard  # noqa: PLC0415 - asyncio: 29 ms of each spawned process

        BootGuard.document = boot
        args.middleware = [MIDDLEWARE]
    command.validate(args)
    command.cmd(args)


if __name__ == "__mp_main__":  # a process that vLLM spawned
    _prepare_process()

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
