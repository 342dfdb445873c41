"""Who may import whom, read from the sources."""

from __future__ import annotations

import ast
import functools
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from scripts.site.parts import APART, PARTS, part_of

from tests import ROOT
from tests.source_trees import nodes

if TYPE_CHECKING:
    from collections.abc import Iterator

CORE = ROOT / "core" / "torpor"
PLUGINS = ROOT / "plugins"
PLATFORM = [
    CORE / "platforms" / "modal" / name
    for name in ("account.py", "class_options.py", "container_image.py", "server.py")
]
RELAY = {CORE / "lifecycle.py", CORE / "hookspecs.py"}

STANDARD_ONLY = [
    CORE / "build_steps" / "runner.py",
    CORE / "__init__.py",
    CORE / "_lazy.py",
    CORE / "_version.py",
    CORE / "snapshots" / "criu_install" / "mirror_download.py",
    *(CORE / "guard").glob("*.py"),
    *(CORE / "launcher").glob("*.py"),
    *(CORE / "engine_patches").glob("*.py"),
]
"""Files that run in the engine's environment, or in an image without any package."""

ENGINES_HAVE = {"packaging", "psutil", "tqdm"}
"""Packages that every supported engine depends on, and that a launcher may use."""

PARSERS = {CORE / "launcher" / f"limited_{name}.py": {"uvicorn", name} for name in ("h11", "httptools")}
"""They extend uvicorn's classes, and are imported after an engine has imported uvicorn."""


TYPES_OF_EACH_OTHER = {"torpor.deployment", "torpor.hookspecs", "torpor.listener.events"}
"""The only ones that import each other: a deployment has plugins; hooks and events name `Deployment` in their annotations."""


def sources(*folders: Path) -> list[Path]:
    """Every Python file under the folders."""
    return sorted(file for folder in folders for file in folder.rglob("*.py"))


def imports(file: Path, *, typing_only: bool = True) -> Iterator[str]:
    """Every module that a file imports, at any level and under any condition.

    Args:
        file: the source.
        typing_only: whether imports under `if TYPE_CHECKING:` count.
    """
    skipped = set() if typing_only else set(_under_type_checking(file))
    for node in nodes(file):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield node.module or ""


def tops(file: Path, *, typing_only: bool = True) -> set[str]:
    """The top-level packages among a file's imports."""
    return {module.partition(".")[0] for module in imports(file, typing_only=typing_only)}


def named(files: list[Path]) -> list[str]:
    """Paths relative to the repository."""
    return [str(file.relative_to(ROOT)) for file in files]


@functools.cache
def modules() -> dict[str, Path]:
    """Every module of core by its dotted name."""
    return {dotted(file): file for file in sources(CORE)}


def dotted(file: Path) -> str:
    """A file's module name."""
    names = file.relative_to(CORE.parent).with_suffix("").parts
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


