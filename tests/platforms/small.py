"""A small deployment on the stand-in engine, and app files written on the spot, for the tests of this folder."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from typing_extensions import override

from torpor import BuildPlan, BuildStep, Deployment, ImagePatch, Model, Plugin, Preflight, hookimpl
from torpor.testing import Fault, StandIn
from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

NUMBERS = itertools.count()


@dataclass(frozen=True, kw_only=True, eq=False)
class Patch(Plugin):
    """Asks for what a test gives it."""

    plugin_name = "patch"
    base: str | None = "registry.example/engine:1"
    python_sources: tuple[str, ...] = ()
    volumes: tuple[tuple[str, str], ...] = ()
    steps: tuple[BuildStep, ...] = ()
    preflight: tuple[Preflight, ...] = ()

    @hookimpl
    @override
    def prepare_image(self, deployment: Deployment) -> ImagePatch:
        return ImagePatch(base=self.base, python_sources=self.python_sources, volumes=dict(self.volumes))

    @hookimpl
    @override
    def compile_kernels(self, deployment: Deployment) -> BuildPlan:
        return BuildPlan(steps=self.steps, preflight=self.preflight)


def a_deployment(
    patch: Patch | None = None,
    *,
    fault: Fault | None = None,
    gpu: str | None = None,
    snapshot: bool = True,
    cold_start_on_failed_wake: bool = True,
) -> Deployment:
    """A deployment whose engine starts within a second."""
    return Deployment(
        name="small",
        model=Model(path="/models/small"),
        plugins=(patch or Patch(), StandIn(fault=fault, fault_s=0.1)),
        gpu=gpu,
        port=unused_port(),
        snapshot=snapshot,
        cold_start_on_failed_wake=cold_start_on_failed_wake,
        startup_timeout_s=60.0,
        warmup_timeout_s=30.0,
        sleep_timeout_s=20.0,
        wake_timeout_s=20.0,
        stop_timeout_s=2.0,
    )


def load(folder: Path, source: str) -> ModuleType:
    """Import a module of its own from source, as Modal's command line imports an app file."""
    name = f"written_for_a_test_{next(NUMBERS)}"
    file = folder / f"{name}.py"
    file.write_text(source)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
