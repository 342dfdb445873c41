"""One of several processes that keep equal memory at once; prints the file that it then holds open.

python -m tests.plugins.torpor_sglang.keeping_rank FAKE_CUDA_LIBRARY FOLDER PROCESSES
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from pathlib import Path

from torpor_sglang import kept_memory
from torpor_sglang.gpu_copy import Driver, Segment
from torpor_sglang.kept_memory import KeptMemory

SIZE = 6400
_WAIT_S = 20.0


def main(library: str, folder: Path, processes: int) -> None:
    """Write, wait until all have written, publish, and hold the file until all are done."""
    publish = kept_memory._published

    def publish_together(unfinished: Path, file: Path, size: int) -> int:
        meet(folder / "written", processes)
        return publish(unfinished, file, size)

    kept_memory._published = publish_together
    memory = ctypes.create_string_buffer(bytes(range(256)) * (SIZE // 256), SIZE)
    segment = Segment(ctypes.addressof(memory), SIZE)
    kept = KeptMemory(
        places={"weights": "file"},
        folder=folder / "kept",
        segments=lambda _: [segment],
        sums=lambda _: [7],
        driver=lambda: Driver(library),
        tell=lambda _: None,
    )
    kept.save("weights")
    meet(folder / "saved", processes)
    held = str(Path(f"/proc/self/fd/{kept._asleep['weights'].descriptor}").readlink())
    ctypes.memset(memory, 0, SIZE)
    kept.begin_load("weights")
    kept.finish()
    print(json.dumps({"held": held, "same": memory.raw == bytes(range(256)) * (SIZE // 256)}))


def meet(folder: Path, processes: int) -> None:
    """Wait until every process has come here."""
    folder.mkdir(exist_ok=True)
    (folder / str(os.getpid())).touch()
    deadline = time.monotonic() + _WAIT_S
    while len(list(folder.iterdir())) < processes:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{folder}: not all of {processes} processes came")
        time.sleep(0.002)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
