"""The GPU benchmark on a clean machine with a Hopper card, from nothing: `make gpu-bench`.

    python3 -m benchmarks.gpu.rented [--rows flagship,profile,standby] [--image IMAGE] [--folder DIR] [--yes]

It needs Linux, Python 3.11, NVIDIA's driver, docker with NVIDIA's container toolkit, and a user who may run docker; nothing else is
installed on the machine. The engine's own image is pulled, Torpor is installed into an environment beside the image's Python, the
real weights come from the hub (pinned to a commit, every file checked), CRIU goes into a private folder, and the rows run in the
container. Everything lies in one folder; a second run uses what is there, and repeats no row that is done.

First it says what it will take: gigabytes to download, disk, and minutes, from the image's manifest and the newest committed
results. Without --yes it waits ten seconds after that line, so that Ctrl-C costs nothing. Later, Ctrl-C, SIGTERM or a hang-up
removes the container, and with it everything that runs in it. It imports the standard library alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from benchmarks.gpu.rows import GROUPS, ROWS

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Cost", "cost", "main", "row_seconds"]

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
VERSION = "0.5.16"
IMAGE = f"lmsysorg/sglang:v{VERSION}"
MODEL, COMMIT = "Qwen/Qwen3-8B-FP8", "220b46e3b2180893580a4454f21f22d3ebb187d3"
WEIGHTS_BYTES = 9.45e9
"""Of the repository, about: the real shapes take 9.4 GB (`benchmarks/gpu/make_model.py`)."""
DEFAULT_ROWS = "flagship,profile,standby"
ROW_S = 300.0
"""Seconds of a row that no committed result has."""
FIRST_START_S = 300.0
"""What the first start takes longer: every kernel is compiled (benchmarks/gpu/NOTES.md, 331 s against 80 to 110)."""
LINK_BYTES_S = 100e6
UNPACKED = 2.5
"""How many times as large an image's layers are once they are unpacked: an assumption, on the safe side."""
SNAPSHOTS_BYTES = 30e9
_PAUSE_S = 10.0
_TOLD_S = 60
_INTERRUPTED = 130
_HOPPER = ("H100", "H200", "H800", "H20", "GH200")


@dataclass(frozen=True)
class Cost:
    """What a run will take.

    Attributes:
        download: bytes.
        disk: bytes.
        seconds: for the downloads and the rows.
        said: the line that tells it.
    """

    download: float
    disk: float
    seconds: float
    said: str


def main(argv: Sequence[str] | None = None) -> int:
    """Check, say the cost, run; the container's exit code."""
    options = _parse(argv)
    rows = _rows(options.rows)
    if options.restores < 1:
        _refuse(f"--restores is {options.restores}; it has to be 1 or more.")
    _check_machine()
    folder = options.folder.absolute()
    image_bytes = _image_bytes(options.image)
    there = (folder / "hub").is_dir()
    told = cost(rows, image_bytes=image_bytes, weights_bytes=0.0 if there else WEIGHTS_BYTES)
    folder.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(folder).free) < told.disk:
        _refuse(
            f"{folder} has {free / 1e9:.0f} GB free, and {told.disk / 1e9:.0f} GB are needed. Name another --folder."
        )
    print(told.said, flush=True)
    name = f"torpor-gpu-bench-{os.getpid()}"
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores a hang-up
            signal.signal(number, signal.default_int_handler)
    try:
        if not options.yes:
            print(f"It begins in {_PAUSE_S:.0f} s; Ctrl-C ends it.", flush=True)
            time.sleep(_PAUSE_S)
        done = subprocess.run(_container(options, folder, name), check=False)
    except KeyboardInterrupt:
        # The container is the daemon's: it would go on without this process, and keep the card.
        _told(["docker", "rm", "--force", name])
        print("gpu-bench: interrupted; its container is removed. Rows that are done stay.", file=sys.stderr)
        return _INTERRUPTED
    results = folder / "gpu.json"
    if results.is_file():
        print(f"results: {results}", flush=True)
        print(f"compare them: python3 -m benchmarks.compare {shlex.quote(str(results))}", flush=True)
    else:
        print(f"gpu-bench: no row was done; docker ended with {done.returncode}, as said above.", file=sys.stderr)
    return done.returncode


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python3 -m benchmarks.gpu.rented", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--rows", default=DEFAULT_ROWS, help=f"rows or groups of benchmarks.gpu.bench (default {DEFAULT_ROWS})"
    )
    parser.add_argument("--image", default=IMAGE, help=f"the engine's image (default {IMAGE})")
    parser.add_argument("--version", default=VERSION, help=f"the SGLang in it (default {VERSION})")
    parser.add_argument("--restores", type=int, default=5)
    parser.add_argument(
        "--folder", type=Path, default=Path.home() / "torpor-gpu-bench", help="keeps weights and results"
    )
    parser.add_argument("--yes", action="store_true", help="begin at once")
    return parser.parse_args(argv)


