"""`python -m torpor_vllm.compile MODEL <engine flags>`: one throw-away start, for the kernels that it leaves behind.

vLLM has no command that only compiles: torch.compile's graphs, Triton's, FlashInfer's and DeepGEMM's kernels come into being
while an engine starts with the serving flags. So the engine is started without a server, answers one prompt and ends; its
caches (VLLM_CACHE_ROOT, DG_JIT_CACHE_DIR, ...) are what counts. Run in the engine's image while it is built.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from torpor.launcher import boot as launcher
from torpor_vllm.serve import parsed, prepare_process
from torpor_vllm.versions import check_version, installed_version

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torpor_vllm.serve import Arguments

__all__ = ["main"]

NAME = "torpor_vllm.compile"


def main(argv: Sequence[str]) -> int:
    """Compile and return the exit code: 0 after an answer, 2 for a configuration that cannot work."""
    return launcher.exit_code_of(lambda: _compile(argv), launcher=NAME)


def _compile(argv: Sequence[str]) -> None:
    version = installed_version()
    check_version(version)
    prepare_process()
    launcher.end_tree_on_sigterm()
    _, args = parsed(argv, version)
    args.model = args.model_tag
    tokens = asyncio.run(_answer(args))
    launcher.log(NAME, f"vLLM {version} answered with {tokens} tokens; what it compiled is in its caches")


async def _answer(args: Arguments) -> int:
    """Start an engine as the server does, ask it once, end it; how many tokens came."""
    from vllm import SamplingParams  # noqa: PLC0415 - the engine's
    from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: PLC0415
    from vllm.v1.engine.async_llm import AsyncLLM  # noqa: PLC0415

    engine = AsyncLLM.from_engine_args(AsyncEngineArgs.from_cli_args(args))
    tokens = 0
    try:
        async for output in engine.generate("Compile.", SamplingParams(max_tokens=4), request_id="torpor-compile"):
            tokens = len(output.outputs[0].token_ids)
    finally:
        engine.shutdown()
    return tokens


if __name__ == "__mp_main__":  # a process that vLLM spawned
    prepare_process()

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
