"""How two machines differ, as far as a restored process depends on it; GPUs apart (`torpor.snapshots.store.gpu_state`).

architecture   the same
kernel         the same series and kind, not an older one: a process may use every system call that it found at its start.
CRIU adapts a restored process to another vDSO, and asks the kernel what it can do at each restore
glibc          the same: a process has mapped it
CRIU           the same version: it reads its own images
CPU            every feature that the other had: libraries choose their code by them when they are loaded
registers      the same size: programs size their save areas by the CPU when they start. So a CPU with more registers does not
fit either (criu/arch/x86/cpu.c: cpu_validate_features says what CRIU met)
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torpor.snapshots.store.manifest import MachineFacts

__all__ = ["kernel_fits", "machine_differences"]

_SHOWN = 8
_NUMBER = re.compile(r"\d+")
_SERIES = 2


def machine_differences(made_on: MachineFacts, here: MachineFacts) -> Iterator[str]:
    """How this machine differs from the one of the capture, a sentence each, with what to do."""
    if made_on.architecture != here.architecture:
        yield _other("architecture", made_on.architecture, here.architecture, "take a snapshot on this architecture")
    if not kernel_fits(made_on.kernel, here.kernel):
        cure = "use a kernel of the same series and kind that is not older, or take a snapshot here"
        yield _other("kernel", made_on.kernel, here.kernel, cure)
    if made_on.glibc != here.glibc:
        cure = "use the same image of the system, or take a snapshot here"
        yield _other("C library", made_on.glibc or "of another kind", here.glibc or "of another kind", cure)
    if made_on.criu != here.criu:
        cure = f"install CRIU {made_on.criu} (`torpor snapshot setup` has one), or take a snapshot here"
        yield _other("CRIU", made_on.criu, here.criu, cure)
    if missing := sorted(set(made_on.cpu) - set(here.cpu)):
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        yield (
            f"this CPU lacks features that the other had: {', '.join(missing[:_SHOWN])}{more}; take the snapshot on the machine "
            "with the fewest"
        )
    if made_on.registers != here.registers:
        yield (
            f"this CPU has {here.registers} bytes of registers to save, the other had {made_on.registers}; take the snapshot on a "
            "CPU of this kind"
        )


def kernel_fits(then: str, now: str) -> bool:
    """Whether a process of one kernel goes on under another: same series and kind, and not older.

    Args:
        then: release of the kernel at the capture, e.g. `6.8.0-45-generic`.
        now: release of the kernel here, e.g. `6.8.0-47-generic`, which fits; `6.9.0-1-generic` and `6.8.0-1015-aws` do not.
    """
    if _NUMBER.sub("#", then) != _NUMBER.sub("#", now):
        return False
    numbers, others = ([int(number) for number in _NUMBER.findall(release)] for release in (then, now))
    return numbers[:_SERIES] == others[:_SERIES] and numbers <= others


def _other(what: str, then: str, now: str, cure: str) -> str:
    return f"it was made on {what} {then}; here it is {now}: {cure}"
