"""The public names. Importing them needs no package that an engine's process may lack."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import pickle
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING, NamedTuple

import pytest
from scripts.site import api

import torpor
from tests import ROOT
from torpor import errors, testing
from torpor.scaffold.names import names_of
from torpor.scaffold.project import project_files

if TYPE_CHECKING:
    from collections.abc import Iterator

ALL = [
    "Adapter",
    "BuildPlan",
    "BuildStep",
    "BuildStepError",
    "Cache",
    "CanaryAnswer",
    "CanaryError",
    "CanaryQuestion",
    "ConfigurationError",
    "ConflictError",
    "CriuError",
    "DRAFT_METHODS",
    "DamagedSnapshotError",
    "Deployment",
    "Draft",
    "DraftMethod",
    "DrainTimeoutError",
    "Engine",
    "EngineError",
    "EngineExitedError",
    "EnginePlugin",
    "EngineRequestError",
    "EngineTimeoutError",
    "Finding",
    "ForeignServerError",
    "GpuSnapshotError",
    "GuardStateError",
    "IMAGE_ROOT",
    "ImagePatch",
    "Lifecycle",
    "ModalOptions",
    "Model",
    "NoRoomError",
    "Plugin",
    "PluginError",
    "PortInUseError",
    "Preflight",
    "PreflightError",
    "RayOptions",
    "Recipe",
    "Scaling",
    "SecretFoundError",
    "ServerUnavailableError",
    "SnapshotError",
    "SnapshotMisfitError",
    "StoreError",
    "Task",
    "TaskRoute",
    "TorporError",
    "TrialWakeError",
    "UntrustedSnapshotError",
    "VOLUME_ROOT",
    "__version__",
    "check_retries",
    "check_seconds",
    "check_types",
    "check_volume",
    "gpu_model",
    "hookimpl",
    "lazy_names",
    "override",
    "plugin_name",
    "secret_value",
    "shown",
    "start_engine",
]
"""Golden: third parties write their plugins with these."""

TESTING = ["EngineContract", "Fault", "PluginContract", "StandIn", "StandInDeployment", "StandInVLLM"]

PACKAGES = tuple(name for name in api.PACKAGES if name != "torpor.platforms.ray")  # Ray is not everywhere
"""What third parties import from; everything else is core's own."""


class Source(NamedTuple):
    """A file written like a third party's code.

    Attributes:
        name: where it is.
        text: what is in it.
    """

    name: str
    text: str


def _sources() -> Iterator[Source]:
    for folder in ("plugins", "examples", "apps"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            yield Source(str(file.relative_to(ROOT)), file.read_text("utf-8"))
    for engine in (False, True):
        for path, text in project_files(names_of("zyx"), engine=engine).items():
            if path.endswith(".py"):
                yield Source(f"torpor new{' --engine' if engine else ''}: {path}", text)


SOURCES = tuple(_sources())

BLOCKED = ("httpx", "structlog", "pluggy", "modal", "psutil", "typer", "rich", "huggingface_hub", "pytest", "uvicorn")


WRONG_INPUT = (errors.ConfigurationError, errors.PortInUseError)
"""What the caller has to change: exit code 2."""


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a fresh interpreter with this one's path."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False, timeout=60
    )


def test_the_public_names_are_as_listed() -> None:
    """Adding or removing a name is a decision."""
    assert sorted(torpor.__all__) == ALL == sorted(set(ALL))
    assert dir(torpor) == ALL
    assert testing.__all__ == TESTING


@pytest.mark.parametrize("name", ALL)
def test_a_public_name_exists(name: str) -> None:
    """Each class and function has a docstring."""
    value = getattr(torpor, name)
    assert value is getattr(torpor, name)
    if inspect.isclass(value):
        assert value.__doc__


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_documented(package: str) -> None:
    """A class or function by its docstring, a constant by the docstring of its package."""
    module = importlib.import_module(package)
    names = [name for name in module.__all__ if not name.startswith("__")]
    assert names
    silent = []
    for name in names:
        value = getattr(module, name)
        told = value.__doc__ if inspect.isclass(value) or inspect.isroutine(value) else module.__doc__
        if not told or (told is module.__doc__ and name not in told):
            silent.append(name)
    assert silent == []


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_plugins_examples_apps_and_templates_use_public_names_only(source: Source) -> None:
    """A third party's plugin needs the same names."""
    assert list(_not_public(source.text)) == []


