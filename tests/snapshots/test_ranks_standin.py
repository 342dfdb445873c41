"""An engine with several ranks through CRIU, by the stand-in: every rank comes back, and one that differs is named."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

from tests.snapshots.conftest import MODES, exists, refuse, wait_for
from tests.snapshots.kept import chat, engines_on
from torpor.platforms.local.criu_backend import CriuBackend
from torpor.platforms.local.replicas import Replicas
from torpor.platforms.local.snapshots import create_snapshot, restore_snapshot
from torpor.snapshots.criu.program import PREFIX_VARIABLE
from torpor.testing.ports import unused_port
from torpor.testing.standin.ranks import RankFault

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torpor.runtime.supervision import ReplicaEvent
    from torpor.snapshots.criu.program import Criu

pytestmark = [pytest.mark.criu, pytest.mark.slow]

RANKS = 3
NAMED = re.compile("rank 2 has the sum others and had as loaded")
APP = """
from tests.ranked_standin import ranked_deployment
from torpor.testing.standin.ranks import RankFault

deployment = ranked_deployment({dialect!r}, port={port}, folder={folder!r}, ranks={ranks}, fault={fault}, fault_rank=2)
"""


class SnapshotOf(Protocol):
    """Takes a snapshot of three ranks; `fault` is what the last of them does wrong."""

    def __call__(self, dialect: str, port: int, fault: RankFault | None = None) -> Path:
        """Return its folder."""


@pytest.fixture
def snapshot_of(criu: Criu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SnapshotOf:
    """See `SnapshotOf`."""
    if "root" in criu.program.parts:
        monkeypatch.setenv(PREFIX_VARIABLE, str(criu.program.parents[3]))
    if reasons := CriuBackend(mode=MODES[0]).available():
        refuse("; ".join(reasons))

    def take(dialect: str, port: int, fault: RankFault | None = None) -> Path:
        app = tmp_path / "app.py"
        told = f"RankFault.{fault.name}" if fault else None
        app.write_text(APP.format(dialect=dialect, port=port, folder=str(tmp_path), ranks=RANKS, fault=told))
        create_snapshot(app, tmp_path / "kept", mode=MODES[0], prove=fault is None)
        return tmp_path / "kept"

    return take


@pytest.mark.fault(
    "one of an engine's ranks is killed after a restore, and nothing watches the engine",
    area="ranks",
    outcome="refused",
)
@pytest.mark.ordinary_user
def test_ranks_come_back_together_and_end_together(snapshot_of: SnapshotOf) -> None:
    """Every rank answers after a restore. When one has died, the next request ends the engine, and its log names the rank."""
    port, gateway = unused_port(), unused_port()
    replicas = restore_snapshot(snapshot_of("sglang", port), port=gateway)
    try:
        assert chat(gateway) == chat(gateway)
        engine = replicas.serving[0].boot.running_engine
        ranks = ranks_of(replicas.serving[0].replica.sandbox.host_pids().values())
        assert sorted(ranks) == [f"standin:rank{rank}" for rank in range(RANKS)]
        os.kill(ranks["standin:rank1"], signal.SIGKILL)
        with contextlib.suppress(AssertionError, OSError, http.client.HTTPException):
            chat(gateway)
        assert engine.wait(20.0) is not None
        assert any("RankError: rank 1 has ended" in line for line in engine.log_tail())
        assert wait_for(lambda: not any(exists(pid) for pid in ranks.values()))
    finally:
        replicas.stop()
    assert engines_on(port) == []


@pytest.mark.fault("a rank comes back with other weights from a snapshot", area="ranks", outcome="refused")
def test_a_restored_rank_with_other_weights_is_named(snapshot_of: SnapshotOf) -> None:
    """The guard lets no request in. Two restores fail by name, then the engine starts cold, and nothing else is left."""
    port = unused_port()
    events: list[ReplicaEvent] = []
    replicas = Replicas(snapshot_of("vllm", port, RankFault.OTHER_WEIGHTS), port=unused_port(), on_event=events.append)
    replicas.start()
    try:
        failed = [event.error for event in events if event.event == "wake_failed"]
        assert len(failed) == 2
        assert all(NAMED.search(error) for error in failed)
        assert [serving.boot.kind for serving in replicas.serving] == ["cold"]
    finally:
        replicas.stop()
    assert wait_for(lambda: engines_on(port) == [])


def ranks_of(pids: Iterable[int]) -> dict[str, int]:
    """The ranks among some processes, by name."""
    names = {Path(f"/proc/{pid}/comm").read_text().strip(): pid for pid in pids}
    return {name: pid for name, pid in names.items() if name.startswith("standin:rank")}
