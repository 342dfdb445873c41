"""The question process answers with the real vLLM."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.plugins.local_engines import Questions, RealEngine

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

MODEL = "some/model"
DEV_ROUTES = {"/sleep", "/wake_up", "/is_sleeping", "/collective_rpc"}


def test_the_requested_version_answers(questions: Questions, real_engine: Callable[[str], RealEngine]) -> None:
    """The version that can run here is imported from its environment, another one from its folder of Python files."""
    engine = real_engine(questions.version)
    folder = engine.env["PYTHONPATH"] or str(engine.python.parents[1])
    answer = questions.ask("version")
    assert answer["version"] == questions.version
    assert answer["file"].startswith(f"{folder}/")


def test_the_parser_of_vllm_serve_reads_a_command_line(questions: Questions) -> None:
    """The model, a flag and a number have vLLM's names."""
    values = questions.parse([MODEL, "--enable-sleep-mode", "--max-num-seqs", "8"])["values"]
    assert isinstance(values, dict)
    found = {name: values[name] for name in ("subparser", "model_tag", "enable_sleep_mode", "max_num_seqs")}
    assert found == {"subparser": "serve", "model_tag": MODEL, "enable_sleep_mode": "True", "max_num_seqs": "8"}


def test_an_unknown_flag_is_refused(questions: Questions) -> None:
    """The parser is real, so tests of flags can fail. The process continues to answer."""
    answer = questions.parse([MODEL, "--no-such-flag"])
    assert answer["exit"] == "2"
    assert "unrecognized arguments: --no-such-flag" in answer["error"]
    assert "values" in questions.parse([MODEL])


def test_a_command_line_that_vllm_refuses_after_parsing_is_refused(questions: Questions) -> None:
    """Parsed arguments are checked like in `vllm serve` before it loads a model."""
    answer = questions.parse([MODEL, "--enable-auto-tool-choice"])
    assert answer["error"] == "Error: --enable-auto-tool-choice requires --tool-call-parser"


def test_the_options_are_those_of_vllm_serve(questions: Questions) -> None:
    """All spellings of the engine's and the server's options are listed."""
    spellings = {name for names in questions.ask("options") for name in names}
    assert {"--enable-sleep-mode", "--middleware", "--load-format", "--enforce-eager"} <= spellings
    assert "--no-such-flag" not in spellings


def test_only_development_mode_has_the_routes_of_sleep_and_wake(questions: Questions) -> None:
    """The route table is the real application's, and each question sets the mode."""
    in_dev_mode = set(questions.ask("routes", argv=[MODEL], dev_mode=True))
    without = set(questions.ask("routes", argv=[MODEL], dev_mode=False))
    assert in_dev_mode >= DEV_ROUTES
    assert not DEV_ROUTES & without
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/health"} <= without <= in_dev_mode


def test_the_command_line_decides_the_routes(questions: Questions) -> None:
    """The application is built from the parsed arguments."""
    documented = set(questions.ask("routes", argv=[MODEL], dev_mode=False))
    bare = set(questions.ask("routes", argv=[MODEL, "--disable-fastapi-docs"], dev_mode=False))
    assert documented - bare == {"/docs", "/docs/oauth2-redirect", "/openapi.json", "/redoc"}
