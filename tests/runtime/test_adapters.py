"""Adapters with the stand-in engine: loaded, listed, warmed up, asked after each wake; and what a wake can do to them."""

from __future__ import annotations

import json
import re
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.conftest import BOTH_DIALECTS
from tests.tiny_adapter import write_adapter
from torpor import (
    Adapter,
    CanaryError,
    ConfigurationError,
    Deployment,
    EngineRequestError,
    Model,
    PreflightError,
    TorporError,
)
from torpor.lifecycle import Lifecycle
from torpor.plan.collect import plan_of
from torpor.plugin_checks import accepted
from torpor.runtime.boot import Boot
from torpor.runtime.canary import Canary, canary_problem, canary_summary
from torpor.testing import Fault, StandIn, StandInVLLM
from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torpor import Task

NAMES = ("m", "sql", "law")


@pytest.fixture
def loaded(tmp_path: Path) -> Iterator[Callable[..., Boot]]:
    """Makes a boot of a model with two adapters; ends it."""
    made: list[Boot] = []

    def make(engine: StandIn, task: Task = "chat") -> Boot:
        made.append(Boot(with_adapters(tmp_path, engine, task)))
        return made[-1]

    yield make
    for boot in made:
        boot.stop()


def with_adapters(folder: Path, engine: StandIn, task: Task = "chat") -> Deployment:
    """A model with the adapters `sql` and `law`, whose files are below the folder."""
    for seed, name in enumerate(("sql", "law")):
        write_adapter(folder / name, seed)
    adapters = {name: Adapter(path=str(folder / name)) for name in ("sql", "law")}
    model = Model(path=str(folder), served_name="m", adapters=adapters)
    return Deployment(name="d", model=model, plugins=(engine,), port=unused_port(), task=task)


def asked(boot: Boot, model: str) -> httpx.Response:
    """A public request's answer."""
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "temperature": 0}
    return httpx.post(f"http://127.0.0.1:{boot.deployment.port}/v1/chat/completions", json=body, timeout=30)


@BOTH_DIALECTS
def test_each_adapter_is_served_by_its_name(
    standin: type[StandIn], loaded: Callable[..., Boot], tmp_path: Path
) -> None:
    """Cold and woken alike: listed, warmed up, with answers of its own; an unknown name is a 404."""
    boot = loaded(standin(journal=str(tmp_path / "journal"), warmup_requests=1))
    boot.cold_start()
    assert boot.canary is not None
    assert set(boot.canary.answer["adapters"]) == {"sql", "law"}  # type: ignore[call-overload] # it is an object
    assert canary_summary(boot.canary).endswith("; adapters: sql, law")
    paths = [json.loads(line)["path"] for line in (tmp_path / "journal").read_text().splitlines()]
    assert paths.count("/v1/chat/completions") == 6  # a warm-up and a canary for each name
    boot.serve()
    listed = httpx.get(f"http://127.0.0.1:{boot.deployment.port}/v1/models", timeout=30).json()["data"]
    assert [card["id"] for card in listed] == list(NAMES)
    cold = [asked(boot, name).json()["choices"][0]["message"]["content"] for name in NAMES]
    assert len(set(cold)) == 3
    boot.sleep(for_snapshot=False)
    boot.wake()
    assert [asked(boot, name).json()["choices"][0]["message"]["content"] for name in NAMES] == cold
    refused = asked(boot, "nope")
    assert (refused.status_code, "there are: m, sql, law." in refused.text) == (404, True), refused.text
    told = {record.stage for record in boot.report.records if record.adapters == ["sql", "law"]}
    assert told == {"warmup", "canary", "canary_check"}


@pytest.mark.fault("an adapter comes back from a sleep as another one", area="wake", outcome="refused")
@BOTH_DIALECTS
@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (Fault.ADAPTERS_SWAPPED, r"'sql' answers .* differently: .* It answers as 'law' did: another adapter, or none"),
        pytest.param(
            Fault.ADAPTERS_IGNORED, r"'sql' answers .* differently: .* It answers as 'm' did", marks=pytest.mark.slow
        ),
        pytest.param(Fault.ADAPTER_LOST, r"canary request to 'sql' got 500 .*KeyError: .*sql", marks=pytest.mark.slow),
    ],
)
def test_an_adapter_that_a_wake_changed_is_never_served(
    standin: type[StandIn], fault: Fault, told: str, loaded: Callable[..., Boot]
) -> None:
    """The model itself answers as before; the canary asks each adapter, too."""
    boot = loaded(standin(fault=fault, warmup_requests=0))
    boot.cold_start()
    boot.sleep(for_snapshot=False)
    with pytest.raises((CanaryError, EngineRequestError), match=told):
        boot.wake()
    assert boot.running_engine.poll() is not None


