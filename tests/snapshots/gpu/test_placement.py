"""`torpor.snapshots.gpu.placement` and `choice`: which GPUs each replica gets, and what the driver is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.snapshots.nvidia import UUIDS
from torpor import ConfigurationError
from torpor.snapshots.gpu.choice import named_gpus, split_names
from torpor.snapshots.gpu.driver import Driver, GpuUse
from torpor.snapshots.gpu.placement import GpuMap, Placement, placed
from torpor.snapshots.store.gpu_state import Gpu, uuid_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

GIB = 1 << 30
H200 = Gpu(uuid=UUIDS[0], name="NVIDIA H200", memory_mib=143771, compute_capability="9.0")
ELSEWHERE = tuple(f"GPU-{digit * 8}-aaaa-bbbb-cccc-dddddddddddd" for digit in "12345678")


def cards(*uuids: str, gpu: Gpu = H200) -> list[Gpu]:
    return [gpu._replace(uuid=uuid) for uuid in uuids]


def machine(gpus: Sequence[Gpu], free: Sequence[int], *, version: str = "580.159.04") -> Driver:
    uses = (GpuUse(gpu=gpu, used_bytes=0, free_bytes=size) for gpu, size in zip(gpus, free, strict=True))
    return Driver(version=version, uses=tuple(uses))


def numbers(found: Placement) -> list[list[int]]:
    """The GPUs of each replica."""
    assert found.reasons == ()
    return [[gpu.number for gpu in one.gpus] for one in found.maps]


def test_one_replica_goes_to_each_gpu_of_a_machine() -> None:
    """First to its own GPU, where nothing moves; then each to another one, and only then two to one."""
    here = cards(*UUIDS[:4])
    driver = machine(here, [100 * GIB] * 4)
    found = placed(here, {UUIDS[1]: 40 * GIB}, driver, replicas=4)
    assert numbers(found) == [[1], [0], [2], [3]]
    assert [bool(one.pairs) for one in found.maps] == [False, True, True, True]
    assert numbers(placed(here, {UUIDS[1]: 40 * GIB}, driver, replicas=6))[4:] == [[1], [0]]


def test_the_most_free_gpu_comes_first() -> None:
    """By whole GiB, so that a few MiB do not move a replica away from its own GPU."""
    here = cards(*UUIDS[:2])
    assert numbers(placed(here, {UUIDS[0]: GIB}, machine(here, [20 * GIB, 90 * GIB]))) == [[1]]
    assert numbers(placed(here, {UUIDS[0]: GIB}, machine(here, [90 * GIB + 7, 90 * GIB + 9]))) == [[0]]
    found = placed(here, {UUIDS[0]: GIB}, machine(here, [90 * GIB, 90 * GIB]), occupied=[UUIDS[0]])
    assert numbers(found) == [[1]]


def test_a_moved_replica_names_every_gpu_that_it_could_see() -> None:
    """Swapped: the one that it used, and the one that it did not use."""
    here = cards(*UUIDS[:2])
    (one,) = placed(here, {UUIDS[0]: GIB}, machine(here, [0, 2 * GIB])).maps
    assert one.pairs == ((UUIDS[0], UUIDS[1]), (UUIDS[1], UUIDS[0]))


def test_another_machine_with_more_gpus_takes_it() -> None:
    """Each GPU that could be seen gets one of its own there."""
    (one,) = placed(cards(*UUIDS[:2]), {UUIDS[1]: GIB}, machine(cards(*ELSEWHERE[:3]), [0, 0, 2 * GIB])).maps
    assert one.pairs == ((UUIDS[0], ELSEWHERE[0]), (UUIDS[1], ELSEWHERE[2]))
    assert [str(gpu) for gpu in one.gpus] == [f"GPU 2 (NVIDIA H200, {ELSEWHERE[2]})"]


def test_a_machine_with_fewer_gpus_than_could_be_seen_is_refused() -> None:
    """Though the engine used one alone: the driver wants a GPU for each."""
    found = placed(cards(*UUIDS[:2]), {UUIDS[0]: GIB}, machine(cards(UUIDS[0]), [90 * GIB]))
    assert found.maps == ()
    assert "could see 2 x NVIDIA H200" in found.reasons[0]
    assert "this machine has 1" in found.reasons[0]


def test_two_ranks_come_back_in_the_order_that_was_chosen() -> None:
    """`--gpus 1,0` swaps them; more GPUs than needed are a pool."""
    here = cards(*UUIDS[:4])
    driver, both = machine(here, [90 * GIB] * 4), {UUIDS[0]: GIB, UUIDS[1]: GIB}
    assert numbers(placed(here, both, driver, chosen=[UUIDS[1], UUIDS[0]])) == [[1, 0]]
    four = [UUIDS[at] for at in (3, 1, 0, 2)]
    assert numbers(placed(here, both, driver, chosen=four, replicas=2)) == [[3, 1], [0, 2]]
    assert numbers(placed(here, both, driver, chosen=UUIDS[1:4])) == [[1, 2]]


def test_an_older_driver_moves_nothing() -> None:
    """Before 580 a replica comes back on its own GPU; any other choice is refused with the version that can."""
    here = cards(*UUIDS[:2])
    old = machine(here, [5 * GIB, 90 * GIB], version="575.57.08")
    assert placed(here, {UUIDS[0]: GIB}, old).maps[0].pairs == ()
    assert numbers(placed(here, {UUIDS[0]: GIB}, old, replicas=2)) == [[0], [0]]
    for refused in (
        placed(here, {UUIDS[0]: GIB}, old, chosen=[UUIDS[1]]),
        placed(here, {UUIDS[0]: GIB}, machine(cards(*ELSEWHERE[:2]), [90 * GIB] * 2, version="575.1")),
    ):
        (reason,) = refused.reasons
        assert "takes driver 580 or newer; this machine has 575" in reason


@pytest.mark.fault("a GPU has too little free memory for a replica", area="GPU snapshots", outcome="refused")
def test_a_refusal_says_which_gpu_lacks_what() -> None:
    """How many replicas fit, what one needs, and what each GPU has, with who holds it."""
    here = cards(*UUIDS[:2])
    uses = machine(here, [3 * GIB, GIB]).uses
    held = GpuUse(gpu=here[1], used_bytes=0, free_bytes=GIB, held_bytes={17: 5 << 20})
    found = placed(here, {UUIDS[0]: 2 * GIB}, Driver(version="580.1", uses=(uses[0], held)), replicas=3)
    assert found.reasons == (
        "only 1 of 3 replicas fit: one needs 2048 MiB on one GPU of kind NVIDIA H200 (143771 MiB, compute capability 9.0)",
        f"GPU 0 (NVIDIA H200, {UUIDS[0]}) has 3072 MiB free",
        f"GPU 1 (NVIDIA H200, {UUIDS[1]}) has 1024 MiB free, 1024 MiB too little for one replica; held by pid 17 5 MiB",
    )


def test_a_chosen_gpu_of_another_kind_or_too_few_are_refused() -> None:
    """Each with its reason; nobody else's GPU is taken instead."""
    t4 = H200._replace(uuid=UUIDS[2], name="NVIDIA T4")
    here = [*cards(*UUIDS[:2]), t4]
    driver = machine(here, [90 * GIB] * 3)
    (reason,) = placed(here, {UUIDS[0]: GIB}, driver, chosen=[UUIDS[2]]).reasons
    assert reason.startswith(f"the chosen GPU 2 (NVIDIA T4, {UUIDS[2]}) is not of a kind that it used")
    (few,) = placed(here, {UUIDS[0]: GIB, UUIDS[1]: GIB}, driver, chosen=[UUIDS[0]]).reasons
    assert few == "one replica uses 2 GPUs, and 1 of this machine's were chosen for 1"
    (gone,) = placed(here, {UUIDS[0]: GIB}, driver, chosen=[ELSEWHERE[0], UUIDS[0]]).reasons
    assert "is no longer in this machine" in gone


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[Gpu], dict[str, int], Driver, int]:
    """What was seen, what a replica needs, a machine of 1 to 8 GPUs of one kind, and a number of replicas."""
    seen = draw(st.integers(1, 8))
    used = draw(st.lists(st.sampled_from(UUIDS[:seen]), min_size=1, unique=True))
    each = draw(st.integers(1, 40)) * GIB
    own = draw(st.booleans())
    count = draw(st.integers(seen, 8))
    uuids = draw(st.permutations(UUIDS[:count] if own else ELSEWHERE[:count]))
    free = draw(st.lists(st.integers(0, 140 * GIB), min_size=count, max_size=count))
    return cards(*UUIDS[:seen]), dict.fromkeys(used, each), machine(cards(*uuids), free), draw(st.integers(1, 12))