@pytest.mark.parametrize(
    ("line", "deep"),
    [
        ("from torpor import Plugin", []),
        ("from torpor import client", []),
        ("from torpor.guard import Guard", []),
        ("import torpor.guard", []),
        ("from torpor_sglang.plugin import SGLang", []),
        ("from torpor.recipe import IMAGE_ROOT", ["torpor.recipe.IMAGE_ROOT"]),
        ("from torpor.guard import asgi", ["torpor.guard.asgi"]),
        ("import torpor.hookspecs", ["torpor.hookspecs"]),
    ],
)
def test_a_deep_import_is_found(line: str, deep: list[str]) -> None:
    """In every form of the import statement."""
    assert list(_not_public(line)) == deep


def test_a_missing_name_is_an_attribute_error() -> None:
    """In both lazy modules. The message names the module."""
    for module in ("torpor", "torpor.testing"):
        with pytest.raises(AttributeError, match=f"module '{module}' has no attribute 'Nonsense'"):
            _ = importlib.import_module(module).Nonsense


def test_every_error_is_public_and_drawn_in_the_tree() -> None:
    """The module's docstring draws the tree of the classes with their exit codes."""
    classes = {
        name: kind
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, errors.TorporError)
    }
    assert set(classes) == set(errors.__all__)
    assert set(classes) < set(ALL)
    tree = (errors.__doc__ or "").splitlines()
    for name, kind in classes.items():
        line = next(line for line in tree if line.split() and name in line.split())
        parent = next((other for other in reversed(tree[: tree.index(line)]) if _depth(other) < _depth(line)), "")
        assert name == "TorporError" or kind.__mro__[1].__name__ in parent.split()
        assert kind.exit_code == (2 if issubclass(kind, WRONG_INPUT) else 1)


def test_an_error_survives_a_pickle() -> None:
    """A container sends its errors to the client as pickles. Exit code and log tail survive."""
    error = errors.EngineExitedError("gone", exit_code_seen=-9, log_tail=("a", "b"))
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.exit_code_seen, copy.log_tail) == ("gone", -9, ("a", "b"))
    assert str(pickle.loads(pickle.dumps(errors.CanaryError("differs")))) == "differs"


@pytest.mark.parametrize(
    "module",
    [
        "torpor",
        "torpor.guard",
        "torpor.testing",
        "torpor.testing.faults",
        "torpor.testing.standin.server",
        "torpor.testing.standin.sglang",
        "torpor.testing.standin.vllm",
        "torpor_sglang",
        "torpor_deepgemm",
        "torpor_hf_cache",
    ],
)
def test_importing_it_needs_nothing_but_the_standard_library(module: str) -> None:
    """An engine's environment has none of Torpor's dependencies. The test blocks each of them."""
    blocked = f"import sys\nfor name in {BLOCKED!r}:\n    sys.modules[name] = None\n"
    result = python(f"{blocked}import {module}\nprint({module}.__name__)")
    assert (result.stdout.strip(), result.stderr) == (module, "")


def test_values_import_no_network_library() -> None:
    """Deployments, recipes and errors are also read in places without a network."""
    result = python(
        "import sys\nfrom torpor import Deployment, ImagePatch, TorporError, BuildPlan, Model\n"
        "print(sorted({'httpx', 'modal', 'structlog', 'psutil', 'pluggy'} & set(sys.modules)))"
    )
    assert (result.stdout.strip(), result.stderr) == ("[]", "")


def test_the_version_has_one_place() -> None:
    """It is a literal, because a container has no package metadata; the distribution reads the same file when it is built.

    `tests/scaffold/test_made_projects.py` compares the two in a fresh environment. An editable installation keeps the version of
    the day on which it was made.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    place = ROOT / project["tool"]["hatch"]["version"]["path"]
    assert f'__version__ = "{torpor.__version__}"\n' in place.read_text()


def _not_public(text: str) -> Iterator[str]:
    """The names that a source imports from Torpor and that are not public."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if _is_core(alias.name) and alias.name not in PACKAGES)
        elif isinstance(node, ast.ImportFrom) and _is_core(node.module or ""):
            module = node.module or ""
            public = importlib.import_module(module).__all__ if module in PACKAGES else ()
            for alias in node.names:
                if alias.name not in public and f"{module}.{alias.name}" not in PACKAGES:
                    yield f"{module}.{alias.name}"


def _is_core(module: str) -> bool:
    return module.partition(".")[0] == "torpor"


def _depth(line: str) -> int:
    """The indentation of a line of the drawn tree, in characters before its class."""
    return len(line) - len(line.lstrip(" │├└─"))
