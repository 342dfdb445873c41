"""Answers questions about one real vLLM: a JSON line in, a JSON line out.

An engine's Python runs it as a module, with the version in question on its path. vLLM's code is unchanged. A version without
its compiled parts can be imported, too, because a variable sets its platform: vLLM needs those parts to load a model, but not
to read a command line or to build an application.
"""

from __future__ import annotations

import functools
import os
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, get_args

from tests.plugins.answering import answer_questions, keep_answers_apart, own_headers, parse, paths

if TYPE_CHECKING:
    import argparse

TASKS = ("generate", "transcription", "embed", "classify")  # the supported tasks of all models together
PUBLIC_REQUESTS = (
    ("openai.chat_completion.protocol", "ChatCompletionRequest"),
    ("openai.completion.protocol", "CompletionRequest"),
    ("openai.responses.protocol", "ResponsesRequest"),
    ("anthropic.protocol", "AnthropicMessagesRequest"),
    ("anthropic.protocol", "AnthropicCountTokensRequest"),
    ("pooling.embed.protocol", "EmbeddingRequest"),
    ("pooling.classify.protocol", "ClassificationRequest"),
    ("pooling.scoring.protocol", "ScoreRequest"),
    ("pooling.scoring.protocol", "RerankRequest"),
    ("serve.tokenize.protocol", "TokenizeRequest"),
    ("serve.tokenize.protocol", "DetokenizeRequest"),
    ("speech_to_text.transcription.protocol", "TranscriptionRequest"),
)


@functools.cache
def parsers() -> tuple[Any, argparse.ArgumentParser, argparse.ArgumentParser]:
    """Return the command `serve`, the parser of the whole `vllm` line, and the parser of `serve`."""
    from vllm.entrypoints.cli.serve import cmd_init
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    whole = FlexibleArgumentParser(prog="vllm")
    subcommands = whole.add_subparsers(required=True, dest="subparser")
    (command,) = cmd_init()
    return command, whole, command.subparser_init(subcommands)


def ask_version(_: dict[str, Any]) -> object:
    """Return the version that is imported."""
    import vllm

    return {"version": vllm.__version__, "file": vllm.__file__}


def ask_options(_: dict[str, Any]) -> object:
    """Return every option's spellings."""
    return [list(action.option_strings) for action in parsers()[2]._actions]


def ask_speculation(_: dict[str, Any]) -> object:
    """Return the fields of a speculative configuration, and its methods."""
    import dataclasses
    import typing

    from vllm.config import speculative

    methods: list[str] = []
    left = [*typing.get_args(speculative.SpeculativeMethod)]
    while left:
        one = left.pop()
        if isinstance(one, str):
            methods.append(one)
        else:
            left += typing.get_args(one)
    return {"fields": [field.name for field in dataclasses.fields(speculative.SpeculativeConfig)], "methods": methods}


def ask_parse(question: dict[str, Any]) -> object:
    """Parse and check a command line like `vllm serve`."""
    command, whole, _ = parsers()
    answer = parse(whole, ["serve", *question["argv"]])
    if "error" not in answer:
        try:
            command.validate(whole.parse_args(["serve", *question["argv"]]))
        except (TypeError, ValueError) as error:
            return {"error": str(error), "exit": "1"}
    return answer


def ask_routes(question: dict[str, Any]) -> object:
    """Return the paths of the real application for a command line, in development mode or not."""
    from vllm.entrypoints.launchers.app import build_app

    os.environ["VLLM_SERVER_DEV_MODE"] = "1" if question["dev_mode"] else "0"
    # What the real model's configuration answers about a reranker; it needs a model's files.
    hf_config = SimpleNamespace(num_labels=1)
    model = SimpleNamespace(get_pooling_task=lambda _: "classify", hf_config=hf_config, io_processor_plugin=None)
    application = build_app(parsers()[1].parse_args(["serve", *question["argv"]]), TASKS, model)
    return sorted(set(paths(application.routes)))


def ask_fields(_: dict[str, Any]) -> object:
    """Return the request fields of the public routes."""
    kinds = [getattr(import_module(f"vllm.entrypoints.{module}"), name) for module, name in PUBLIC_REQUESTS]
    return sorted({name for kind in kinds for model in models_of(kind) for name in model.model_fields})


def models_of(kind: Any) -> list[Any]:
    """Return the models of a request: itself, or those of a union."""
    if hasattr(kind, "model_fields"):
        return [kind]
    return [model for part in get_args(kind) for model in models_of(part)]


def ask_headers(_: dict[str, Any]) -> object:
    """Return the headers that vLLM's HTTP server reads by name."""
    from vllm import entrypoints

    return own_headers(Path(entrypoints.__path__[0]))


def ask_variables(_: dict[str, Any]) -> object:
    """Return the environment variables in vLLM's table."""
    from vllm import envs

    return sorted(envs.environment_variables)


def main() -> None:
    """Answer until the input ends."""
    answers = keep_answers_apart()
    os.environ |= {"VLLM_TARGET_DEVICE": "cpu", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    answer_questions(globals(), answers)


if __name__ == "__main__":
    main()
