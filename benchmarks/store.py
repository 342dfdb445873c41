"""Push and pull of a snapshot against `cp -r` of the same bytes, in one run: seconds, CPU seconds, and ratios.

    python benchmarks/store.py DIR [--runs 5] [--work FOLDER] [--json FILE]

DIR is a snapshot (`torpor snapshot create`). Every round does each act once, so that a machine that other work slows down
slows all of them; the figures are medians of the rounds. `cold` means that the kernel's cache was emptied of the files that are
read, as far as posix_fadvise(2) does that; `warm` that they were read before. `pull first` knows no hashes of the interpreter's and
the packages' files from an earlier pull. `pull and restore` ends when the replica serves; its store is cold, too. rclone is
measured if it is installed. Parts of a pull are CPU seconds of one thread.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import zstandard

from torpor.cli.timing import command, running
from torpor.snapshots.store.paths import cache_root
from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    from collections.abc import Callable


def main() -> None:
    """Measure, and print a table and JSON."""
    options = _options()
    with tempfile.TemporaryDirectory(dir=options.work, prefix="store-bench-") as folder:
        report = measured(options.folder.resolve(), Path(folder), options.runs)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    _show(report)


def measured(snapshot: Path, work: Path, runs: int) -> dict[str, object]:
    """All acts in every round."""
    store = work / "store"
    _torpor("snapshot", "push", str(snapshot), str(store / "one"))
    rounds = [
        {name: _timed(act, fresh) for name, (act, fresh) in _acts(snapshot, store, work).items()} for _ in range(runs)
    ]
    acts = {
        name: {
            "wall_s": statistics.median(one[name][0] for one in rounds),
            "cpu_s": statistics.median(one[name][1] for one in rounds),
            "all_wall_s": [round(one[name][0], 3) for one in rounds],
        }
        for name in rounds[0]
    }
    ratios = {
        f"{name} / {base}": statistics.median(one[name][0] / one[base][0] for one in rounds)
        for name, base in _RATIOS
        if name in acts and base in acts
    }
    return {
        "snapshot_bytes": sum(file.stat().st_size for file in snapshot.rglob("*") if file.is_file()),
        "snapshot_disk_bytes": _disk(snapshot),
        "stored_bytes": _disk(store),
        "runs": runs,
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} CPUs, kernel {platform.release()}",
        "load": os.getloadavg(),
        "acts": acts,
        "parts_cpu_s": parts(store, work),
        "ratios": ratios,
    }


def parts(store: Path, work: Path) -> dict[str, float]:
    """CPU seconds of what every pull has to do with the chunks of a store, in one thread, without anything around it."""
    frames = [file.read_bytes() for file in sorted((store / "chunks").rglob("*")) if file.is_file()]
    unpack = zstandard.ZstdDecompressor().decompress
    contents: list[bytes] = []

    def write() -> None:
        with (work / "parts").open("wb", buffering=0) as file:
            for content in contents:
                file.write(content)
        (work / "parts").unlink()

    acts: dict[str, Callable[[], object]] = {
        "decompress": lambda: contents.extend(map(unpack, frames)),
        "sha256": lambda: [hashlib.sha256(content).digest() for content in contents],
        "write": write,
    }
    prepare: dict[str, Callable[[], None]] = {"decompress": contents.clear}
    return {
        name: statistics.median(_timed(act, prepare.get(name, lambda: None))[1] for _ in range(3))
        for name, act in acts.items()
    }


_RATIOS = (
    ("pull warm", "cp warm"),
    ("pull cold", "cp cold"),
    ("pull cold", "read cold"),
    ("pull first", "read cold"),
    ("pull and restore", "read cold"),
    ("restore", "read cold"),
    ("push warm", "cp warm"),
    ("push again", "cp warm"),
    ("rclone warm", "cp warm"),
    ("pull warm", "rclone warm"),
)

Act = tuple["Callable[[], object]", "Callable[[], None]"]


def _acts(snapshot: Path, store: Path, work: Path) -> dict[str, Act]:
    """Each act, and what prepares it."""
    copy, back, other = work / "copy", work / "back", work / "other"

    def fresh(*folders: Path, cold: Path | None = None) -> Callable[[], None]:
        def prepare() -> None:
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)
            if cold:
                _forget(cold)

        return prepare

    def pull_and_restore() -> None:
        _torpor("snapshot", "pull", str(store / "one"), str(back))
        _restored(back)

    def first() -> None:
        fresh(back, cold=store)()
        (cache_root() / "hashes.json").unlink(missing_ok=True)

    acts: dict[str, Act] = {
        "read cold": (lambda: _read(snapshot), fresh(cold=snapshot)),
        "read warm": (lambda: _read(snapshot), fresh()),
        "cp warm": (lambda: _run("cp", "-r", str(snapshot), str(copy)), fresh(copy)),
        "cp cold": (lambda: _run("cp", "-r", str(snapshot), str(copy)), fresh(copy, cold=snapshot)),
        "push warm": (lambda: _torpor("snapshot", "push", str(snapshot), str(other / "one")), fresh(other)),
        "push again": (lambda: _torpor("snapshot", "push", str(snapshot), str(other / "two")), fresh()),
        "pull first": (lambda: _torpor("snapshot", "pull", str(store / "one"), str(back)), first),
        "pull warm": (lambda: _torpor("snapshot", "pull", str(store / "one"), str(back)), fresh(back)),
        "pull cold": (lambda: _torpor("snapshot", "pull", str(store / "one"), str(back)), fresh(back, cold=store)),
        "restore": (lambda: _restored(back), fresh()),
        "pull and restore": (
            pull_and_restore,
            fresh(back, cold=store),
        ),
    }
    if shutil.which("rclone"):
        acts["rclone warm"] = (lambda: _run("rclone", "copy", str(snapshot), str(copy)), fresh(copy))
    return acts


def _timed(act: Callable[[], object], prepare: Callable[[], None]) -> tuple[float, float]:
    """Seconds of the wall clock, and of all processors together."""
    prepare()
    before, begun = _cpu(), time.perf_counter()
    act()
    return time.perf_counter() - begun, _cpu() - before


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _forget(folder: Path) -> None:
    """Write a folder's files to the disk, and have the kernel forget their pages."""
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def _read(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb", buffering=0) as stream:
                while stream.read(1 << 20):
                    pass


def _disk(folder: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())


def _restored(folder: Path) -> None:
    """Restore a replica and wait until it serves; then end it."""
    with running(command("snapshot", "restore", str(folder), "--json", "--port", str(unused_port()))) as (process, _):
        assert process.stdout is not None
        if not process.stdout.readline():
            raise RuntimeError(f"{folder} was not restored")


def _torpor(*words: str) -> None:
    _run(sys.executable, "-m", "torpor.cli", *words)


def _run(*words: str) -> None:
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=600)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="a snapshot")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--work", type=Path, default=None, help="a folder on the disk to measure")
    parser.add_argument("--json", type=Path, default=None, help="write the report to this file")
    return parser.parse_args()


def _show(report: dict[str, object]) -> None:
    acts, ratios, inner = report["acts"], report["ratios"], report["parts_cpu_s"]
    assert isinstance(inner, dict)
    assert isinstance(acts, dict)
    assert isinstance(ratios, dict)
    for name, figures in acts.items():
        print(f"{name:<14} {figures['wall_s']:7.2f} s  {figures['cpu_s']:7.2f} CPU s")
    for name, seconds in inner.items():
        print(f"of a pull: {name:<14} {seconds:7.2f} CPU s")
    for name, ratio in ratios.items():
        print(f"{name:<26} {ratio:6.2f}")


if __name__ == "__main__":
    main()
