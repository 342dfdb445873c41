"""The command that compiles kernels: one temporary start of vLLM, which fills its caches.

vLLM has no command that only compiles: it compiles torch.compile's graphs and the kernels of Triton, FlashInfer and DeepGEMM while
an engine starts with the serving flags. So this program starts an engine without a server, lets it answer one prompt and ends;
its caches (VLLM_CACHE_ROOT, DG_JIT_CACHE_DIR, ...) are the result. It runs while the image is built. The image then holds vLLM
and nothing of Torpor's, so the program is one line. It has no line breaks and no dollars, because a build step is one shell
line of a Dockerfile.
"""

from __future__ import annotations

__all__ = ["PROGRAM"]

# The parser of `vllm serve`, so that every serving flag may be there (entrypoints/cli/serve.py of 0.32.0 and 0.33.0). Only
# the last statement starts anything: processes that vLLM spawns do not run this again, because it is no file.
PROGRAM = "; ".join(
    (
        "import sys",
        "from vllm import LLM, SamplingParams",
        "from vllm.engine.arg_utils import EngineArgs",
        "from vllm.entrypoints.cli.serve import cmd_init",
        "from vllm.utils.argparse_utils import FlexibleArgumentParser",
        "parser = FlexibleArgumentParser(prog='compile')",
        "cmd_init()[0].subparser_init(parser.add_subparsers())",
        "args = parser.parse_args(['serve', *sys.argv[1:]])",
        "args.model = args.model_tag",
        "answer = LLM.from_engine_args(EngineArgs.from_cli_args(args)).generate('Compile.', SamplingParams(max_tokens=4))",
        "print('compiled; answered with', len(answer[0].outputs[0].token_ids), 'tokens')",
    )
)
