"""A snapshot's folder as a capture leaves it, but made without CRIU, for tests of folders and files."""

from __future__ import annotations

import json
import os
from pathlib import Path

from torpor.runtime.canary import Canary
from torpor.snapshots.before_capture.outside_files import noted
from torpor.snapshots.store.files import describe_files
from torpor.snapshots.store.gpu_state import Gpu, GpuPart, GpuProcess
from torpor.snapshots.store.manifest import (
    IMAGES,
    LOGS,
    MANIFEST,
    OUTSIDE,
    PRIVATE,
    SCHEMA,
    DeploymentFacts,
    MachineFacts,
    Manifest,
    Scheduled,
    StageTime,
    write_private,
)

Content = dict[str, object]

UUID = "GPU-01234567-89ab-cdef-0123-456789abcdef"


def small_snapshot(folder: Path, *, text: str = "the answer", outside: Content | None = None) -> Path:
    """Write a complete snapshot of a deployment with a GPU; its images are a few bytes."""
    folder.mkdir(mode=0o700, parents=True)
    for inner in (IMAGES, LOGS):
        (folder / inner).mkdir(mode=0o700)
    for name in ("images/inventory.img", "images/pages-1.img", "images/side.tar", "logs/dump.log"):
        descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT, 0o600)
        os.write(descriptor, name.encode() * 3)
        os.close(descriptor)
    write_private(folder / PRIVATE, {"replica_id": "0123456789abcdef", "guard_key": "key"})
    write_private(folder / OUTSIDE, outside or noted({}, [Path(__file__)], []))
    gpu = Gpu(uuid=UUID, name="NVIDIA H200", memory_mib=143771, compute_capability="9.0")
    Manifest(
        schema=SCHEMA,
        captured_at=1_790_000_000.5,
        app_file=str(folder.parent / "app.py"),
        served_name="small",
        mode="root",
        scratch="/tmp/box",
        tcp="close",
        monotonic_s=100.0,
        boottime_s=101.5,
        canary=Canary(kind="text", answer={"prompt": "Name the months.", "tokens": 16, "text": text}, questions={}),
        processes=("1000 python -m engine", "1001 python"),
        scheduling=(Scheduled(pid=1000, tid=1000, cpus=(0,), io_priority=-1),),
        stages=(StageTime(stage="launch", seconds=0.5), StageTime(stage="capture_criu", seconds=1.5)),
        image_bytes=4096,
        mapped_bytes=2048,
        side_file_bytes=10240,
        gpu=GpuPart(
            processes=(GpuProcess(pid=1001, command="scheduler", lock_s=0.1, checkpoint_s=0.2, gpus=(UUID,)),),
            memory={UUID: 1 << 30},
            awake={UUID: 3 << 30},
        ),
        machine=MachineFacts(
            architecture="x86_64",
            kernel="6.18",
            glibc="glibc 2.36",
            registers=2696,
            criu="4.2.1",
            criu_file=("/usr/sbin/criu", 1_648_112, 1_796_075_457_488_626_466),
            cpu=("avx", "avx2"),
            driver="580.1",
            gpus=(gpu,),
        ),
        deployment=DeploymentFacts(
            torpor="0.1.0",
            name="small",
            port=22900,
            plugins={"standin": "StandIn()"},
            task="chat",
            engine="standin 1",
            model="/models/small",
            revision="",
            argv=("python", "-m", "engine"),
            env={"HOME": "/root"},
        ),
        files=describe_files(folder),
    ).write(folder)
    return folder


def content_of(folder: Path, name: str = MANIFEST) -> Content:
    """The JSON in a file of a snapshot."""
    content: Content = json.loads((folder / name).read_text())
    return content


def rewrite(folder: Path, content: Content, name: str = MANIFEST) -> None:
    """Write other JSON into a file of a snapshot."""
    (folder / name).write_text(json.dumps(content))
