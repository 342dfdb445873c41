"""`torpor up` names missing packages. A damaged or hanging package manager does not stop a start."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.platforms.small import a_deployment
from torpor import ImagePatch
from torpor.platforms.local import requirements
from torpor.recipe import Recipe

if TYPE_CHECKING:
    from pathlib import Path

RECIPE = Recipe(image=ImagePatch(apt=("numactl", "git")))


@pytest.fixture
def dpkg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of dpkg, the only program on the PATH."""
    program = tmp_path / "dpkg-query"
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(requirements, "_QUERY_TIMEOUT_S", 0.3)
    return program


@pytest.mark.slow
@pytest.mark.fault("dpkg hangs, cannot be run, or prints without end", area="commands", outcome="held")
@pytest.mark.parametrize(
    "text",
    ["#!/bin/sh\nexec /bin/sleep 60\n", "#!/no/such/shell\n", "#!/bin/sh\nexec /usr/bin/yes\n", "\x7fELFno"],
    ids=repr,
)
def test_a_dpkg_that_does_not_answer_is_only_a_note(dpkg: Path, text: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Missing packages are only a note: the start goes on and does not ask again."""
    dpkg.write_text(text)
    dpkg.chmod(0o755)
    assert requirements.missing_packages(a_deployment(), RECIPE) == {}
    out, err = capfd.readouterr()
    assert (out + err).count("debian_packages_unknown") == 1


def test_a_package_that_dpkg_does_not_know_is_named(dpkg: Path) -> None:
    """Packages that it knows are not named."""
    dpkg.write_text('#!/bin/sh\n[ "$2" = git ]\n')
    dpkg.chmod(0o755)
    assert requirements.missing_packages(a_deployment(), RECIPE) == {"apt:numactl": "?"}
