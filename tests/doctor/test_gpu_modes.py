"""`torpor.doctor.gpu_modes`: divided GPUs, a shared CUDA context, and drivers that cannot move a replica."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from torpor.doctor.gpu_modes import mode_findings
from torpor.snapshots.gpu.driver import Driver, GpuUse
from torpor.snapshots.store.gpu_state import Gpu

if TYPE_CHECKING:
    from pathlib import Path


def machine(version: str, gpus: int, *, mig: bool = False) -> Driver:
    cards = [Gpu(uuid=f"GPU-{at}", name="NVIDIA H200", memory_mib=1000, compute_capability="9.0") for at in range(gpus)]
    return Driver(version=version, uses=tuple(GpuUse(gpu=card, used_bytes=0, free_bytes=0, mig=mig) for card in cards))


@pytest.mark.parametrize(
    ("version", "gpus", "told"),
    [
        ("580.159.04", 2, False),
        ("575.10", 1, False),
        ("575.10", 2, True),
        ("570.1", 8, True),
        ("535.1", 2, False),
        ("", 0, False),
    ],
)
def test_a_driver_that_cannot_move_a_replica_is_told_on_a_machine_of_several_gpus(
    tmp_path: Path, version: str, gpus: int, *, told: bool
) -> None:
    """No problem by itself. A driver that cannot checkpoint at all is another finding's."""
    found = list(mode_findings(machine(version, gpus), "error", proc=tmp_path))
    assert [(one.level, one.what) for one in found] == ([("ok", "other GPUs")] if told else [])
    for one in found:
        assert "580 or newer" in one.cure


@pytest.mark.fault("a GPU is in MIG mode", area="GPUs", outcome="refused")
def test_divided_gpus_are_named(tmp_path: Path) -> None:
    """All of them."""
    (found,) = mode_findings(machine("580.1", 2, mig=True), "error", proc=tmp_path)
    assert (found.level, found.what) == ("error", "MIG")
    assert found.seen.startswith("GPU-0, GPU-1 are in MIG mode")
    (found,) = mode_findings(machine("580.1", 1, mig=True), "warning", proc=tmp_path)
    assert found.level == "warning"


@pytest.mark.fault("the Multi-Process Service runs", area="GPUs", outcome="refused")
def test_the_multi_process_service_is_named_with_its_pid(tmp_path: Path) -> None:
    """By the name that the kernel keeps; other processes and those that end meanwhile do not matter."""
    for pid, name in (("17", "nvidia-cuda-mps"), ("18", "python3"), ("self", "nvidia-cuda-mps")):
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "comm").write_text(f"{name}\n")
    (tmp_path / "19").mkdir()
    (found,) = mode_findings(machine("580.1", 1), "error", proc=tmp_path)
    assert (found.level, found.what) == ("error", "MPS")
    assert "(pid 17)" in found.seen
