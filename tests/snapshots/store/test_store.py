"""Where a snapshot can go, and which folders of an engine last."""

from __future__ import annotations

from pathlib import Path

import pytest

from torpor import Deployment, Model, SnapshotError
from torpor.runtime.boot import Boot
from torpor.snapshots.before_capture.lasting_folders import kept_folders
from torpor.snapshots.targets import check_target
from torpor.testing import StandIn


def test_dev_shm_is_refused_as_a_target() -> None:
    """Every sandbox has its own, and CRIU runs inside. The message says which tmpfs works."""
    with pytest.raises(SnapshotError, match=r"/dev/shm/kept lies in /dev/shm.*mount -t tmpfs"):
        check_target(Path("/dev/shm/kept"))


def test_folders_that_the_environment_names_for_code_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages may lie under /tmp if PYTHONPATH names them: the user knows that they are needed."""
    monkeypatch.setenv("PYTHONPATH", "/tmp/site::relative:/srv/more")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/tmp/lib")
    boot = Boot(Deployment(name="d", model=Model(path="/tmp/model", served_name="m"), plugins=(StandIn(),)))
    kept = kept_folders(boot.deployment, boot.recipe)
    assert {Path("/tmp/site"), Path("/srv/more"), Path("/tmp/lib"), Path("/tmp/model")} <= set(kept)
    assert all(folder.is_absolute() for folder in kept)
