"""`torpor.doctor.app`: each problem in a deployment's values is found on its own."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest

from torpor import BuildPlan, BuildStep, Deployment, ImagePatch, Model, Plugin, hookimpl
from torpor._override import override
from torpor.doctor.app import cautions
from torpor.lifecycle import Lifecycle
from torpor.testing import StandIn

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torpor.values.findings import Finding

REVISION = "0123456789abcdef0123456789abcdef01234567"
STEP = BuildStep(name="compile", argv=("true",), order=20, timeout_s=10.0, gpu=True)


@dataclass(frozen=True, kw_only=True, eq=False)  # a patch has no hash
class Asks(Plugin):
    """Asks for the patch and the steps of a test."""

    plugin_name = "asks"
    patch: ImagePatch = field(default_factory=ImagePatch)
    steps: tuple[BuildStep, ...] = ()

    @hookimpl
    @override
    def prepare_image(self, deployment: Deployment) -> ImagePatch:
        return self.patch

    @hookimpl
    @override
    def compile_kernels(self, deployment: Deployment) -> BuildPlan:
        return BuildPlan(steps=self.steps)


SOUND = Deployment(
    name="d",
    model=Model(repo_id="a/b", revision=REVISION),
    gpu="H100",
    plugins=(Asks(patch=ImagePatch(volumes={"/vol/hub": "hub"}), steps=(STEP,)), StandIn()),
)


def found(deployment: Deployment) -> list[Finding]:
    """The problems in it."""
    return list(cautions(deployment, Lifecycle(deployment).recipe()))


def asking(*steps: BuildStep, env: Mapping[str, str] | None = None, **patch: object) -> Deployment:
    """The sound deployment with another patch."""
    values = {"volumes": {"/vol/hub": "hub"}, "env": dict(env or {}), **patch}
    asks = Asks(patch=ImagePatch(**values), steps=steps or (STEP,))  # type: ignore[arg-type]
    return replace(SOUND, plugins=(asks, SOUND.plugins[1]))


def test_a_sound_deployment_has_no_problems() -> None:
    """One GPU, a pinned model, a volume, kernels compiled in the build."""
    assert found(SOUND) == []


@pytest.mark.parametrize(
    ("deployment", "level", "what", "seen"),
    [
        (replace(SOUND, gpu="H100:2", gpu_snapshot=True), "", "", ""),
        (
            replace(SOUND, startup_timeout_s=60),
            "warning",
            "start-up",
            "is 60 s; a start like this one took up to 128 s",
        ),
        (
            asking(replace(STEP, gpu=False), volumes={"/vol/hub": "hub"}),
            "",
            "",
            "",
        ),
        (
            replace(asking(replace(STEP, gpu=False)), startup_timeout_s=200),
            "warning",
            "start-up",
            "up to 331 s on one Hopper card (without kernels compiled in the build)",
        ),
        (asking(base="engine/image"), "warning", "image", "names no tag"),
        (asking(base="registry:5000/engine/image:latest"), "warning", "image", "names the tag latest, which moves"),
        (asking(base="registry:5000/engine/image:v1"), "", "", ""),
        (asking(base="engine/image@sha256:0123"), "", "", ""),
        (asking(pip=("numpy>=2",)), "warning", "packages", "no exact version: numpy>=2"),
        (asking(pip=("numpy==2.1",)), "", "", ""),
        (
            asking(env={"TRITON_CACHE_DIR": "/root/.triton"}),
            "warning",
            "cache",
            "TRITON_CACHE_DIR=/root/.triton lies neither on a volume",
        ),
        (asking(env={"TRITON_CACHE_DIR": "/vol/hub/triton", "HF_HOME": "/opt/torpor/hf"}), "", "", ""),
        (replace(SOUND, plugins=(SOUND.plugins[1],), startup_timeout_s=600), "warning", "weights", "keeps a/b"),
        (asking(env={"HF_TOKEN": "x"}), "error", "secret", "HF_TOKEN is in the serving environment (plugin asks)"),
        (
            replace(asking(env={"HF_TOKEN": "x"}), secrets_in_snapshot="warn"),
            "warning",
            "secret",
            "and in every snapshot",
        ),
        (
            asking(env={"MIRROR": "https://u:p@h.test"}),
            "error",
            "secret",
            "(plugin asks) and holds a URL with a password",
        ),
        (asking(engine_args=("--hub-token", "x")), "error", "secret", "--hub-token is among the engine's arguments"),
        (
            asking(replace(STEP, env={"HF_TOKEN": "x"}), volumes={"/vol/hub": "hub"}),
            "warning",
            "secret",
            "HF_TOKEN is written out in build step",
        ),
    ],
)
def test_each_problem_is_found_alone(deployment: Deployment, level: str, what: str, seen: str) -> None:
    """With what was seen and what to do; an empty level means that nothing may be found."""
    findings = found(deployment)
    assert [(finding.level, finding.what) for finding in findings] == ([(level, what)] if level else [])
    for finding in findings:
        assert seen in finding.seen
        assert finding.cure


def test_a_switched_off_version_check_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engine versions that nobody has tested may then start."""
    monkeypatch.setenv("TORPOR_ANY_ENGINE", "1")
    assert [finding.what for finding in found(SOUND)] == ["engine"]
