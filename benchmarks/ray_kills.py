"""The kill matrix of Ray Serve: what is left of an engine, and how long its model is away, when something around it dies.

    .venv/bin/python -m benchmarks.ray_kills [--rounds 20] [--gcs-rounds 1] [--what NAME,...] [--how restored,cold] [--json FILE]

Needs root and `make ray`. Three raylets in namespaces of their own, the stand-in engine, ten requests a second. For each death:
seconds until every process of the engine is gone, processes that are left, seconds until requests are answered again, failed
requests. Nothing of an engine may end when the controller, a proxy or HAProxy does.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.ray_box import HTTP_PORT, STAYS, RayBox, write_app

if TYPE_CHECKING:
    from collections.abc import Iterator

WHAT = (
    "replica",
    "replica_term",
    "engine",
    "raylet",
    "controller",
    "haproxy",
    "haproxy_manager",
    "delete",
    "cold_start",
    "gcs",
)
SCALING = "target_concurrency=8, max_concurrency=8, max_containers=1, min_containers=1, scaledown_window_s=60"
PLACED = 'region="workers",'
ROUND_S = 90.0


def main() -> int:
    """Run the rounds, print a line for each death, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--gcs-rounds", type=int, default=1, help="each needs a cluster of its own")
    parser.add_argument("--what", default=",".join(WHAT))
    parser.add_argument("--how", default="restored,cold")
    parser.add_argument("--json", metavar="FILE", type=Path)
    given = parser.parse_args()
    wanted = given.what.split(",")
    if unknown := set(wanted) - set(WHAT):
        parser.error(f"--what {', '.join(unknown)}: there are {', '.join(WHAT)}")
    if reason := RayBox.missing():
        parser.error(reason)
    place = Path(tempfile.mkdtemp(prefix="tk-", dir="/tmp"))
    rows: list[dict[str, object]] = []
    try:
        for how in given.how.split(","):
            rows.extend(_rounds(place, how, wanted, given.rounds, given.gcs_rounds))  # keeps what came before a failure
    finally:
        shutil.rmtree(place, ignore_errors=True)
        facts = {"machine": platform.platform(), "cpus": os.cpu_count(), "load": os.getloadavg(), "at": time.time()}
        if given.json:
            given.json.write_text(json.dumps({**facts, "rounds": rows}, indent=1) + "\n")
    return 1 if any(row["left"] or row.get("stayed") is (row["what"] not in STAYS) for row in rows) else 0


def _rounds(place: Path, how: str, wanted: list[str], rounds: int, gcs_rounds: int) -> Iterator[dict[str, object]]:
    app = write_app(place, "one", scaling=SCALING, more=PLACED)
    slow = write_app(place, "slow", scaling=SCALING, standin="fault=Fault.SLOW_START, fault_s=20", more=PLACED)
    with RayBox(place, nodes=3) as box:
        _prepare(box, place, app, how)
        for what in [one for one in wanted if one != "gcs"]:
            if what == "cold_start" and how == "cold":
                box.do("torpor", words=["ray", "down"])
                done = [box.do("kill_starting", files=[str(slow)]) for _ in range(rounds)]
                _deploy(box, place, app, how)
            else:
                done = [_round(box, place, app, how, what) for _ in range(rounds if what != "cold_start" else 0)]
            yield from _told(how, what, done)
    for _ in range(gcs_rounds if "gcs" in wanted else 0):
        shutil.rmtree(place / "ray", ignore_errors=True)
        with RayBox(place, nodes=3) as box:
            _prepare(box, place, app, how)
            yield from _told(how, "gcs", [box.do("kill_round", what="gcs", model="one", limit_s=ROUND_S)])
    shutil.rmtree(place / "ray", ignore_errors=True)


def _round(box: RayBox, place: Path, app: Path, how: str, what: str) -> dict[str, object]:
    done = box.do("kill_round", what=what, model="one", limit_s=ROUND_S)
    if what == "raylet":
        box.do("add_node")
    if what == "delete":
        box.do("torpor", words=["ray", "down"])
        _deploy(box, place, app, how)
    return done


def _prepare(box: RayBox, place: Path, app: Path, how: str) -> None:
    if how == "restored" and not (place / "store").exists():
        for words in (
            ["snapshot", "create", str(app), str(place / "captured")],
            ["snapshot", "push", str(place / "captured"), str(place / "store" / "one")],
        ):
            _done(box, words)
    _deploy(box, place, app, how)


def _deploy(box: RayBox, place: Path, app: Path, how: str) -> None:
    snapshots = ["--snapshots", str(place / "store")] if how == "restored" else []
    _done(box, ["ray", "up", str(app), "--port", str(HTTP_PORT), *snapshots])
    box.do("until_answered", model="one")


def _done(box: RayBox, words: list[str]) -> None:
    done = box.do("torpor", words=words)
    if done["code"]:
        raise SystemExit(f"torpor {' '.join(words)} ended with {done['code']}: {done['err']}")


def _told(how: str, what: str, done: list[dict[str, object]]) -> list[dict[str, object]]:
    if not done:
        return []
    gone = [float(str(one["gone_s"])) for one in done]
    back = [float(str(one.get("back_s", -1))) for one in done]
    sums = {name: sum(int(str(one.get(name, 0))) for one in done) for name in ("left", "failed", "requests")}
    times = f"gone in {statistics.median(gone):.2f} s (most {max(gone):.2f}), back in {statistics.median(back):.1f} s"
    counts = f"left {sums['left']}, {sums['failed']} of {sums['requests']} requests failed"
    print(f"{how:9} {what:16} {len(done):3} rounds: {times}, {counts}", flush=True)
    return [{"how": how, "what": what, **one} for one in done]


if __name__ == "__main__":
    sys.exit(main())
