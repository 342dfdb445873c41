"""Whether this process belongs to an engine on a CPU."""

from __future__ import annotations

import os
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import MutableMapping, Sequence

__all__ = ["CPU_VARIABLE", "choose_cpu", "is_cpu_engine"]

# SGLang's own switch, read by is_cpu() in sglang/srt/utils/common.py of all supported versions.
CPU_VARIABLE = "SGLANG_USE_CPU_ENGINE"


def choose_cpu(argv: Sequence[str], environ: MutableMapping[str, str]) -> None:
    """Set SGLang's CPU switch if the engine's flags hold `--device cpu`."""
    if "--device=cpu" in argv or ("--device", "cpu") in pairwise(argv):
        environ.setdefault(CPU_VARIABLE, "1")


def is_cpu_engine() -> bool:
    """Whether SGLang's CPU switch is set for this process."""
    return os.environ.get(CPU_VARIABLE) == "1"
