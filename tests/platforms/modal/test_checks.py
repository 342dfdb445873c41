"""The import of a Modal app file refuses an unusable deployment before it builds an image or pays for a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import pytest
from typing_extensions import override

from tests.platforms.small import Patch, a_deployment, load
from torpor import ConfigurationError, Deployment, Finding, Model, Plugin
from torpor.app_file import load_app
from torpor.platforms.modal import cls_options
from torpor_sglang import SGLang

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HUB = Model(repo_id="Qwen/Qwen3-8B-FP8", revision="220b46e3b2180893580a4454f21f22d3ebb187d3")

APP = """
import modal
from torpor import Deployment, Model
from torpor.platforms.modal.server import SnapshotServer
from torpor_sglang import SGLang

deployment = Deployment(
    name="small",
    model=Model(repo_id="Qwen/Qwen3-8B-FP8", revision="220b46e3b2180893580a4454f21f22d3ebb187d3"),
    gpu="{gpu}",
    plugins=(SGLang(tensor_parallel={parallel}),),
)
app = modal.App(deployment.name)

class Server(SnapshotServer, deployment=deployment):
    pass
"""


@dataclass(frozen=True, kw_only=True)
class Warns(Plugin):
    """A plugin whose check returns a warning."""

    plugin_name: ClassVar[str] = "warns"

    @override
    def check(self, deployment: Deployment) -> Iterator[Finding]:
        yield Finding(level="warning", what="luck", seen=f"{deployment.name} was made on a Friday")


@pytest.mark.fault("an app whose engine takes other GPUs is deployed", area="Modal", outcome="refused")
@pytest.mark.parametrize(("gpu", "parallel", "says"), [("H100", 2, "takes 2 GPUs"), ("H100!:2", 1, "stay idle")])
def test_the_class_statement_refuses_a_deployment_that_cannot_work(
    tmp_path: Path, gpu: str, parallel: int, says: str
) -> None:
    """`cls_options`, for the decorator, refuses it too."""
    with pytest.raises(ConfigurationError, match=rf"Plugin 'sglang': GPUs: .*{says}"):
        load(tmp_path, APP.format(gpu=gpu, parallel=parallel))
    deployment = Deployment(name="small", model=HUB, gpu=gpu, plugins=(SGLang(tensor_parallel=parallel),))
    with pytest.raises(ConfigurationError, match=rf"Plugin 'sglang': GPUs: .*{says}"):
        cls_options(deployment)


@pytest.mark.slow
def test_the_import_of_the_app_file_ends_with_the_refusal(tmp_path: Path) -> None:
    """Plain Python imports the file as `modal deploy` does. The message is the last line."""
    file = tmp_path / "wrong.py"
    file.write_text(APP.format(gpu="H100", parallel=2))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, timeout=60, check=False, env=env)
    assert done.returncode == 1
    assert "Plugin 'sglang': GPUs: SGLang takes 2 GPUs" in done.stderr.splitlines()[-1]


def test_torpors_own_commands_import_the_app_without_a_refusal(tmp_path: Path) -> None:
    """They run the checks themselves: `torpor doctor` shows every finding, and `torpor up` may run on other GPUs."""
    file = tmp_path / "app.py"
    file.write_text(APP.format(gpu="RTX4090", parallel=2))
    assert load_app(str(file)).deployment.gpu == "RTX4090"


@pytest.mark.parametrize(
    ("gpu", "says"),
    [
        ("RTX4090", r"'RTX4090', which Modal does not have; it has T4, .*`torpor up`"),
        ("any", r"'any', which Modal does not have"),
        ("A10:5", r"'A10:5'; Modal gives a container at most 4 of A10"),
    ],
)
def test_a_gpu_that_modal_does_not_have_is_refused_for_modal(gpu: str, says: str) -> None:
    """`torpor up` accepts it, because the user's machine may have one."""
    with pytest.raises(ConfigurationError, match=says):
        cls_options(a_deployment(gpu=gpu))


@pytest.mark.parametrize("gpu", ["T4", "h100!", "B200+:8", "A10:4", "RTX-PRO-6000"])
def test_every_gpu_of_modal_is_accepted(gpu: str) -> None:
    """The names are those of Modal's guide."""
    assert cls_options(a_deployment(gpu=gpu))["gpu"] == gpu


def test_a_warning_is_logged_by_the_class_statement(capsys: pytest.CaptureFixture[str]) -> None:
    """The deployment goes on."""
    patch = a_deployment(Patch())
    deployment = Deployment(name="friday", model=patch.model, plugins=(*patch.plugins, Warns()))
    cls_options(deployment)
    written = capsys.readouterr()
    assert "friday was made on a Friday" in written.out + written.err
