"""A plugin's name as users write it, and the names derived from it."""

from __future__ import annotations

import ast
import keyword
from typing import TYPE_CHECKING

import pytest

from torpor import ConfigurationError
from torpor.scaffold import Names, names_of, project_files
from torpor.scaffold.names import _TAKEN

if TYPE_CHECKING:
    from collections.abc import Iterator

PROMPT_FILE = Names(
    distribution="torpor-prompt-file", module="torpor_prompt_file", entry="prompt_file", class_name="PromptFile"
)


@pytest.mark.parametrize(
    "name", ["prompt-file", "prompt_file", "Prompt.File", "torpor-prompt-file", "torpor_prompt_file", "prompt-_.file"]
)
def test_a_project_has_one_name_however_it_is_spelt(name: str) -> None:
    """Names are compared like in package indexes (PEP 503)."""
    assert names_of(name) == PROMPT_FILE


def test_only_the_class_keeps_capitals() -> None:
    """Package indexes have lower-case names only."""
    assert names_of("LlamaCpp") == Names(
        distribution="torpor-llamacpp", module="torpor_llamacpp", entry="llamacpp", class_name="LlamaCpp"
    )
    assert names_of("class").class_name == "Class"
    assert names_of("torpor").distribution == "torpor-torpor"
    assert names_of("a" * 40).class_name == "A" + "a" * 39


@pytest.mark.parametrize(
    "name",
    [
        "",
        "-",
        "2fast",
        "torpor-2fast",
        "a/b",
        "../a",
        "a b",
        "-a",
        "a-",
        "a.",
        "\u00e9",
        "\uff41",
        "a\n",
        "a" * 41,
        "torpor-",
    ],
)
def test_an_invalid_name_is_refused(name: str) -> None:
    """The message says what is allowed and gives an example."""
    with pytest.raises(
        ConfigurationError, match="cannot be a plugin's name: it has 1 to 40 letters and digits"
    ) as raised:
        names_of(name)
    assert repr(name) in str(raised.value)


@pytest.mark.parametrize("name", ["sglang", "SGLang", "deepgemm", "hf-cache", "torpor_hf_cache", "standin"])
def test_the_name_of_a_bundled_plugin_is_refused(name: str) -> None:
    """The new module would hide the bundled one."""
    with pytest.raises(ConfigurationError, match=r"Torpor already has a plugin '(sglang|deepgemm|hf_cache|standin)'"):
        names_of(name)


@pytest.mark.parametrize(("name", "kind"), [("engine", "Engine"), ("stand-in", "StandIn"), ("none", "None")])
def test_a_class_that_would_hide_another_is_refused(name: str, kind: str) -> None:
    """The project imports some names, and Python reserves others."""
    with pytest.raises(ConfigurationError, match=f"a class {kind}, a name that Python or the project's code uses"):
        names_of(name)


def test_a_class_that_pytest_would_collect_is_refused() -> None:
    """It collects classes that begin with Test."""
    with pytest.raises(ConfigurationError, match=r"TestBed, a name that pytest would collect.*e\.g\. my-test-bed"):
        names_of("test-bed")


def test_the_refused_names_are_those_of_the_templates() -> None:
    """In every file that contains the plugin's class; keywords come from Python."""
    used = set()
    for engine in (False, True):
        for path, text in project_files(names_of("zyx"), engine=engine).items():
            if path.endswith(".py") and "Zyx" in text:
                used |= set(_bound(ast.parse(text)))
    capital = {name for name in used if name[0].isupper() and "_" not in name and "Zyx" not in name}
    assert capital == _TAKEN
    assert keyword.iskeyword("None")


def _bound(tree: ast.Module) -> Iterator[str]:
    """Names that a module imports, defines or assigns."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
