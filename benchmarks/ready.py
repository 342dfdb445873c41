"""How long `torpor up` takes until it serves, against the engine alone: cold starts without a snapshot.

    .venv/bin/python -m benchmarks.ready [--app apps/tiny_cpu.py] [--runs 7] [--results FILE]

Four kinds of start, in turn, so that other load on the machine affects all:

    engine   the engine's own command line, as the plugin launches it, without a guard (TORPOR_UNGUARDED=1)
    none     torpor up APP --backend none    warm-up and canary before the first request
    standby  torpor up APP                   the same, and one sleep and one wake
    serve    torpor serve APP                the first request starts the engine

Each start is timed from the start of the process until `GET /v1/models` answers 200, and to the first token of a streamed answer
that was asked for at that moment. Of Torpor's starts the stage records give the parts; `before_launch` is what lies between the
start of the command and the moment that the engine's process exists. Without `--app` the engine is the stand-in. Every figure is a
median. Writes a JSON; with another app, its name is part of the file's.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from benchmarks.ran import what_ran

from torpor.app_file import App, load_app
from torpor.build_steps.relocation import relocate
from torpor.cli.timing import command, first_token, running
from torpor.engine.start import engines_started_by
from torpor.platforms.local.server import LocalServer
from torpor.snapshots.store.paths import cache_root

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping, Sequence

    from torpor.engine.handle import Engine
    from torpor.guard import GuardRules

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 300.0
STAND_IN = """
from torpor import Deployment, Model
from torpor.testing import StandIn

deployment = Deployment(
    name="ready-stand-in", model=Model(path="/tiny", served_name="tiny"), plugins=(StandIn(),), port={port}
)
"""
KINDS = ("engine", "none", "standby", "serve")


class Seen(Exception):  # noqa: N818 - it is no error
    """Carries the command line of an engine that is not started."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        super().__init__()
        self.argv, self.env = list(argv), dict(env)


def engine_command(app: App) -> Seen:
    """The command line and the environment with which the plugin would launch its engine."""

    def look(argv: Sequence[str], *, env: Mapping[str, str], cwd: Path | None, guard: GuardRules | None) -> Engine:  # noqa: ARG001
        raise Seen(argv, env)

    recipe = relocate(app.lifecycle.recipe(), cache_root(), app.deployment.name)
    try:
        with engines_started_by(look):
            app.lifecycle.launch(recipe)
    except Seen as seen:
        return seen
    raise SystemExit("the plugin of this app starts no engine")


def models_answered(process: subprocess.Popen[str], began: float, port: int) -> float:
    """Seconds until `GET /v1/models` answers 200."""
    while time.monotonic() - began < LIMIT_S and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10.0)
        try:
            connection.request("GET", "/v1/models")
            if connection.getresponse().status == http.client.OK:
                return time.monotonic() - began
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.002)
    raise SystemExit(f"no answer of /v1/models; the command ended with {process.poll()}")


def one_start(kind: str, app: App, own: Seen) -> dict[str, float]:
    """Time one start; seconds."""
    port, model = app.deployment.port, app.deployment.model.served_name
    with tempfile.TemporaryDirectory() as folder:
        records = Path(folder) / "records.jsonl"
        argv = {
            "engine": own.argv,
            "none": command("up", str(app.file), "--backend", "none", "--records", str(records)),
            "standby": command("up", str(app.file), "--records", str(records)),
            "serve": command("serve", str(app.file), "--port", str(port + 1)),
        }[kind]
        env = {**own.env, "TORPOR_UNGUARDED": "1"} if kind == "engine" else {}
        argv = ["env", *(f"{name}={value}" for name, value in env.items()), *argv] if env else argv
        with running(argv) as (process, began):
            wall = time.time() - (time.monotonic() - began)
            if kind == "serve":
                listening = models_answered(process, began, port + 1)
                seen = first_token(process, began, port=port + 1, model=model, timeout_s=LIMIT_S)
                return {"models_s": listening, "first_token_s": seen.first_token_s}
            ready = models_answered(process, began, port)
            seen = first_token(process, began, port=port, model=model, timeout_s=LIMIT_S)
        return {"models_s": ready, "first_token_s": seen.first_token_s, **parts(records, wall)}


def parts(records: Path, began: float) -> dict[str, float]:
    """The stages of a start, and what lies before them; empty without records."""
    if not records.exists():
        return {}
    stages = [json.loads(line) for line in records.read_text().splitlines()]
    found: dict[str, float] = {}
    for stage in stages:
        found[stage["stage"]] = found.get(stage["stage"], 0.0) + stage["seconds"]
    found["before_launch"] = next(one["ended_at"] for one in stages if one["stage"] == "launch") - began
    return found


def sums(starts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The medians of all figures."""
    return {name: round(statistics.median(one[name] for one in starts), 4) for name in starts[0]}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--app", default="", help="the app file; by default the stand-in")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"of {', '.join(KINDS)}")
    parser.add_argument("--results", type=Path, default=None)
    options = parser.parse_args()
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])
    kinds, name = options.kinds.split(","), Path(options.app).stem or "stand-in"
    with tempfile.TemporaryDirectory() as folder:
        file = options.app
        if not file:
            file = str(Path(folder) / "app.py")
            Path(file).write_text(STAND_IN.format(port=18460))
        app = load_app(file)
        LocalServer(app.deployment).build()
        own = engine_command(app)
        starts: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
        for number in range(options.runs + 1):  # the first of each kind is not counted
            for kind in kinds:
                seen = one_start(kind, app, own)
                if number:
                    starts[kind].append(seen)
    results = {
        **what_ran(f"ready-{name}"),
        "medians_s": {kind: sums(seen) for kind, seen in starts.items()},
        "starts": starts,
    }
    target = options.results or ROOT / "benchmarks" / "results" / f"ready-{name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(results, indent=1) + "\n")
    for kind in kinds:
        print(kind, json.dumps(results["medians_s"][kind]))  # type: ignore[index]


if __name__ == "__main__":
    main()
