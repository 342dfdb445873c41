"""`torpor.platforms.ray` with Serve's own proxy in place of HAProxy, deployed from a file. The tests share a cluster, in order."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from benchmarks.ray_box import HTTP_PORT, RayBox, write_app

from tests.platforms.ray.conftest import refuse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.ray, pytest.mark.criu, pytest.mark.xdist_group("ray"), pytest.mark.timeout(600)]

SCALING = "target_concurrency=8, max_concurrency=8, max_containers=1, scaledown_window_s=3"
MODELS = ("one", "two")


@pytest.fixture(scope="module")
def box(place: Path) -> Iterator[RayBox]:
    """A cluster with Ray's dashboard, to which `serve deploy` speaks."""
    if reason := RayBox.missing():
        refuse(reason)
    for name in MODELS:
        write_app(place, name, scaling=SCALING, standin="token_s=0.01")
    with RayBox(place, nodes=2, haproxy=False, dashboard=True) as box:
        yield box


def run(box: RayBox, *words: str) -> str:
    """Run a command inside; returns its standard output."""
    done: Any = box.do("command", words=list(words))
    assert done["code"] == 0, done["err"][-2000:]
    return str(done["out"])


def test_serve_deploy_takes_the_file_that_torpor_prints(box: RayBox, place: Path) -> None:
    """Serve builds the applications from it; the models are there, restored from the store that it names."""
    app = str(place / "one.py")
    run(box, "torpor", "snapshot", "create", app, str(place / "captured"))
    run(box, "torpor", "snapshot", "push", str(place / "captured"), str(place / "store" / "one"))
    files = [str(place / f"{name}.py") for name in MODELS]
    text = run(box, "torpor", "ray", "manifest", *files, "--snapshots", str(place / "store"))
    config = place / "serve.yaml"
    config.write_text(
        text.replace("port: 8000", f"port: {HTTP_PORT}")
    )  # of Serve, and of the application that forwards to it
    run(box, "serve", "deploy", str(config))
    box.do("until_answered", model="one", limit_s=120.0)
    for name in MODELS:
        box.do("wait_replicas", name=name, count=0)
    first: Any = [box.do("ask", model=name)["answers"] for name in MODELS]
    assert [(one["status"], one["start"]) for (one,) in first] == [(200, "restored"), (200, "cold")]
    told = json.loads(run(box, "torpor", "ray", "status", "--json"))
    assert [(one["name"], one["status"]) for one in told["served"]] == [
        ("models", "RUNNING"),
        ("one", "RUNNING"),
        ("two", "RUNNING"),
    ]


def test_no_request_around_zero_is_lost_without_haproxy(box: RayBox) -> None:
    """200 requests, 25 of each 50 while the last replica stops or exactly at zero."""
    told: Any = box.do("around_zero", model="one", requests=200, rounds=4, limit_s=300.0)
    assert told["bad"] == []
    assert told["requests"] == 200


def test_a_client_that_leaves_is_cancelled_without_haproxy(box: RayBox) -> None:
    """Serve's proxy tells the replica, and the engine stops working for it."""
    assert 0 <= float(str(box.do("leave", model="one")["seconds"])) <= 5.0


def test_down_removes_what_serve_deploy_has_deployed(box: RayBox) -> None:
    """One, then all."""
    run(box, "torpor", "ray", "down", "two")
    listed: Any = box.do("get", path="/v1/models")
    assert [one["id"] for one in json.loads(listed["text"])["data"]] == ["one"]
    run(box, "torpor", "ray", "down")
    assert json.loads(run(box, "torpor", "ray", "status", "--json"))["served"] == []


def test_an_idle_replica_is_kept_ahead_of_traffic(box: RayBox, place: Path) -> None:
    """`buffer_containers=1`: a second one while there are requests, and none without."""
    scaling = "target_concurrency=8, max_concurrency=8, max_containers=3, buffer_containers=1, scaledown_window_s=5"
    app = write_app(place, "ahead", scaling=scaling, standin="token_s=0.01")
    run(box, "torpor", "ray", "up", str(app), "--port", str(HTTP_PORT))
    answers: Any = box.do("ask", model="ahead", tokens=1000)["answers"]
    assert [one["status"] for one in answers] == [200], answers
    box.do("wait_replicas", name="ahead", count=2)
    box.do("wait_replicas", name="ahead", count=0)
    run(box, "torpor", "ray", "down")
