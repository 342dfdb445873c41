"""Push again and again, or collect garbage again and again: `garbage_program.py push|collect ...`, for tests with processes."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

from torpor.errors import StoreError
from torpor.snapshots.remote.garbage import collect, remove
from torpor.snapshots.remote.opening import open_remote
from torpor.snapshots.remote.pull import pull
from torpor.snapshots.remote.push import push
from torpor.snapshots.remote.store import Store


def push_often(folder: Path, store: str, name: str, times: int) -> None:
    """Push, pull, remove; a chunk that is missing ends the program with an error."""
    back = folder.with_name(f"back-{name}")
    for _ in range(times):
        push(folder, f"{store}/{name}")
        pull(open_remote(f"{store}/{name}"), back)
        shutil.rmtree(back)
        remove(f"{store}/{name}")


def collect_often(store: str, until: Path) -> None:
    """Collect whatever no snapshot needs, however young, until a file appears; print how often, and how much that was."""
    done = removed = 0
    end = time.monotonic() + 120
    while not until.exists() and time.monotonic() < end:
        try:
            removed += collect(store, older_than_s=0.0).chunks
            done += 1
        except StoreError as error:
            if "is at work" not in str(error):
                raise
        time.sleep(0.01)
    print(done, removed)


def push_slowly(folder: Path, url: str, listed: Path, go: Path) -> None:
    """Push; wait between the listing of the store and the first chunk."""
    usual = Store.chunks

    def waiting(store: Store) -> object:
        found = usual(store)
        listed.touch()
        end = time.monotonic() + 60
        while not go.exists() and time.monotonic() < end:
            time.sleep(0.02)
        return found

    Store.chunks = waiting  # type: ignore[method-assign, assignment]
    print(push(folder, url).sent)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["push", folder, store, name, times]:
            push_often(Path(folder), store, name, int(times))
        case ["collect", store, until]:
            collect_often(store, Path(until))
        case ["slow", folder, url, listed, go]:
            push_slowly(Path(folder), url, Path(listed), Path(go))