@given(situations())
def test_every_placement_obeys_the_driver_and_the_memory(
    situation: tuple[list[Gpu], dict[str, int], Driver, int],
) -> None:
    """Whenever there is room there is a placement, and never more than fits; every map is one that the driver takes."""
    seen, needed, driver, replicas = situation
    found = placed(seen, needed, driver, replicas=replicas)
    (each,) = set(needed.values())
    room = sum(min(use.free_bytes // each, replicas) for use in driver.uses)
    assert (found.reasons == ()) == (room >= len(needed) * replicas)
    taken = dict.fromkeys((use.gpu.uuid for use in driver.uses), 0)
    for one in found.maps:
        check_map(one, seen, needed, driver)
        for gpu in one.gpus:
            taken[gpu.uuid] += each
    assert all(taken[use.gpu.uuid] <= use.free_bytes for use in driver.uses)
    if not found.maps:
        assert found.reasons
        return


@given(st.integers(1, 8), st.integers(1, 32), st.integers(1, 4))
def test_replicas_spread_evenly_where_every_gpu_has_room(count: int, replicas: int, ranks: int) -> None:
    """No GPU gets two more than another."""
    here = cards(*UUIDS[:count])
    used = UUIDS[: min(ranks, count)]
    driver = machine(here, [140 * GIB] * count)
    found = numbers(placed(here, dict.fromkeys(used, GIB), driver, replicas=replicas))
    counts = [sum(gpu in one for one in found) for gpu in range(count)]
    assert max(counts) - min(counts) <= 1


def check_map(one: GpuMap, seen: Sequence[Gpu], needed: dict[str, int], driver: Driver) -> None:
    """Each GPU that could be seen has one of its own here, and each used one the place that it is told."""
    here = [use.gpu.uuid for use in driver.uses]
    assert set(one.places) == set(needed)
    assert [here[gpu.number] for gpu in one.gpus] == [gpu.uuid for gpu in one.gpus]
    assert len({gpu.number for gpu in one.gpus}) == len(needed)
    if not one.pairs:
        assert [gpu.uuid for gpu in seen] == here
        assert all(gpu.uuid == old for old, gpu in one.places.items())
        return
    told = dict(one.pairs)
    assert [old for old, _ in one.pairs] == [gpu.uuid for gpu in seen]
    assert len(set(told.values())) == len(seen)
    assert set(told.values()) <= set(here)
    assert all(told[old] == gpu.uuid for old, gpu in one.places.items())


@pytest.mark.parametrize("text", ["", "x", "0,", "-1", "GPU-", "0;1", "1.5", "MIG-1"])
def test_a_word_that_names_no_gpu_is_refused(text: str) -> None:
    """Before this machine is looked at."""
    with pytest.raises(
        ConfigurationError, match=r"--gpus is .* names no GPU; give numbers in the order of nvidia-smi or UUIDs"
    ):
        split_names("--gpus", text)


def test_a_gpu_is_named_once_and_has_to_be_here() -> None:
    """By its number, its UUID, or the beginning of that; an error lists what there is."""
    driver = machine(cards(*UUIDS[:2]), [0, 0])
    assert [gpu.number for gpu in named_gpus("--gpus", split_names("--gpus", f"1, {UUIDS[0]}"), driver)] == [1, 0]
    assert [gpu.number for gpu in named_gpus("--gpus", ["GPU-2"], driver)] == [1]
    with pytest.raises(ConfigurationError, match="names GPU 1 twice"):
        split_names("--gpus", "1,01")
    with pytest.raises(ConfigurationError, match="GPU GPU-1 is named twice"):
        named_gpus("--gpus", ["0", "GPU-1"], driver)
    with pytest.raises(
        ConfigurationError, match=r"GPU 2 is not here; this machine has GPU 0 \(NVIDIA H200, GPU-1.*GPU 1 "
    ):
        named_gpus("--gpus", ["2"], driver)
    with pytest.raises(ConfigurationError, match="could be several"):
        named_gpus("--gpus", ["GPU-"], driver)
    with pytest.raises(ConfigurationError, match=r"this machine has no GPU \(no driver\)"):
        named_gpus("--gpus", ["0"], Driver(version="", uses=(), against="no driver"))


def test_only_the_uuid_of_a_whole_gpu_has_bytes() -> None:
    """A part of a GPU (MIG) has none that the driver takes."""
    assert uuid_bytes(UUIDS[0]).hex() == "11111111222233334444555555555555"
    for wrong in (
        "",
        "GPU-1",
        "MIG-11111111-2222-3333-4444-555555555555",
        f"{UUIDS[0]}0",
        UUIDS[0].replace("11111111", "1111 111"),
        UUIDS[0].replace("1", "x"),
    ):
        with pytest.raises(ValueError, match="is not the UUID of a GPU"):
            uuid_bytes(wrong)
