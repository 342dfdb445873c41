"""What a benchmark's JSON says of itself: which benchmark, on which machine, with which versions, under which load.

`torpor` alone is imported, so that an engine's interpreter can run it. A field that this machine does not tell is left out.
"""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from torpor._version import __version__

__all__ = ["what_ran"]

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    "sglang",
    "vllm",
    "torch",
    "transformers",
    "flashinfer-python",
    "sglang-kernel",
    "sgl-deep-gemm",
    "triton",
    "httpx",
)
_GPU_CLOCKS = "clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu"


def what_ran(kind: str, **more: object) -> dict[str, object]:
    """The head of a result.

    Args:
        kind: which benchmark; results of one kind can be compared (`python -m benchmarks.compare`).
        more: further fields.
    """
    return {
        "kind": kind,
        "command": " ".join(sys.orig_argv[1:]),
        "at": time.time(),
        "load": [round(one, 2) for one in os.getloadavg()],
        "machine": _machine(),
        "versions": _versions(),
        **more,
    }


def _machine() -> dict[str, object]:
    """The processor, its clock, memory, kernel; the GPUs' clocks where there are some."""
    found: dict[str, object] = {
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
    }
    lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    fields = {name.strip(): value.strip() for name, _, value in lines}
    found |= {ours: fields[name] for ours, name in (("cpu", "model name"), ("cpu_mhz", "cpu MHz")) if name in fields}
    if clocks := _gpu_clocks():
        found["gpu_clocks"] = clocks
    return found


def _gpu_clocks() -> list[dict[str, str]]:
    """Clocks (MHz), power limit (W) and temperature (degrees Celsius) of each GPU; empty without one."""
    argv = ["nvidia-smi", f"--query-gpu={_GPU_CLOCKS}", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    names = _GPU_CLOCKS.split(",")
    return [dict(zip(names, (one.strip() for one in line.split(",")), strict=False)) for line in told.splitlines()]


def _versions() -> dict[str, str]:
    """Of this interpreter, of Torpor (with its commit) and of the packages that it can import."""
    found = {"python": platform.python_version(), "torpor": __version__}
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):  # no checkout, or no git
        found["commit"] = subprocess.run(git, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
