"""`torpor.snapshots.trial`: the error of a trial replica keeps the class of its cause."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from tests.snapshots.small_snapshot import small_snapshot
from torpor import (
    CanaryError,
    CriuError,
    EngineTimeoutError,
    GpuSnapshotError,
    NoRoomError,
    SnapshotError,
    TorporError,
    TrialWakeError,
)
from torpor.snapshots import trial
from torpor.snapshots.store.stored import inspect, read_identity

if TYPE_CHECKING:
    from pathlib import Path

    from torpor.runtime.boot import Boot
    from torpor.snapshots.criu.program import Criu

LIFE = trial.Life(threads={1000: 2}, locked_kb={1000: 0})


class Trial:
    """A trial whose replica, sandbox and boot are stand-ins.

    Attributes:
        at_restore: the error of the restore.
        at_wake: the error of the wake.
        life: threads and locked memory of the replica.
        ended: whether the replica was ended.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = small_snapshot(folder)
        self.at_restore: TorporError | None = None
        self.at_wake: TorporError | None = None
        self.life = LIFE
        self.ended = False
        monkeypatch.setattr(trial, "begin_sandbox", lambda *_: None)
        monkeypatch.setattr(trial, "restore_replica", self._restored)
        monkeypatch.setattr(trial, "life_of", lambda _: self.life)
        monkeypatch.setattr(trial, "Boot", lambda *_, **__: None)

    def _restored(self, *_: object, **__: object) -> SimpleNamespace:
        if self.at_restore is not None:
            raise self.at_restore
        return SimpleNamespace(sandbox=None, wake=self._wake, end=self._end)

    def _wake(self, *_: object) -> None:
        if self.at_wake is not None:
            raise self.at_wake

    def _end(self) -> None:
        self.ended = True

    def run(self) -> float:
        """Prove the snapshot."""
        deployment = SimpleNamespace(name="small")
        boot = cast("Boot", SimpleNamespace(deployment=deployment, lifecycle=None, recipe=None))
        criu = cast("Criu", None)
        return trial.prove(
            self.folder, inspect(self.folder), read_identity(self.folder), criu=criu, boot=boot, before=LIFE
        )


@pytest.fixture
def tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trial:
    """A trial that succeeds."""
    return Trial(tmp_path / "kept", monkeypatch)


def test_a_trial_ends_its_replica(tried: Trial) -> None:
    """And measures its time."""
    assert tried.run() >= 0
    assert tried.ended


@pytest.mark.parametrize("kind", [CriuError, GpuSnapshotError, NoRoomError, SnapshotError])
def test_a_failed_restore_keeps_its_class(tried: Trial, kind: type[SnapshotError]) -> None:
    """The message says that it was the trial, and what to do."""
    tried.at_restore = kind("CRIU gave up.")
    with pytest.raises(SnapshotError, match=r"could not be restored\. CRIU gave up\.[^$]*--no-prove") as caught:
        tried.run()
    assert type(caught.value) is kind
    assert caught.value.__cause__ is tried.at_restore


@pytest.mark.parametrize("error", [CanaryError("Another answer."), EngineTimeoutError("Late."), CriuError("Gone.")])
def test_a_failed_wake_has_a_class_of_its_own(tried: Trial, error: TorporError) -> None:
    """Whatever the cause: the platform then starts the engine cold."""
    tried.at_wake = error
    with pytest.raises(TrialWakeError, match="could not be woken") as caught:
        tried.run()
    assert caught.value.__cause__ is error
    assert tried.ended


def test_a_replica_that_differs_is_refused(tried: Trial) -> None:
    """It has fewer threads than the original; that is not a failed wake."""
    tried.life = trial.Life(threads={1000: 1}, locked_kb={1000: 0})
    with pytest.raises(SnapshotError, match=r"could not be verified\..*process 1000 has 1 threads, not 2") as caught:
        tried.run()
    assert type(caught.value) is SnapshotError
    assert tried.ended


def test_an_error_of_another_kind_becomes_one_of_the_snapshot(tried: Trial) -> None:
    """For instance the engine's, before its wake."""
    tried.at_restore = EngineTimeoutError("Late.")
    with pytest.raises(SnapshotError, match="Late") as caught:
        tried.run()
    assert type(caught.value) is SnapshotError
