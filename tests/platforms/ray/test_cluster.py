"""`torpor.platforms.ray` on a real cluster: two raylets and HAProxy, in namespaces of their own. The tests share it, in order."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from benchmarks.ray_box import HTTP_PORT, RayBox, write_app

from tests.platforms.ray.conftest import refuse
from torpor.testing.faults import CRASH_WORD

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.ray, pytest.mark.criu, pytest.mark.xdist_group("ray"), pytest.mark.timeout(600)]

SCALING = "target_concurrency=8, max_concurrency=8, max_containers=1, scaledown_window_s=3"
MODELS = ("one", "two", "three")


@pytest.fixture(scope="module")
def box(place: Path) -> Iterator[RayBox]:
    """The cluster, with three models deployed from one store; the third has no snapshot."""
    if reason := RayBox.missing():
        refuse(reason)
    for name in MODELS:
        write_app(place, name, scaling=SCALING, standin="token_s=0.01")
    with RayBox(place, nodes=3) as box:
        for name in MODELS[:2]:
            torpor(box, "snapshot", "create", str(place / f"{name}.py"), str(place / "captured" / name))
            torpor(box, "snapshot", "push", str(place / "captured" / name), str(place / "store" / name))
        files = [str(place / f"{name}.py") for name in MODELS]
        torpor(box, "ray", "up", *files, "--snapshots", str(place / "store"), "--port", str(HTTP_PORT))
        yield box


def torpor(box: RayBox, *words: str, code: int = 0) -> dict[str, Any]:
    """Run the command inside, as a user of a node does."""
    done: dict[str, Any] = box.do("torpor", words=list(words))
    assert done["code"] == code, done["err"][-2000:]
    return done


def ask(box: RayBox, model: str, count: int = 1, **more: Any) -> list[dict[str, Any]]:
    """Ask a model by its name, all at once."""
    answers: Any = box.do("ask", model=model, count=count, **more)["answers"]
    return list(answers)


def test_three_models_at_one_address_start_when_they_are_asked(box: RayBox) -> None:
    """Restored where the store has a snapshot that fits the node, else cold; each answers with its own name."""
    first = {name: ask(box, name)[0] for name in MODELS}
    assert [one["status"] for one in first.values()] == [200, 200, 200]
    assert [one["start"] for one in first.values()] == ["restored", "restored", "cold"]
    listed: Any = box.do("get", path="/v1/models")
    assert [one["id"] for one in json.loads(listed["text"])["data"]] == list(MODELS)
    (unknown,) = ask(box, "four")
    assert unknown["status"] == 404
    assert "one, three, two" in unknown["text"]
    told: Any = box.do("logged", word="three starts cold, because no snapshot fits")["lines"]
    assert told, "the log of the replica says why it started cold"


def test_only_a_public_path_starts_a_replica(box: RayBox) -> None:
    """A scanner that asks for any path gets 404 from the application at `/`, whether the model serves or not."""
    box.do("wait_replicas", name="two", count=0)
    told: Any = box.do("get", path="/favicon.ico", headers={"x-torpor-model": "two"})
    assert (told["status"], json.loads(told["text"])["error"]["code"]) == (404, "not_found"), told
    told = box.do("get", path="/v1/models/two")
    assert told["status"] == 200, told
    status: Any = box.do("status")
    assert {one["name"]: one["replicas"] for one in status["served"]}["two"] == {}


def test_a_burst_above_the_concurrency_is_queued(box: RayBox) -> None:
    """50 at once at a replica that takes 8: the guard refuses none, through the ingress and without it."""
    assert {one["status"] for one in ask(box, "one", 50, tokens=16)} == {200}
    assert {one["status"] for one in ask(box, "one", 50, tokens=16, prefix="/one")} == {200}


def test_the_next_replica_gets_a_process_that_waits_for_it(box: RayBox) -> None:
    """A node that had a replica has an idle worker with everything imported. It becomes the next replica, not one more process."""
    told: Any = box.do("next_replica", model="one")
    assert told["replica"] in told["idle"], told


@pytest.mark.fault("a client leaves in the middle of an answer on Ray", area="Ray Serve", outcome="held")
@pytest.mark.parametrize("prefix", ["", "/one"], ids=["by model", "its prefix"])
def test_a_client_that_leaves_is_cancelled(box: RayBox, prefix: str) -> None:
    """Its engine stops working for it, long before the answer would be whole."""
    assert 0 <= float(str(box.do("leave", model="one", prefix=prefix)["seconds"])) <= 5


def test_each_model_goes_to_zero_alone_and_loses_no_request(box: RayBox) -> None:
    """200 requests while the last replica stops, or exactly at zero: all answered; the others keep their state."""
    told: Any = box.do("around_zero", model="one", requests=200, rounds=4, limit_s=300.0)
    assert told["bad"] == []
    assert told["requests"] == 200


def test_status_and_down_know_torpors_applications_only(box: RayBox) -> None:
    """`down NAME` removes one and leaves the others; an unknown name removes nothing."""
    box.do("foreign")
    told = json.loads(torpor(box, "ray", "status", "--json")["out"])
    assert [one["name"] for one in told["served"]] == ["models", *sorted(MODELS)]
    assert told["others"] == ["somebody"]
    assert told["nodes"] == 3
    assert "there are: models, one, three, two" in torpor(box, "ray", "down", "four", code=2)["err"]
    torpor(box, "ray", "down", "two")
    listed: Any = box.do("get", path="/v1/models")
    assert [one["id"] for one in json.loads(listed["text"])["data"]] == ["one", "three"]
    (gone,) = ask(box, "two")
    assert gone["status"] == 404, gone
    left = {one["name"] for one in json.loads(torpor(box, "ray", "status", "--json")["out"])["served"]}
    assert left == {"models", "one", "three"}
    torpor(box, "ray", "down")
    told = json.loads(torpor(box, "ray", "status", "--json")["out"])
    assert (told["served"], told["others"]) == ([], ["somebody"])


@pytest.mark.fault("an engine cannot start on Ray", area="Ray Serve", outcome="refused")
def test_an_engine_that_cannot_start_is_told_and_tried_again(box: RayBox, place: Path) -> None:
    """503 with the reason and Retry-After, at once while its actor is there; it serves after the cure, without a deployment."""
    app = write_app(place, "broken", scaling=SCALING)
    cure = app.read_text()
    app.write_text(cure.replace("warmup_requests=1,", "warmup_requests=1, fault=Fault.EXIT_AT_START,"))
    torpor(box, "ray", "up", str(app), "--port", str(HTTP_PORT))
    (refused,) = ask(box, "broken")
    assert (refused["status"], refused["retry_after"]) == (503, "10"), refused
    assert "The engine did not start" in refused["text"]
    told: Any = box.do("broken_round", model="broken", app=str(app), cure=cure)
    assert told["codes"] == ["503 start_failed"]
    assert max(told["refused_s"]) <= 10, told
    assert told["cured_s"] <= 60, told
    torpor(box, "ray", "down")


@pytest.mark.fault("an engine hangs on Ray while its server lives", area="Ray Serve", outcome="restarted")
def test_an_engine_that_does_not_answer_is_replaced(box: RayBox, place: Path) -> None:
    """After three questions, ten seconds apart; its client gets 502, and another replica answers."""
    app = write_app(
        place, "hangs", scaling=SCALING, standin="fault=Fault.HANG_WHILE_SERVING", more="health_timeout_s=2.0,"
    )
    torpor(box, "ray", "up", str(app), "--port", str(HTTP_PORT))
    (cut,) = ask(box, "hangs", word=CRASH_WORD)
    assert cut["status"] == 502, cut
    box.do("until_answered", model="hangs")
    torpor(box, "ray", "down")


@pytest.mark.fault("the node, the replica or the engine of a model dies on Ray", area="Ray Serve", outcome="restarted")
@pytest.mark.parametrize("what", ["engine", "replica", "raylet"])
def test_what_dies_is_replaced_and_leaves_nothing(box: RayBox, place: Path, what: str) -> None:
    """Every process of the old engine is gone; another replica answers."""
    app = write_app(place, "one", scaling=f"{SCALING}, min_containers=1", more='region="workers",')
    torpor(box, "ray", "up", str(app), "--snapshots", str(place / "store"), "--port", str(HTTP_PORT))
    told: Any = box.do("kill_round", what=what, model="one")
    torpor(box, "ray", "down")
    assert told["hit"] >= 1
    assert told["left"] == 0
    assert told["gone_s"] <= 10
    assert 0 <= told["back_s"] <= 60
