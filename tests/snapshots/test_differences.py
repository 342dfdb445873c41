"""How the captured deployment differs from the one here: field by field, never two long texts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import pytest

from torpor.snapshots.differences import options_of
from torpor.snapshots.fit import different_deployment
from torpor.snapshots.store.manifest import DeploymentFacts


class Level(Enum):
    """An option whose `repr` is not valid Python."""

    LOW = 1
    HIGH = 2


@dataclass(frozen=True, kw_only=True)
class Grammar:
    """Options inside of options."""

    compact: bool = False
    backend: str = "x, (y"


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A plugin."""

    length: int = 4096
    grammar: Grammar | None = None
    words: tuple[str, ...] = ()
    level: Level = Level.LOW
    text: str = 'it\'s "quoted", (unclosed'


def facts(**changed: object) -> DeploymentFacts:
    """The facts of a deployment with one plugin."""
    made = DeploymentFacts(
        torpor="0.1.0",
        name="tiny",
        port=8000,
        plugins={"engine": f"1.0 {Engine(grammar=Grammar())!r}", "hf_cache": "0.1.0 HFCache()"},
        task="chat",
        engine="engine 1.0",
        model="org/model",
        revision="0" * 40,
        argv=(
            "python",
            "-m",
            "engine.serve",
            "--model",
            "/m",
            "--sizes",
            "1",
            "2",
            "--quiet",
            "--config",
            '{"a": {"b": 1}}',
        ),
        env={"HOME_OF_MODELS": "/a", "MODE": "x", "API_TOKEN": "hunter2-hunter2"},
    )
    return made._replace(**changed)  # type: ignore[arg-type]


def engine(value: object) -> dict[str, str]:
    """The plugins, with another value for the engine."""
    return {**facts().plugins, "engine": f"1.0 {value!r}"}


def argv(old: str, new: str) -> tuple[str, ...]:
    """The command line, with some words replaced."""
    return tuple(" ".join(facts().argv).replace(old, new).replace('": ', '":').split())


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (facts(), []),
        (facts(plugins=engine(Engine(grammar=Grammar(compact=True)))), ["engine.grammar.compact: False -> True"]),
        (
            facts(plugins=engine(Engine(length=8192, grammar=Grammar(), level=Level.HIGH))),
            ["engine.length: 4096 -> 8192", "engine.level: <Level.LOW: 1> -> <Level.HIGH: 2>"],
        ),
        (
            facts(plugins=engine(Engine(grammar=Grammar(), words=("a, b", "c)")))),
            ["engine.words: () -> ('a, b', 'c)')"],
        ),
        (facts(plugins=engine(Engine())), ['engine.grammar: {"compact": "False", "backend": "\'x, (y\'"} -> None']),
        (
            facts(plugins={"engine": facts().plugins["engine"], "fast_load": "0.1.0 FastLoad()"}),
            ["plugins: removed hf_cache, added fast_load"],
        ),
        (
            facts(plugins={**facts().plugins, "hf_cache": "0.2.0 HFCache()"}),
            ["plugin hf_cache: version 0.1.0 -> 0.2.0"],
        ),
        (facts(argv=(*facts().argv, "--b")), ["flags: added --b"]),
        (facts(argv=argv("--quiet", "--a --b")), ["flags: removed --quiet, added --a --b"]),
        (facts(argv=argv("--sizes 1 2", "--sizes 1 3")), ["--sizes: 1 2 -> 1 3"]),
        (facts(argv=argv("--model /m", "--model=/n")), ["--model: /m -> /n"]),
        (facts(argv=(*facts().argv[:-1], '{"a": {"b": 2}}')), ["--config.a.b: 1 -> 2"]),
        (
            facts(argv=("python3", *facts().argv[1:])),
            ["the engine's program: python -m engine.serve -> python3 -m engine.serve"],
        ),
        (
            facts(argv=(*facts().argv[:3], "--quiet", *facts().argv[3:8], *facts().argv[9:])),
            ["flags: the same, in another order"],
        ),
        (facts(env={**facts().env, "MODE": "y"}), ["env MODE: x -> y"]),
        (facts(env={**facts().env, "MODE": ""}), ["env MODE: x -> (empty)"]),
        (facts(env={"MODE": "x", "NEW": "1"}), ["env: removed API_TOKEN HOME_OF_MODELS, added NEW"]),
        (facts(env={**facts().env, "API_TOKEN": "correct-horse-1"}), ["env API_TOKEN: (not shown)"]),
        (facts(port=8001), ["Deployment.port was 8000 at the capture; now it is 8001"]),
    ],
)
def test_each_difference_is_one_line_that_names_its_field(now: DeploymentFacts, said: list[str]) -> None:
    """By plugin option, flag or variable. Values of secrets are not shown."""
    assert list(different_deployment(facts(), now)) == said


def test_all_differences_are_listed_at_once() -> None:
    """Plugin, flag, variable and model."""
    now = facts(
        plugins=engine(Engine(length=1, grammar=Grammar())),
        argv=argv("--quiet", ""),
        env={**facts().env, "MODE": "y"},
        model="m",
    )
    assert [one.partition(":")[0] for one in different_deployment(facts(), now)] == [
        "model was org/model at the capture; now it is m",
        "engine.length",
        "flags",
        "env MODE",
    ]


def test_long_values_are_cut_around_the_difference() -> None:
    """Lines of a thousand characters cannot be compared by eye."""
    long = "a" * 1000
    (said,) = different_deployment(facts(env={"MODE": f"{long}1{long}"}), facts(env={"MODE": f"{long}2{long}"}))
    assert len(said) < 250
    assert "a1a" in said.partition(" -> ")[0]
    assert "a2a" in said.partition(" -> ")[2]


@pytest.mark.parametrize("text", ["", "other options", "0.1 X", "X(", "X(a)", "1.0 X(a=1, b)", "(((("])
def test_a_text_that_is_not_a_plugin_is_shown_as_it_is(text: str) -> None:
    """It is shortened, and nothing fails."""
    assert options_of(text) is None
    now = facts(plugins={"engine": f"{text}!" * 200})
    (removed, one) = different_deployment(facts(), now)
    assert removed == "plugins: removed hf_cache"
    assert one.startswith("plugin engine was ")
    assert len(one) < 250


def test_options_may_be_nested_without_end() -> None:
    """Too deep levels are compared as text."""
    deep = "X(a=" * 5000 + "1" + ")" * 5000
    (one,) = different_deployment(facts(plugins={"x": deep}), facts(plugins={"x": deep.replace("1", "2")}))
    assert one.startswith("x.a.a.a.a.a.a.a.a.a: ")
    assert len(one) < 250
    assert options_of("X(a=" * 50_000) is None


def test_options_are_parsed_from_a_repr() -> None:
    """Brackets and quotes inside of strings do not split."""
    found = options_of(f"1.0 {Engine(grammar=Grammar(), words=('a=(', ']'))!r}")
    assert found == (
        "1.0",
        "Engine",
        {
            "length": "4096",
            "grammar": {"compact": "False", "backend": "'x, (y'"},
            "words": "('a=(', ']')",
            "level": "<Level.LOW: 1>",
            "text": repr(Engine().text),
        },
    )
    assert options_of("Plain()") == ("", "Plain", {})
