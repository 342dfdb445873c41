"""`torpor.doctor.several_gpus`: what blocks a snapshot of several GPUs, by an app's values and on this machine."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import pytest

from torpor import ConfigurationError, Deployment, ImagePatch, Model, Plugin, hookimpl
from torpor._override import override
from torpor.doctor.several_gpus import found_here, known_of_image
from torpor.engine_plugins.nccl_needed import image_nccl, nccl_cure, needs_suspend, pip_nccl
from torpor.lifecycle import Lifecycle
from torpor.platforms.local.installed_nccl import check_nccl, installed_nccl
from torpor.testing import StandIn
from torpor_sglang import SGLang
from torpor_vllm import VLLM

if TYPE_CHECKING:
    from pathlib import Path

    from torpor.recipe import Recipe

HUB = Model(repo_id="a/b", revision="0" * 40)
LIBRARY = "int ncclGetVersion(int *version) { *version = %d; return %d; }\n"


@dataclass(frozen=True, kw_only=True)
class Packages(Plugin):
    """Has packages installed into the image, and sets PYTHONPATH."""

    plugin_name: ClassVar[str] = "packages"
    pip: tuple[str, ...] = ()
    path: str = ""

    @hookimpl
    @override
    def prepare_image(self, deployment: Deployment) -> ImagePatch:
        return ImagePatch(pip=self.pip, env={"PYTHONPATH": self.path} if self.path else {})


def deploy(*plugins: Plugin, gpu: str | None = "H100:2", gpu_snapshot: bool | None = None) -> Deployment:
    return Deployment(name="d", model=HUB, gpu=gpu, gpu_snapshot=gpu_snapshot, plugins=plugins)


def recipe_of(deployment: Deployment) -> Recipe:
    return Lifecycle(deployment).recipe()


def sglang(version: str, image: str = "engine/image:v1-cu130", **options: object) -> SGLang:
    return SGLang(version=version, image=image, tensor_parallel=2, **options)  # type: ignore[arg-type]


def engine_with(folder: Path, code: int, *, answer: int = 0) -> Packages:
    """A plugin that gives the engine's interpreter a torch, and an NCCL of this version beside it."""
    if shutil.which("cc") is None:
        pytest.skip("there is no compiler")
    place = folder / "nvidia" / "nccl" / "lib"
    place.mkdir(parents=True)
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text("raise RuntimeError('torch was imported')\n")
    (folder / "nccl.c").write_text(LIBRARY % (code, answer))
    library = place / "libnccl.so.2"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(folder / "nccl.c")], check=True, timeout=60)
    return Packages(path=str(folder))


@pytest.mark.fault("the engine's image has an NCCL that cannot suspend", area="several GPUs", outcome="refused")
@pytest.mark.parametrize(
    ("engine", "pip", "level", "seen"),
    [
        (sglang("0.5.16"), (), "error", "NCCL 2.28.9 is too old"),
        (sglang("0.5.18"), (), "", ""),
        (sglang("0.5.23"), (), "", ""),
        (VLLM(tensor_parallel=2), (), "", ""),
        (VLLM(version="0.32.0", tensor_parallel=2), (), "", ""),
        (sglang("0.5.16"), ("nvidia-nccl-cu13==2.30.7",), "", ""),
        (sglang("0.5.16"), ("nvidia_nccl_cu13>=2.29.7",), "", ""),
        (sglang("0.5.16"), ("nvidia-nccl-cu13",), "error", "NCCL 2.28.9 is too old"),
        (sglang("0.5.23"), ("nvidia-nccl-cu13==2.28.9",), "error", "NCCL 2.28.9 is too old"),
        (sglang("0.5.23", image="engine/image:v1-cu129"), (), "warning", "is for CUDA 12"),
        (sglang("0.5.16", image="engine/image:v1-cu129"), (), "error", "NCCL 2.28.9 is too old"),
        (sglang("0.5.23", image="engine/image:v1-cu129"), ("nvidia-nccl-cu12==2.30.7",), "", ""),
    ],
)
def test_the_images_nccl_is_known_from_values(engine: SGLang, pip: tuple[str, ...], level: str, seen: str) -> None:
    """By the engine's version, unless the recipe installs another one over it."""
    deployment = deploy(engine, Packages(pip=pip))
    found = [one for one in known_of_image(deployment, recipe_of(deployment), on_modal=True) if one.what == "NCCL"]
    assert [one.level for one in found] == ([level] if level else [])
    for one in found:
        assert seen in one.seen
        assert "Deployment.gpu_snapshot=False" in one.cure


def test_the_cure_names_newer_engines_and_the_package() -> None:
    """For CUDA 12 the other package; an engine without newer versions names none."""
    old = deploy(sglang("0.5.16"))
    cure = nccl_cure(old, recipe_of(old))
    assert "use sglang 0.5.18 or 0.5.23, which brings a newer one" in cure
    assert "nvidia-nccl-cu13==2.30.7" in cure
    assert "pip install --no-deps 'nvidia-nccl-cu13>=2.29.7'" in cure
    for_12 = deploy(sglang("0.5.16", image="engine/image:v1-cu129"))
    assert "nvidia-nccl-cu12==2.30.7" in nccl_cure(for_12, recipe_of(for_12))


