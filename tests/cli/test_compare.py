"""`torpor snapshot compare` and `torpor up --snapshot`: what is timed is what was just made, and what was asked for is done."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.command_line import torpor
from tests.snapshots.small_snapshot import small_snapshot
from torpor import EngineTimeoutError, SnapshotError
from torpor.cli import compare

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Replace `torpor snapshot create` by another program."""

    def program(code: str) -> None:
        monkeypatch.setattr(compare, "command", lambda *words: [sys.executable, "-c", code, *words])

    return program


@pytest.mark.fault("snapshot create ends well and leaves the old snapshot", area="compare", outcome="refused")
def test_an_old_snapshot_is_never_timed(tmp_path: Path, says: Callable[[str], None]) -> None:
    """Whatever the command's exit code."""
    folder = small_snapshot(tmp_path / "kept")
    says("pass")
    with pytest.raises(SnapshotError, match="still holds the one from before, though the command ended with code 0"):
        compare.created("app.py", folder, timeout_s=30.0)


@pytest.mark.fault("snapshot create ends well and makes nothing", area="compare", outcome="refused")
def test_a_create_that_captures_nothing_is_an_error(tmp_path: Path, says: Callable[[str], None]) -> None:
    """There is no manifest, or one that cannot be read."""
    says("pass")
    with pytest.raises(SnapshotError, match="holds none, though"):
        compare.created("app.py", tmp_path / "kept", timeout_s=30.0)


@pytest.mark.fault("snapshot create fails", area="compare", outcome="refused")
def test_a_create_that_fails_is_reported_with_its_output(tmp_path: Path, says: Callable[[str], None]) -> None:
    """The old snapshot stays and is not timed."""
    folder = small_snapshot(tmp_path / "kept")
    says("import sys; sys.exit('torpor: no room')")
    with pytest.raises(SnapshotError, match="ended with code 1") as caught:
        compare.created("app.py", folder, timeout_s=30.0)
    assert "no room" in "".join(caught.value.__notes__)


@pytest.mark.fault("snapshot create hangs", area="compare", outcome="refused")
def test_a_create_that_hangs_is_an_error(tmp_path: Path, says: Callable[[str], None]) -> None:
    """The command is ended."""
    says("import time; time.sleep(60)")
    began = time.monotonic()
    with pytest.raises(EngineTimeoutError, match=r"no snapshot of app\.py after 0\.2 s"):
        compare.created("app.py", tmp_path / "kept", timeout_s=0.2)
    assert time.monotonic() - began < 10.0


def test_the_new_snapshot_is_timed(tmp_path: Path, says: Callable[[str], None]) -> None:
    """It replaces the old one."""
    old, new = small_snapshot(tmp_path / "kept"), small_snapshot(tmp_path / "new", text="another answer")
    says(f"import shutil; shutil.rmtree({str(old)!r}); shutil.move({str(new)!r}, {str(old)!r})")
    assert compare.created("app.py", old, timeout_s=30.0).canary.answer["text"] == "another answer"


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["none", "standby"])
def test_a_snapshot_with_another_backend_than_criu_is_refused(tmp_path: Path, backend: str) -> None:
    """Before the app is imported; the message says which option to leave out."""
    ran = torpor("up", "app.py", "--snapshot", str(tmp_path / "kept"), "--backend", backend)
    assert ran.returncode == 2
    assert f"needs the backend criu, and --backend is {backend}. Leave one of the two out." in " ".join(
        ran.stderr.split()
    )


def test_a_snapshot_with_the_backend_criu_is_accepted(tmp_path: Path) -> None:
    """The app is imported next."""
    ran = torpor("up", "none.py", "--snapshot", str(tmp_path / "kept"), "--backend", "criu")
    assert ran.returncode == 2
    assert "none.py" in ran.stderr
    assert "Leave one" not in ran.stderr
