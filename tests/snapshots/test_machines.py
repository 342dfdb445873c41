"""`torpor.snapshots.machines`: which machine a snapshot fits, and every difference at once."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import pytest

from torpor.snapshots.criu.program import Criu
from torpor.snapshots.facts import machine_facts
from torpor.snapshots.machines import kernel_fits, machine_differences
from torpor.snapshots.store.manifest import MachineFacts

THERE = MachineFacts(
    architecture="x86_64",
    kernel="6.8.0-45-generic",
    glibc="glibc 2.39",
    registers=2696,
    criu="4.2.1",
    criu_file=("/a/criu", 1, 1),
    cpu=("avx", "avx2"),
    driver="",
    gpus=(),
)
KERNEL = (
    "it was made on kernel 6.8.0-45-generic; here it is 6.1.0: use a kernel of the same series and kind that is not older, or "
    "take a snapshot here"
)


@pytest.mark.parametrize(
    ("then", "now", "fits"),
    [
        ("6.18.5", "6.18.5", True),
        ("6.18.5", "6.18.44", True),
        ("6.18.5", "6.18.4", False),
        ("6.18.5", "6.19.5", False),
        ("6.18.5", "7.18.5", False),
        ("6.8.0-45-generic", "6.8.0-47-generic", True),
        ("6.8.0-45-generic", "6.8.0-45-lowlatency", False),
        ("6.8.0-45-generic", "6.8.0-1015-aws", False),
        ("5.14.0-427.13.1.el9_4.x86_64", "5.14.0-503.11.1.el9_5.x86_64", True),
        ("5.14.0-503.11.1.el9_5.x86_64", "5.14.0-427.13.1.el9_4.x86_64", False),
        ("6.18.5", "6.18", False),
        ("", "6.18", False),
    ],
)
def test_a_kernel_fits_if_it_is_of_the_same_series_and_kind_and_not_older(then: str, now: str, fits: bool) -> None:
    """A process has found its system calls at its start; another kind of kernel may lack some."""
    assert kernel_fits(then, now) is fits


def test_the_same_machine_and_a_better_one_fit() -> None:
    """More CPU features, and a CRIU elsewhere, are no difference."""
    here = THERE._replace(cpu=("avx", "avx2", "avx_vnni"), criu_file=("/b/criu", 2, 2), kernel="6.8.0-60-generic")
    assert list(machine_differences(THERE, THERE)) == list(machine_differences(THERE, here)) == []


def test_every_difference_is_named_with_its_cure() -> None:
    """In one list, so that nobody has to try six times."""
    here = MachineFacts("aarch64", "6.1.0", "2.40", 4096, "4.1", ("/c", 1, 1), ("avx",), "", ())
    assert list(machine_differences(THERE, here)) == [
        "it was made on architecture x86_64; here it is aarch64: take a snapshot on this architecture",
        KERNEL,
        "it was made on C library glibc 2.39; here it is 2.40: use the same image of the system, or take a snapshot here",
        "it was made on CRIU 4.2.1; here it is 4.1: install CRIU 4.2.1 (`torpor snapshot setup` has one), or take a snapshot here",
        "this CPU lacks features that the other had: avx2; take the snapshot on the machine with the fewest",
        "this CPU has 4096 bytes of registers to save, the other had 2696; take the snapshot on a CPU of this kind",
    ]


def test_a_cpu_with_more_registers_does_not_fit() -> None:
    """A program that measured its save area on the smaller CPU would write past it."""
    (said,) = machine_differences(THERE, THERE._replace(registers=11008, cpu=("amx_tile", "avx", "avx2", "avx512f")))
    assert "this CPU has 11008 bytes of registers to save, the other had 2696" in said


def test_the_facts_of_this_machine_are_those_of_the_kernel_and_the_c_library() -> None:
    """Read again here by other means."""
    facts = machine_facts(Criu(argv=("criu",), program=Path(sys.executable), version="4.2.1", cache=Path()))
    libc = ctypes.CDLL(None)
    libc.getauxval.restype = ctypes.c_ulong
    assert facts.registers == libc.getauxval(51)
    libc.gnu_get_libc_version.restype = ctypes.c_char_p
    assert facts.glibc == f"glibc {libc.gnu_get_libc_version().decode()}"
    assert list(machine_differences(facts, facts)) == []
