"""Answers questions about one real vLLM: a line of JSON in, a line of JSON out.

Run as a module by an engine's Python, with the version in question on its path. Nothing of vLLM's is replaced. A version
that is there without its compiled parts imports as well, because it is told which platform it is on: those parts are asked
for when a model is loaded, not when a command line is read or an application is put together.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.plugins.answering import answer_questions, keep_answers_apart, own_headers, parse, paths

if TYPE_CHECKING:
    import argparse

TASKS = ("generate",)  # what a chat model's engine says it does


@functools.cache
def parsers() -> tuple[Any, argparse.ArgumentParser, argparse.ArgumentParser]:
    """Return what `vllm` makes of its subcommand: the command `serve`, the parser of the whole line, and that of `serve`."""
    from vllm.entrypoints.cli.serve import cmd_init
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    whole = FlexibleArgumentParser(prog="vllm")
    subcommands = whole.add_subparsers(required=True, dest="subparser")
    (command,) = cmd_init()
    return command, whole, command.subparser_init(subcommands)


def ask_version(_: dict[str, Any]) -> object:
    """Give the version that is really imported."""
    import vllm

    return {"version": vllm.__version__, "file": vllm.__file__}


def ask_options(_: dict[str, Any]) -> object:
    """Give every option's spellings."""
    return [list(action.option_strings) for action in parsers()[2]._actions]


def ask_parse(question: dict[str, Any]) -> object:
    """Parse a command line behind `vllm serve` and check it as that does."""
    command, whole, _ = parsers()
    answer = parse(whole, ["serve", *question["argv"]])
    if "error" not in answer:
        try:
            command.validate(whole.parse_args(["serve", *question["argv"]]))
        except (TypeError, ValueError) as error:
            return {"error": str(error), "exit": "1"}
    return answer


def ask_routes(question: dict[str, Any]) -> object:
    """Give the paths of the real application that a command line makes, in dev mode or not."""
    from vllm.entrypoints.launchers.app import build_app

    os.environ["VLLM_SERVER_DEV_MODE"] = "1" if question["dev_mode"] else "0"
    application = build_app(parsers()[1].parse_args(["serve", *question["argv"]]), TASKS)
    return sorted(set(paths(application.routes)))


def ask_fields(_: dict[str, Any]) -> object:
    """Give the fields of the public routes' requests."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    return sorted({*ChatCompletionRequest.model_fields, *CompletionRequest.model_fields})


def ask_headers(_: dict[str, Any]) -> object:
    """Give the headers that vLLM's HTTP server reads by name."""
    from vllm import entrypoints

    return own_headers(Path(entrypoints.__path__[0]))


def ask_variables(_: dict[str, Any]) -> object:
    """Give the environment variables that vLLM's own table names."""
    from vllm import envs

    return sorted(envs.environment_variables)


def main() -> None:
    """Answer until the input ends."""
    answers = keep_answers_apart()
    os.environ |= {"VLLM_TARGET_DEVICE": "cpu", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    answer_questions(globals(), answers)


if __name__ == "__main__":
    main()