@functools.cache
def imported(module: str) -> frozenset[str]:
    """Modules of core that a module imports, also in functions and for type checking."""
    found: set[str] = set()
    for node in nodes(modules()[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inside & modules().keys() | ({node.module or ""} if inside - modules().keys() else set())
    return frozenset(found & modules().keys() - {module})


def reachable(module: str) -> set[str]:
    """Every module that an import of this one loads."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        for name in graph()[waiting.pop()] - found:
            found.add(name)
            waiting.append(name)
    return found


@functools.cache
def graph() -> dict[str, frozenset[str]]:
    """The modules that each module imports, without the one pair that may import each other."""
    pair = TYPES_OF_EACH_OTHER
    return {name: imported(name) - (pair if name in pair else set()) for name in modules()}


def test_every_module_belongs_to_a_part() -> None:
    """Every name in the table of parts is a module or a package."""
    assert [name for name in modules() if part_of(name) is None] == []
    assert [name for part in PARTS for name in part.modules if name not in modules()] == []


def test_a_part_imports_only_lower_parts() -> None:
    """In the order of the table of parts. Imports in functions and for type checking count."""
    order = {part.name: place for place, part in enumerate(PARTS)}
    upward = set()
    for module in modules():
        for name in imported(module):
            user, used = part_of(module), part_of(name)
            assert user
            assert used
            if order[used.name] > order[user.name]:
                upward.add((module, name))
    assert sorted(upward) == []


def test_some_parts_do_not_import_each_other() -> None:
    """In either direction."""
    for module in modules():
        user = part_of(module)
        for name in imported(module):
            used = part_of(name)
            assert {part.name for part in (user, used) if part} not in APART, f"{module} imports {name}"


def test_no_modules_import_each_other() -> None:
    """Over any number of modules; only the hooks name `Deployment`, for type checking."""
    circles = {
        frozenset({name, *(other for other in reachable(name) if name in reachable(other))})
        for name in modules()
        if name in reachable(name)
    }
    assert [sorted(circle) for circle in circles] == []
    assert "torpor.deployment" not in imports(CORE / "hookspecs.py", typing_only=False)


def test_core_never_imports_a_plugin() -> None:
    """Plugins import core. Core reaches an engine plugin only through `deployment.engine`."""
    plugins = {folder.name for folder in PLUGINS.iterdir() if folder.is_dir()}
    assert "torpor_sglang" in plugins
    assert named([file for file in sources(CORE) if tops(file) & plugins]) == []


def test_plugins_do_not_import_each_other() -> None:
    """They cooperate through the recipe and `deployment.engine`."""
    for folder in filter(Path.is_dir, PLUGINS.iterdir()):
        others = {other.name for other in PLUGINS.iterdir()} - {folder.name}
        assert named([file for file in sources(folder) if tops(file) & others]) == []


def test_only_the_platform_imports_modal() -> None:
    """Every other module works, and is tested, without a platform."""
    assert [file for file in sources(CORE, PLUGINS) if "modal" in tops(file)] == PLATFORM


def test_only_its_platform_imports_ray() -> None:
    """And of that, what makes configuration and manifests works without Ray."""
    users = [file for file in sources(CORE, PLUGINS) if "ray" in tops(file)]
    needed = ("application", "cluster", "ingress", "next_worker", "replica", "schema")
    assert users == [CORE / "platforms" / "ray" / f"{name}.py" for name in needed]


def test_only_two_modules_import_pluggy() -> None:
    """The hook specification, and the lifecycle."""
    assert {file for file in sources(CORE, PLUGINS) if "pluggy" in tops(file)} == RELAY


def test_only_the_kit_imports_pytest_and_uvicorn() -> None:
    """Both packages come with the extra `testing`."""
    found = [file for file in sources(CORE, PLUGINS) if tops(file) & {"pytest", "uvicorn"}]
    outside = [file for file in found if CORE / "testing" not in file.parents]
    # The launcher of an engine whose server is uvicorn meets it in the engine's own environment.
    assert {file for file in outside if CORE in file.parents} == set(PARSERS)


def test_core_does_not_import_its_kit() -> None:
    """`torpor.testing` is for tests. Only `torpor doctor` uses it, to check the contract."""
    users = [
        file for file in sources(CORE, PLUGINS) if any(name.startswith("torpor.testing") for name in imports(file))
    ]
    assert named([file for file in users if CORE / "testing" not in file.parents]) == ["core/torpor/cli/doctor.py"]


@pytest.mark.parametrize("file", STANDARD_ONLY, ids=lambda file: file.name)
def test_modules_in_the_engines_process_import_only_the_standard_library(file: Path) -> None:
    """The engine's environment may have any packages."""
    foreign = tops(file, typing_only=False) - set(sys.stdlib_module_names) - {"torpor"}
    allowed = ENGINES_HAVE | PARSERS.get(file, set()) if file.parent.name in {"launcher", "engine_patches"} else set()
    assert foreign <= allowed


def test_nothing_is_typed_any_outside_the_lifecycle() -> None:
    """Only the attributes of pluggy's relay have no types."""
    allowed = CORE / "lifecycle.py"
    guilty = []
    for file in sources(CORE, PLUGINS):
        names = {node.id for node in nodes(file) if isinstance(node, ast.Name)}
        attributes = {node.attr for node in nodes(file) if isinstance(node, ast.Attribute)}
        if "Any" in names | attributes and file != allowed:
            guilty.append(file)
    assert named(guilty) == []


def test_no_module_has_a_catch_all_name() -> None:
    """A module is named after its content."""
    assert named([file for file in sources(CORE, PLUGINS) if file.stem in {"utils", "helpers", "common", "base"}]) == []


def _under_type_checking(file: Path) -> Iterator[ast.AST]:
    for node in nodes(file):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for statement in node.body:
                yield from ast.walk(statement)


STARTERS = {
    "subprocess": {
        "core/torpor/engine/child_process.py": "the way for commands",
        "core/torpor/engine/process.py": "engines; a lifeline ends them",
        "core/torpor/engine/lifeline.py": "the watchers themselves",
        "core/torpor/build_steps/command.py": "build steps; a lifeline ends them",
        "core/torpor/cli/timing.py": "commands of our own; a lifeline ends them",
        "core/torpor/snapshots/sandbox/first_process.py": "sandboxes; their first process ends with its owner",
        "core/torpor/build_steps/runner.py": "runs in an image, where nothing of Torpor is; here the step's lifeline holds it",
        "plugins/torpor_deepgemm/watch.py": "a build step's program; the step's lifeline ends it",
    },
    "fork": {
        "core/torpor/engine/lifeline.py": "the watchers themselves",
        "core/torpor/snapshots/sandbox/pid1.py": "inside a sandbox, which ends with its owner",
        "core/torpor/snapshots/criu/probe.py": "a program inside a sandbox",
        "core/torpor/testing/standin/scheduler.py": "a stand-in for an engine; the engine's lifeline ends it",
    },
}
"""Files that may start processes, and what ends these with the framework's own process."""

STARTS = {
    "subprocess": re.compile(r"subprocess\.(?:run|Popen|call|check_call|check_output)\((?!\[nvcc)"),
    "fork": re.compile(r"^(?!.*\").*\bos\.(?:fork|forkpty|posix_spawn|posix_spawnp|spawn\w+|system|popen)\(", re.M),
}


@pytest.mark.parametrize("how", STARTERS)
def test_something_ends_every_process_that_is_started(how: str) -> None:
    """Every file that starts processes says what ends them. A new one has to use `torpor.engine.child_process`."""
    found = {
        str(file.relative_to(ROOT)) for file in sources(CORE, PLUGINS) if STARTS[how].search(file.read_text("utf-8"))
    }
    assert found == set(STARTERS[how])
