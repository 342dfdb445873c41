"""What Ray Serve costs in HAProxy mode: a request at zero until its first token, the time it adds, the CPU of many streams.

It also measures how fast requests are refused while an engine cannot start, and served once it can.

    .venv/bin/python -m benchmarks.ray [--rounds 7] [--sglang] [--what zero,path,broken] [--json FILE]

Needs root and `make ray`; `--sglang` needs `make engine`. One raylet in namespaces of its own. Medians and ratios within one run
count: machines are shared. `bare` is the engine of a cold replica, asked at its own port.
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

from benchmarks.ray_box import HTTP_PORT, ROOT, RayBox, write_app

if TYPE_CHECKING:
    from collections.abc import Sequence

SCALING = "target_concurrency=64, max_concurrency=64, max_containers=1, scaledown_window_s=2"
STAYS = "target_concurrency=64, max_concurrency=64, max_containers=1, min_containers=1"
URL = f"http://127.0.0.2:{HTTP_PORT}"
WHAT = ("zero", "path", "broken")
STREAMS = 32
BROKEN_ROUNDS = 3


def main() -> int:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sglang", action="store_true", help="the tiny model on the real SGLang, too")
    parser.add_argument("--what", default=",".join(WHAT), help="some of these only")
    parser.add_argument("--json", metavar="FILE", type=Path)
    given = parser.parse_args()
    what = given.what.split(",")
    if unknown := set(what) - set(WHAT):
        parser.error(f"--what {', '.join(unknown)}: there are {', '.join(WHAT)}")
    if reason := RayBox.missing():
        parser.error(reason)
    place = Path(tempfile.mkdtemp(prefix="tm-", dir="/tmp"))
    facts: dict[str, object] = {"machine": platform.platform(), "cpus": os.cpu_count(), "at": time.time()}
    try:
        with RayBox(place, nodes=1) as box:
            facts["cluster_up_s"] = box.up_s
            write_app(place, "small", scaling=SCALING)
            if "zero" in what:
                facts["small"] = _from_zero(box, place, place / "small.py", "small", given.rounds)
            if "path" in what:
                facts["path"] = _path(box, place)
            if "broken" in what:
                facts["broken"] = _broken(box, place)
                facts["next_worker_mb"] = _next_worker(box, place)
            if given.sglang:
                app = _sglang_app(place)
                facts["tiny-qwen3"] = _from_zero(box, place, app, "tiny-cpu", given.rounds, model="tiny-qwen3")
    finally:
        shutil.rmtree(place, ignore_errors=True)
    facts["load"] = os.getloadavg()
    if given.json:
        given.json.write_text(json.dumps(facts, indent=1) + "\n")
    return 0


def _from_zero(box: RayBox, place: Path, app: Path, name: str, rounds: int, *, model: str = "") -> dict[str, object]:
    """Restored and cold."""
    _torpor(box, ["snapshot", "create", str(app), str(place / "captured" / name)])
    _torpor(box, ["snapshot", "push", str(place / "captured" / name), str(place / "store" / name)])
    found: dict[str, object] = {}
    for how in ("restored", "cold"):
        snapshots = ["--snapshots", str(place / "store")] if how == "restored" else []
        _torpor(box, ["ray", "up", str(app), "--port", str(HTTP_PORT), *snapshots])
        box.do("until_answered", model=model or name, limit_s=200.0)  # the first one fetches, and runs build steps
        done: object = box.do("from_zero", name=name, model=model or name, rounds=rounds, limit_s=900.0)["rounds"]
        _torpor(box, ["ray", "down"])
        assert isinstance(done, list)
        assert {one["start"] for one in done} == {how}
        found[how] = [one["first_s"] for one in done]
        print(
            f"{name}: from zero to the first token, {how}: median {statistics.median(found[how]):.2f} s of {rounds}",
            flush=True,
        )
    return found


def _path(box: RayBox, place: Path) -> dict[str, object]:
    """Time and CPU: the bare engine, through HAProxy, and through the ingress by model."""
    apps = [write_app(place, name, scaling=STAYS, standin="token_s=0.05") for name in ("small", "other")]
    _torpor(box, ["ray", "up", *map(str, apps), "--port", str(HTTP_PORT)])
    box.do("torpor", words=["ray", "down", "other"])
    for prefix in ("", "/small"):
        box.do("until_answered", model="small", prefix=prefix)
    bare = str(box.do("bare_url")["url"])
    found: dict[str, object] = {}
    for what, url in (("bare", bare), ("haproxy", f"{URL}/small"), ("by_model", URL)):
        times = box.do("latency", model="small", url=url)
        found[what] = {**times, **box.do("streams", model="small", url=url, count=STREAMS)}
        print(what, found[what], flush=True)
    _torpor(box, ["ray", "down"])
    return found


def _broken(box: RayBox, place: Path) -> list[dict[str, object]]:
    """An engine that cannot start: seconds until requests are refused, and from the cure to the first answer."""
    found = []
    for number in range(BROKEN_ROUNDS):
        app = write_app(place, f"broken{number}", scaling=SCALING)
        cure = app.read_text()
        app.write_text(cure.replace("warmup_requests=1,", "warmup_requests=1, fault=Fault.EXIT_AT_START,"))
        _torpor(box, ["ray", "up", str(app), "--port", str(HTTP_PORT)])
        found.append(box.do("broken_round", model=f"broken{number}", app=str(app), cure=cure))
        print("broken", found[-1], flush=True)
        _torpor(box, ["ray", "down"])
    return found


def _next_worker(box: RayBox, place: Path) -> float:
    """Memory of its own that an idle worker with everything imported has, MB."""
    app = write_app(place, "small", scaling=SCALING)
    _torpor(box, ["ray", "up", str(app), "--port", str(HTTP_PORT)])
    told = box.do("next_replica", model="small")
    _torpor(box, ["ray", "down"])
    uss = told["uss"]
    assert isinstance(uss, list)
    taken_mb = max(uss) / 1e6
    print(f"an idle worker: {taken_mb:.0f} MB", flush=True)
    return float(taken_mb)


def _sglang_app(place: Path) -> Path:
    """The tiny deployment, with other scaling."""
    text = (ROOT / "apps" / "tiny_cpu.py").read_text()
    text = text.replace("Path(__file__).resolve().parent.parent", f"Path({str(ROOT)!r})")
    text = text.replace("scaling=Scaling(target_concurrency=4, max_concurrency=8)", f"scaling=Scaling({SCALING})")
    app = place / "tiny_cpu.py"
    app.write_text(text)
    return app


def _torpor(box: RayBox, words: Sequence[str]) -> None:
    done = box.do("torpor", words=list(words), limit_s=400.0)
    if done["code"]:
        raise SystemExit(f"torpor {' '.join(words)} ended with {done['code']}: {done['err']}")


if __name__ == "__main__":
    sys.exit(main())
