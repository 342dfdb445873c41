"""The shell line that installs Torpor's requirements in an engine's image, run by a real pip on wheels built by the test."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING

import pytest

from torpor.platforms.modal.container_image import CONTAINER_REQUIREMENTS, requirements_line
from torpor.recipe import IMAGE_ROOT

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

NAMES = ("pluggy", "httpx", "structlog", "typing_extensions", "psutil")


def make_wheel(folder: Path, name: str, version: str, *needs: str) -> None:
    """A wheel without code: enough for pip to resolve, install and list it."""
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {need}\n" for need in needs)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", metadata)
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", f"{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")


class EngineImage:
    """A virtual environment in place of an engine's image, and an index of wheels in place of PyPI."""

    def __init__(self, folder: Path, bare: Path) -> None:
        self.folder = folder
        self.wheels = folder / "wheels"
        self.wheels.mkdir()
        shutil.copytree(bare, folder / "venv", symlinks=True)
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))} | {
            "PATH": f"{folder / 'venv' / 'bin'}:{os.environ['PATH']}",
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.wheels),
        }
        for name in NAMES:
            make_wheel(self.wheels, name, "99.0")

    def shell(self, line: str) -> tuple[int, str]:
        """Run a line as a Dockerfile's RUN does."""
        done = subprocess.run(["sh", "-c", line], env=self.env, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    def install(self, name: str, version: str, *needs: str) -> None:
        """Put a package into the image."""
        make_wheel(self.wheels, name, version, *needs)
        code, output = self.shell(f"python3 -m pip install -q {name}=={version}")
        assert code == 0, output

    def versions(self) -> dict[str, str]:
        """The installed versions."""
        _, output = self.shell("python3 -m pip --disable-pip-version-check list --format=freeze")
        pairs = (line.split("==") for line in output.splitlines())
        return {name.replace("-", "_"): version for name, version in pairs if name not in ("pip", "setuptools")}

    def add_torpors_needs(self) -> tuple[int, str]:
        """Run the line of the image build, with the image's folder moved under this one."""
        return self.shell(requirements_line().replace(IMAGE_ROOT, str(self.folder / "opt")))


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with nothing but pip. `python -m pip` works in a copy of it, too."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    return folder


@pytest.fixture
def engine(tmp_path: Path, bare: Path) -> EngineImage:
    """An engine's image of the test's own."""
    return EngineImage(tmp_path, bare)


def test_only_missing_packages_are_installed(engine: EngineImage) -> None:
    """The engine was tested with its own versions. Newer ones in the index do not replace them."""
    engine.install("httpx", "0.28.1")
    engine.install("typing_extensions", "4.14.0")
    engine.install("huggingface_hub", "0.36.0")
    make_wheel(engine.wheels, "huggingface_hub", "2.4.0")
    before = engine.versions()
    code, output = engine.add_torpors_needs()
    assert code == 0, output
    after = engine.versions()
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"pluggy", "structlog", "psutil"}


@pytest.mark.parametrize("needs", [(), ("httpx<0.28",)])
def test_a_clash_fails_the_build_and_changes_nothing(engine: EngineImage, needs: tuple[str, ...]) -> None:
    """A failed build is better than an engine with a version that it was never tested with."""
    engine.install("httpx", "0.27.2")
    engine.install("engine", "1.0", *needs)
    before = engine.versions()
    code, output = engine.add_torpors_needs()
    assert code != 0
    assert "httpx==0.27.2" in output.replace(" ", "")
    assert engine.versions() == before


def test_the_line_names_every_requirement() -> None:
    """Other tests compare the constant with the project's dependencies."""
    assert all(requirement in requirements_line() for requirement in CONTAINER_REQUIREMENTS)
