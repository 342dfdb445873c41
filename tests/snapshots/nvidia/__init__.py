"""A stand-in for the NVIDIA driver: libcuda and NVML as small C libraries, and processes with state "on a GPU".

`libcuda.c` implements the checkpoint calls (states, argument blocks, errors). As with the real driver, each process has the
library loaded and keeps its own state; `process.py` is such a process. `libnvml.c` answers from environment variables. The
device is a plain file outside of the sandbox, open and mapped; the code under test gets the beginning of its path.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.snapshots.nvidia.process import MEMORY_BYTES
from torpor.snapshots.store.paths import LIBRARIES_VARIABLE

__all__ = ["MEMORY_BYTES", "PROGRAM", "UUID", "UUIDS", "FakeDriver", "build", "listed_gpus"]

HERE = Path(__file__).parent
PROGRAM = HERE / "process.py"
UUIDS = tuple(f"GPU-{digit * 8}-2222-3333-4444-555555555555" for digit in "12345678")
UUID = UUIDS[0]
SLOT_BYTES, SLOTS = 64 << 20, 4096


@dataclass(frozen=True, kw_only=True)
class FakeDriver:
    """The driver of a machine, and the device file that its processes hold.

    Attributes:
        libraries: the folder with libcuda.so.1 and libnvidia-ml.so.1.
        device: the device file of the first GPU.
        used: a folder in which processes write how much they have on the GPU.
    """

    libraries: Path
    device: Path
    used: Path

    @classmethod
    def install(cls, libraries: Path, folder: Path, patch: pytest.MonkeyPatch, *, gpus: int = 1) -> FakeDriver:
        """Make the devices, and let this process and everything that it starts find the driver."""
        device, used = folder / "dev" / "nvidia0", folder / "used"
        device.parent.mkdir(parents=True)
        used.mkdir()
        for number in range(gpus):
            with device.with_name(f"nvidia{number}").open("wb") as file:
                file.truncate(SLOT_BYTES * SLOTS)  # a hole, which takes no room
        patch.setenv("TORPOR_FAKE_GPU", listed_gpus(*UUIDS[:gpus]))
        patch.setenv(LIBRARIES_VARIABLE, str(libraries))
        patch.setenv("TORPOR_FAKE_DEVICE", str(device))
        patch.setenv("TORPOR_FAKE_USED", str(used))
        return cls(libraries=libraries, device=device, used=used)

    @property
    def libcuda(self) -> Path:
        """The library."""
        return self.libraries / "libcuda.so.1"

    @property
    def devices(self) -> tuple[str, ...]:
        """How the paths of its device files begin."""
        return (str(self.device.parent / "nvidia"),)

    def argv(self, *rest: str) -> list[str]:
        """The command line of a process on the GPU."""
        return [sys.executable, str(PROGRAM), str(self.libcuda), *rest]

    def clear(self) -> None:
        """Forget what ended processes had on the GPUs."""
        for device in self.device.parent.iterdir():
            os.truncate(device, 0)
            os.truncate(device, SLOT_BYTES * SLOTS)
        for file in self.used.iterdir():
            file.unlink()

    def on_gpu(self, pid: int, gpu: int = 0) -> bytes:
        """The memory of a process on a GPU, by its pid inside the sandbox."""
        with self.device.with_name(f"nvidia{gpu}").open("rb") as file:
            file.seek(pid % SLOTS * SLOT_BYTES)
            return file.read(MEMORY_BYTES)


def listed_gpus(*uuids: str) -> str:
    """The value of `TORPOR_FAKE_GPU` for a machine with H200s of these UUIDs."""
    return ";".join(f"{uuid}|NVIDIA H200|143771|9.0" for uuid in uuids)


def build(folder: Path, *, old: bool = False) -> Path:
    """Compile both libraries into a folder; skips the test where there is no compiler.

    Args:
        folder: an existing one.
        old: without the checkpoint functions, as before driver 570.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler (cc) to build the stand-in for libcuda with")
    for source, target in (("libcuda.c", "libcuda.so.1"), ("libnvml.c", "libnvidia-ml.so.1")):
        argv = [compiler, "-shared", "-fPIC", "-pthread", "-Wall", "-Werror", *(["-DOLD"] if old else [])]
        subprocess.run([*argv, "-o", str(folder / target), str(HERE / source)], check=True, timeout=60)
    return folder