def cost(rows: Sequence[str], *, image_bytes: float | None, weights_bytes: float) -> Cost:
    """What these rows will take.

    Args:
        rows: names.
        image_bytes: of the image's layers that are to be pulled; 0 if it is here, None if unknown.
        weights_bytes: to be fetched; 0 if they are here.
    """
    download = (image_bytes or 0.0) + weights_bytes
    disk = (image_bytes or 0.0) * UNPACKED + weights_bytes + SNAPSHOTS_BYTES
    known = row_seconds()
    rows_s = sum(known.get(row, ROW_S) for row in rows) + FIRST_START_S
    seconds = download / LINK_BYTES_S + rows_s
    image = "an image of unknown size" if image_bytes is None else f"{image_bytes / 1e9:.1f} GB of image"
    said = (
        f"This takes about {seconds / 60:.0f} minutes: {download / LINK_BYTES_S / 60:.0f} to download {image} and "
        f"{weights_bytes / 1e9:.1f} GB of weights at {LINK_BYTES_S / 1e6:.0f} MB/s, {rows_s / 60:.0f} for the rows "
        f"{', '.join(rows)}. It needs {disk / 1e9:.0f} GB of disk."
    )
    return Cost(download, disk, seconds, said)


def row_seconds() -> dict[str, float]:
    """How long each row took, by the newest committed result that has it."""
    found: dict[str, float] = {}
    for file in sorted(HERE.glob("h?00-*.json"), key=lambda one: one.stem.partition("-")[2]):
        rows = json.loads(file.read_text())["rows"]
        found |= {name: row["took_s"] for name, row in rows.items() if "took_s" in row and "error" not in row}
    return found


def _check_machine() -> None:
    """Refuse a machine that cannot run it, with what is missing."""
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        _refuse(f"It needs Linux on x86-64, and this is {sys.platform} on {os.uname().machine}.")
    names = _told(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"])
    if names is None:
        _refuse("nvidia-smi does not answer: it needs NVIDIA's driver and a Hopper card, e.g. a rented H100.")
    if not any(kind in names for kind in _HOPPER):
        _refuse(f"It needs a Hopper card (FP8 kernels, {', '.join(_HOPPER)}), and this machine has: {names.strip()}.")
    if shutil.which("docker") is None:
        _refuse("docker is not installed: it runs the engine's own image. Install docker and nvidia-container-toolkit.")
    if _told(["docker", "info", "--format", "{{.ServerVersion}}"]) is None:
        _refuse("docker does not answer: start it, or let this user run it (group docker, or root).")


def _image_bytes(image: str) -> float | None:
    """Bytes of the image's layers, 0 if it is here; None if docker does not tell.

    The tag has to exist: `docker manifest inspect` asks the registry.
    """
    if _told(["docker", "image", "inspect", "--format", "{{.Id}}", image]) is not None:
        return 0.0
    told = _told(["docker", "manifest", "inspect", "--verbose", image])
    if told is None:
        _refuse(f"The registry has no image {image}, or does not answer. Name one with --image and its --version.")
    try:
        read = json.loads(told)
        entries = read if isinstance(read, list) else [read]
        ours = next(
            one for one in entries if one["Descriptor"].get("platform", {}).get("architecture", "amd64") == "amd64"
        )
        manifest = ours.get("SchemaV2Manifest") or ours["OCIManifest"]
        return float(sum(layer["size"] for layer in manifest["layers"]))
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration):
        return None


def _rows(names: str) -> list[str]:
    """The rows of a list, its groups taken apart; refuses an unknown name before anything is fetched."""
    rows = [row for name in names.split(",") for row in GROUPS.get(name, (name,))]
    if unknown := sorted(set(rows) - set(ROWS)):
        _refuse(f"There is no row {', '.join(map(repr, unknown))}; there are: {', '.join([*ROWS, *GROUPS])}.")
    return rows


def _container(options: argparse.Namespace, folder: Path, name: str) -> list[str]:
    """The command that does it all in the engine's image.

    The container is privileged: CRIU makes namespaces and restores processes with their numbers. The folder is a mount of the
    machine's disk, so that snapshots and kernels outlive the container.
    """
    model = f"/bench/hub/models--{MODEL.replace('/', '--')}/snapshots/{COMMIT}"
    bench = (
        f"exec /bench/env/bin/python -m benchmarks.gpu.bench --real --model {model} --version {shlex.quote(options.version)} "
        f"--rows {shlex.quote(options.rows)} --restores {options.restores} --snapshots /bench/snapshots --results /bench/gpu.json"
    )
    steps = (
        "set -e",
        # Beside the image's packages, which stay as the image has them.
        "python3 -m venv --system-site-packages /bench/env",
        "/bench/env/bin/python -m pip install --quiet /torpor",
        f"/bench/env/bin/python -m torpor_hf_cache.download fetch {MODEL} {COMMIT} --cache /bench/hub",
        "/bench/env/bin/torpor snapshot setup",
        "cd /torpor",
        bench,
    )
    run = ["docker", "run", "--rm", "--name", name, "--init", "--privileged", "--gpus", "all"]
    shared = ["--ipc", "host", "--network", "host", "--env", "TORPOR_CACHE=/bench/cache"]
    mounts = ["--volume", f"{ROOT}:/torpor", "--volume", f"{folder}:/bench"]
    return [*run, *shared, *mounts, "--entrypoint", "bash", options.image, "-c", "\n".join(steps)]


def _told(argv: Sequence[str]) -> str | None:
    """What a command prints; None if it fails."""
    try:
        return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=_TOLD_S).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def _refuse(said: str) -> NoReturn:
    print(f"gpu-bench: {said}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    sys.exit(main())
