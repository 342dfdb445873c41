"""`torpor doctor` asks Modal for the secrets of build steps, with the real client and a control plane on loopback."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.modal_plane import ModalPlane

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

APP = """
from torpor import BuildPlan, BuildStep, Deployment, Model, Plugin, hookimpl
from torpor.testing import StandIn
from dataclasses import dataclass

@dataclass(frozen=True, kw_only=True)
class Wants(Plugin):
    plugin_name = "wants"

    @hookimpl
    def compile_kernels(self, deployment):
        step = BuildStep(name="fetch", argv=("true",), order=10, timeout_s=10.0, secrets=("hub-token", "other"))
        return BuildPlan(steps=(step,))

deployment = Deployment(name="d", model=Model(path="/", served_name="m"), plugins=(Wants(), StandIn()))
"""


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ModalPlane]:
    """A control plane with one secret."""
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "app.py").write_text(APP)
    with ModalPlane(home) as started:
        started.add_secret("hub-token")
        yield started


def secrets(plane: ModalPlane, folder: Path, **env: str) -> dict[str, str]:
    """The doctor's findings about them."""
    done = plane.python("-m", "torpor.cli", "doctor", "app.py", "--json", cwd=folder, env=env)
    (found,) = (one for one in json.loads(done.output)["findings"] if one["what"] == "secrets")
    finding: dict[str, str] = found
    return finding


def test_a_missing_secret_is_an_error_with_the_command(plane: ModalPlane, tmp_path: Path) -> None:
    """Once the secret exists there is no finding."""
    assert secrets(plane, tmp_path) == {
        "level": "error",
        "what": "secrets",
        "seen": "Modal has no secret other, which build steps need",
        "cure": "modal secret create other KEY=VALUE",
        "plugin": "",
    }
    plane.add_secret("other")
    found = secrets(plane, tmp_path)
    assert (found["level"], found["seen"]) == ("ok", "Modal has hub-token, other")


def test_without_credentials_modal_is_not_asked(plane: ModalPlane, tmp_path: Path) -> None:
    """The finding says so and is no warning."""
    found = secrets(plane, tmp_path, MODAL_TOKEN_ID="", MODAL_TOKEN_SECRET="")
    assert (found["level"], found["seen"]) == (
        "ok",
        "build steps need hub-token, other; nobody is logged in to Modal here, so this was not checked",
    )


def test_a_plane_that_does_not_answer_is_a_warning(plane: ModalPlane, tmp_path: Path) -> None:
    """It gives the reason, and the other checks run."""
    found = secrets(plane, tmp_path, MODAL_SERVER_URL="http://127.0.0.1:1")
    assert found["level"] == "warning"
    assert "Modal cannot be reached" in found["seen"] or "did not say within" in found["seen"]
