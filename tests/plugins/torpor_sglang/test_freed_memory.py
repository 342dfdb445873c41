"""A sleep that frees nothing on the GPU is refused, by what the driver tells of this process, or of the whole card."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from torpor import Deployment, Model
from torpor.lifecycle import Lifecycle
from torpor_sglang import SGLang
from torpor_sglang.own_memory import OwnMemory, own_memory, own_pids
from torpor_sglang.patches.freed_memory import FreedMemory

UNKNOWN = OwnMemory(None, "the driver lists the processes 7, and this one is 42")


def released(*measured: tuple[int, OwnMemory]) -> list[str]:
    """One release with the card's free bytes and this process's own before and after it; what was told."""
    told: list[str] = []
    free, own = iter([one for one, _ in measured]), iter([one for _, one in measured])
    memory = FreedMemory(
        free=lambda: next(free), own=lambda: next(own), rank=lambda: "rank 0 (GPU 0)", tell=told.append
    )
    memory.note()
    memory.compare()
    return told


def test_what_a_sleep_freed_is_told_by_the_figures_of_its_process() -> None:
    """In the engine's log, for each rank, whatever another process took of the card in that moment."""
    for card in (61_500_000_000, 1_000):
        told = released((1_000_000_000, OwnMemory(61_000_000_000)), (card, OwnMemory(500_000_000)))
        assert told == ["rank 0 (GPU 0): the sleep freed 60.50 GB, by the driver's figures of this process"]


def test_without_them_the_card_counts_and_the_log_says_why() -> None:
    """One of the two figures is not enough."""
    for own in ((UNKNOWN, UNKNOWN), (OwnMemory(5), UNKNOWN)):
        told = released((1_000_000_000, own[0]), (61_500_000_000, own[1]))
        assert told == [
            "rank 0 (GPU 0): the sleep freed 60.50 GB, of the whole card: the driver lists the processes 7, and this one is 42"
        ]


@pytest.mark.parametrize("after", [5_000, 6_000])
def test_a_sleep_that_frees_nothing_is_an_error_though_another_process_freed_memory(after: int) -> None:
    """It names the rank and what the process had and has."""
    with pytest.raises(
        RuntimeError, match=rf"rank 0 .* freed nothing .*it had 5000 bytes before it, and has {after} now"
    ):
        released((10, OwnMemory(5_000)), (90_000, OwnMemory(after)))


@pytest.mark.parametrize("after", [5_000, 4_000])
def test_without_own_figures_the_error_names_both_causes(after: int) -> None:
    """The saver, and another process that took memory."""
    with pytest.raises(RuntimeError, match=rf"5000 bytes were free .* {after} are now.* no other process took memory"):
        released((5_000, UNKNOWN), (after, UNKNOWN))


class Nvml:
    """A driver that lists these processes, each with its pid and bytes."""

    NVMLError: type[Exception] = RuntimeError

    def __init__(self, listed: dict[int, int | None] | None) -> None:
        self.listed, self.open = listed, 0

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's name
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802 - NVML's name
        self.open -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> object:  # noqa: N802 - NVML's name
        if self.listed is None:
            raise RuntimeError("Not Found")
        return uuid

    def nvmlDeviceGetComputeRunningProcesses_v3(self, device: object) -> list[SimpleNamespace]:  # noqa: N802 - NVML's name
        assert device == "GPU-1"
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in (self.listed or {}).items()]


@pytest.mark.parametrize(
    ("listed", "used", "why"),
    [
        ({42: 5_000, 7: 1}, 5_000, ""),
        ({7: 5_000}, None, "the driver lists the processes 7, and this one is 3, 42"),
        ({}, None, "the driver lists the processes none"),
        ({42: None}, None, "does not tell what each process uses"),
        ({42: 1, 3: 1}, None, "the driver lists the processes 42, 3"),
        (None, None, "NVML failed: Not Found"),
    ],
)
def test_the_driver_is_asked_for_this_process_alone(
    listed: dict[int, int | None] | None, used: int | None, why: str
) -> None:
    """By any of its pids. NVML is shut down again, whatever it answers."""
    nvml = Nvml(listed)
    found = own_memory("GPU-1", nvml=nvml, pids=(3, 42))
    assert found.used == used
    assert why in found.why
    assert nvml.open == 0


def test_a_driver_that_fails_at_its_end_and_an_old_library_are_no_error() -> None:
    """There is a figure, or a reason; the sleep goes on."""

    class Old(Nvml):
        def nvmlDeviceGetComputeRunningProcesses_v3(self, device: object) -> list[SimpleNamespace]:  # noqa: N802 - as above
            raise AttributeError("no _v3")

        def nvmlShutdown(self) -> None:  # noqa: N802 - NVML's name
            raise RuntimeError("Uninitialized")

    assert own_memory("GPU-1", nvml=Old({}), pids=(3,)) == OwnMemory(None, "NVML failed: no _v3")


def test_without_a_driver_there_is_a_reason() -> None:
    """As on a machine without a GPU."""
    found = own_memory("GPU-1")
    assert found.used is not None or found.why.startswith("NVML ")


def test_a_process_knows_its_pids() -> None:
    """Its own is among them."""
    assert os.getpid() in own_pids()


@pytest.mark.parametrize(
    ("options", "measured"), [({}, True), ({"memory_saver": False}, False), ({"device": "cpu"}, False)]
)
def test_the_plugin_says_where_a_sleep_has_to_free_memory(options: dict[str, object], measured: bool) -> None:
    """On a GPU with the memory saver; on a CPU there is nothing to free."""
    plugin = SGLang(**options)  # type: ignore[arg-type] # options of several types
    made = Deployment(
        name="d", model=Model(path="/m"), gpu=None if options.get("device") else "H100!", plugins=(plugin,)
    )
    assert ("TORPOR_SLEEP_FREES" in Lifecycle(made).recipe().env) is measured