@pytest.mark.parametrize(
    ("deployment", "needs"),
    [
        (deploy(sglang("0.5.16")), True),
        (deploy(sglang("0.5.16"), gpu_snapshot=False), False),
        (deploy(SGLang(), gpu="H100"), False),
        (deploy(StandIn()), False),
    ],
)
def test_only_a_snapshot_of_several_gpus_by_nccl_needs_a_suspend(deployment: Deployment, *, needs: bool) -> None:
    """An engine without NCCL, one GPU or no GPU snapshot: any NCCL will do."""
    assert needs_suspend(deployment) is needs
    recipe = recipe_of(deployment)
    assert bool(list(known_of_image(deployment, recipe, on_modal=False))) is needs
    if not needs:
        assert list(found_here(deployment, recipe)) == []
        check_nccl(deployment, recipe)


def test_an_engine_without_a_table_says_nothing() -> None:
    """A third party's plugin need not know."""
    recipe = recipe_of(deploy(StandIn()))
    assert image_nccl(deploy(StandIn()), recipe) is pip_nccl(recipe) is None


@pytest.mark.fault("several GPUs are to go into one snapshot on Modal", area="several GPUs", outcome="refused")
def test_modal_takes_one_gpu_in_a_snapshot() -> None:
    """By its own word, with the date; on a machine of one's own several are fine."""
    deployment = deploy(sglang("0.5.23"))
    recipe = recipe_of(deployment)
    (found,) = known_of_image(deployment, recipe, on_modal=True)
    assert (found.level, found.what) == ("error", "GPUs")
    assert "2 GPUs would go into one snapshot (H100:2)" in found.seen
    assert "as of November 2026" in found.seen
    assert "Deployment.snapshot=False" in found.cure
    assert list(known_of_image(deployment, recipe, on_modal=False)) == []


def test_a_machine_of_ones_own_is_only_warned_by_the_table() -> None:
    """Its interpreter may have another NCCL than the wheels pin."""
    deployment = deploy(sglang("0.5.16"))
    (found,) = known_of_image(deployment, recipe_of(deployment), on_modal=False)
    assert found.level == "warning"
    assert "`torpor doctor APP` reads it there" in found.seen


@pytest.mark.fault("the engine here has an NCCL that cannot suspend", area="several GPUs", outcome="refused")
@pytest.mark.parametrize(("code", "level"), [(22809, "error"), (22907, "ok"), (23102, "ok")])
def test_the_engines_interpreter_is_asked_for_its_nccl(tmp_path: Path, code: int, level: str) -> None:
    """The library beside torch, without an import of torch; a start is refused before anything is built."""
    deployment = deploy(sglang("0.5.23", python=sys.executable), engine_with(tmp_path, code))
    recipe = recipe_of(deployment)
    (found,) = found_here(deployment, recipe)
    assert (found.level, found.what) == (level, "NCCL")
    assert str(tmp_path / "nvidia" / "nccl" / "lib" / "libnccl.so.2") in found.seen
    if level == "ok":
        check_nccl(deployment, recipe)
        return
    with pytest.raises(ConfigurationError, match=r"Deployment 'd' shares 2 GPUs.* NCCL 2\.28\.9 is too old.*0\.5\.23"):
        check_nccl(deployment, recipe)


def test_an_interpreter_without_torch_is_told(tmp_path: Path) -> None:
    """Without site-packages there is none."""
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    deployment = deploy(sglang("0.5.23"))
    assert installed_nccl(str(bare), recipe_of(deployment)).against == "torch is not installed"


@pytest.mark.parametrize(
    ("python", "against"),
    [
        ("/no/such/python", "/no/such/python cannot be asked"),
        ("/bin/false", "/bin/false ended with code 1"),
        ("/bin/true", "/bin/true cannot be asked"),
    ],
)
def test_an_nccl_that_cannot_be_read_is_unknown(python: str, against: str) -> None:
    """A warning, and no refusal: the engine's launcher looks at what it has loaded."""
    deployment = deploy(sglang("0.5.23", python=python))
    recipe = recipe_of(deployment)
    (found,) = found_here(deployment, recipe)
    assert (found.level, found.what) == ("warning", "NCCL")
    assert f"unknown: {against}" in found.seen
    check_nccl(deployment, recipe)


def test_a_library_that_does_not_answer_is_unknown(tmp_path: Path) -> None:
    """Its own code is shown."""
    deployment = deploy(sglang("0.5.23"), engine_with(tmp_path, 23007, answer=3))
    seen = installed_nccl(sys.executable, recipe_of(deployment))
    assert (seen.version, seen.file) == (None, "")
    assert seen.against.endswith("libnccl.so.2 gave 3")