@pytest.mark.slow
@pytest.mark.parametrize("task", ["generate", "embed", "rerank", "classify", "score"])
def test_adapters_of_every_task_are_compared(task: Task, loaded: Callable[..., Boot]) -> None:
    """Each is asked as the task asks."""
    boot = loaded(StandInVLLM(fault=Fault.ADAPTERS_SWAPPED, warmup_requests=1), task)
    boot.cold_start()
    boot.sleep(for_snapshot=False)
    with pytest.raises(CanaryError, match=rf"'sql' answers the task '{task}' differently"):
        boot.wake()


@pytest.mark.fault("an adapter does not fit the engine or the model", area="start", outcome="refused")
@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"r": 64}, r"Model\.adapters\['law'\] has the rank 64, and the engine is configured for 16"),
        ({"peft_type": "IA3"}, r"Model\.adapters\['law'\]: .* has the peft_type 'IA3'"),
    ],
)
def test_a_wrong_adapter_is_refused_before_anything_is_started(
    config: dict[str, Any], told: str, tmp_path: Path
) -> None:
    """By every command that checks an app, by the plan, and by the start itself."""
    deployment = with_adapters(tmp_path, StandIn())
    write_adapter(tmp_path / "law", **config)
    with pytest.raises(ConfigurationError, match=told):
        accepted(deployment)
    plan = plan_of(Lifecycle(deployment))
    (found,) = (finding for finding in plan.warnings if finding.what == "adapters")
    assert found.level == "error"
    boot = Boot(deployment)
    with pytest.raises(PreflightError, match=rf"Preflight check 'adapters' failed: {told}"):
        boot.cold_start()
    assert boot.engine is None


def test_a_folder_that_is_not_there_is_an_error_of_the_plan_and_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A laptop may lack a folder of the image, so the plugins' checks pass over it, and so does the plan of an app for Modal."""
    monkeypatch.setitem(sys.modules, "modal", ModuleType("modal"))
    deployment = with_adapters(tmp_path, StandIn())
    (tmp_path / "law").rename(tmp_path / "other")
    assert accepted(deployment) == ()
    assert [finding for finding in plan_of(Lifecycle(deployment)).warnings if finding.what == "adapters"] == []
    monkeypatch.delitem(sys.modules, "modal")
    (found,) = (finding.seen for finding in plan_of(Lifecycle(deployment)).warnings if finding.what == "adapters")
    assert "there is no folder" in found
    with pytest.raises(PreflightError, match=r"there is no folder .*/law"):
        Boot(deployment).cold_start()


def test_an_adapter_on_the_hub_needs_a_plugin_that_fetches_it() -> None:
    """An engine would take any commit of the repository."""
    adapters = {"law": Adapter(repo_id="owner/law", revision="0" * 40)}
    deployment = Deployment(name="d", model=Model(path="/m", adapters=adapters), plugins=(StandIn(),))
    with pytest.raises(TorporError, match=r"'law'\] is the repository 'owner/law', and no plugin fetches it: add"):
        plan_of(Lifecycle(deployment))


def test_the_plan_lists_the_adapters(tmp_path: Path) -> None:
    """As values for programs; `torpor plan` has a line for each."""
    made = plan_of(Lifecycle(with_adapters(tmp_path, StandIn())))
    model = made.as_json()["model"]
    assert isinstance(model, dict)
    assert json.loads(json.dumps(model["adapters"]["sql"]))["path"] == str(tmp_path / "sql")
    assert made.engine.flags["--lora-paths"].value == f"sql={tmp_path / 'sql'} law={tmp_path / 'law'}"


@pytest.mark.parametrize(
    ("adapters", "told"),
    [
        ([], r"answer\.adapters is \[\], not an object of answers"),
        ({"sql": 1}, r"answer\.adapters\.'sql': is 1, not an object"),
        ({"sql": {"prompt": "p", "text": "t", "tokens": "1"}}, r"answer\.adapters\.'sql': tokens is '1', not a whole"),
    ],
)
def test_a_damaged_record_of_an_adapter_is_told(adapters: object, told: str) -> None:
    """A manifest comes from a file."""
    answer = {"prompt": "p", "text": "t", "tokens": 1, "adapters": adapters}
    assert re.search(told, canary_problem(Canary(kind="text", answer=answer, questions={})))
