"""The public surface, and what importing it costs: nothing that the engine's process may not have."""

from __future__ import annotations

import importlib
import inspect
import os
import pickle
import subprocess
import sys

import pytest

import torpor
from torpor import errors, testing

ALL = [
    "BuildPlan",
    "BuildStep",
    "BuildStepError",
    "Cache",
    "CanaryError",
    "ConfigurationError",
    "ConflictError",
    "Deployment",
    "DrainTimeoutError",
    "Engine",
    "EngineError",
    "EngineExitedError",
    "EnginePlugin",
    "EngineRequestError",
    "EngineTimeoutError",
    "Finding",
    "ForeignServerError",
    "GuardStateError",
    "ImagePatch",
    "Lifecycle",
    "ModalOptions",
    "Model",
    "Plugin",
    "PluginError",
    "PortInUseError",
    "Preflight",
    "PreflightError",
    "Recipe",
    "Scaling",
    "ServerUnavailableError",
    "SnapshotError",
    "TorporError",
    "__version__",
    "check_types",
    "hookimpl",
    "start_engine",
]
"""Golden: third parties write their plugins with these."""

TESTING = ["EngineContract", "Fault", "PluginContract", "StandIn", "StandInVLLM"]

BLOCKED = ("httpx", "structlog", "pluggy", "modal", "psutil", "typer", "rich", "huggingface_hub", "pytest", "uvicorn")


WRONG_INPUT = (errors.ConfigurationError, errors.PortInUseError)
"""What the caller has to change: exit code 2."""


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Run a piece of Python in a fresh interpreter with this one's path."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False, timeout=60
    )


def test_the_public_names_are_golden() -> None:
    """A name more or less is a decision."""
    assert torpor.__all__ == ALL == sorted(ALL)
    assert dir(torpor) == ALL
    assert testing.__all__ == TESTING


@pytest.mark.parametrize("name", ALL)
def test_a_public_name_is_there(name: str) -> None:
    """And a class or function comes with a docstring."""
    value = getattr(torpor, name)
    assert value is getattr(torpor, name)
    if inspect.isclass(value):
        assert value.__doc__


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    """In both lazy modules, with the module's name."""
    for module in ("torpor", "torpor.testing"):
        with pytest.raises(AttributeError, match=f"module '{module}' has no attribute 'Nonsense'"):
            _ = importlib.import_module(module).Nonsense


def test_every_error_is_public_and_drawn_in_the_tree() -> None:
    """The tree in the module's docstring is the tree of the classes, with their exit codes."""
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
    """A container hands its errors to the client that way; exit code and log tail come along."""
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
    """An engine's own environment has none of Torpor's dependencies; every one of them is blocked here."""
    blocked = f"import sys\nfor name in {BLOCKED!r}:\n    sys.modules[name] = None\n"
    result = python(f"{blocked}import {module}\nprint({module}.__name__)")
    assert (result.stdout.strip(), result.stderr) == (module, "")


def test_a_value_costs_no_network_library() -> None:
    """Deployments, recipes and errors are read where there is nothing to talk to."""
    result = python(
        "import sys\nfrom torpor import Deployment, ImagePatch, TorporError, BuildPlan, Model\n"
        "print(sorted({'httpx', 'modal', 'structlog', 'psutil', 'pluggy'} & set(sys.modules)))"
    )
    assert (result.stdout.strip(), result.stderr) == ("[]", "")


def test_the_version_is_that_of_the_distribution() -> None:
    """A literal, because a container has no package metadata."""
    from importlib.metadata import version

    assert torpor.__version__ == version("torpor")


def _depth(line: str) -> int:
    """How far a line of the drawn tree is indented, in characters before its class."""
    return len(line) - len(line.lstrip(" │├└─"))
