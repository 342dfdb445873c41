"""The engines' own metrics: labelled, merged, and never taken for Torpor's."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import httpx
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tests.platforms.small import a_deployment
from torpor.platforms.local.backends import Standby
from torpor.platforms.local.metrics import engines
from torpor.platforms.local.metrics.engines import MOST_BYTES, engine_metrics
from torpor.platforms.local.metrics.figures import CommandFigures
from torpor.platforms.local.server import LocalServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from prometheus_client import Metric

GOOD = """# HELP x_seconds Time.
# TYPE x_seconds counter
x_seconds_total{kind="a"} 1
# TYPE torpor_starts counter
torpor_starts_total 9
"""
OTHER_TYPE = "# TYPE x_seconds gauge\nx_seconds 5\n"


def text_of(metrics: list[Metric]) -> str:
    """As a scrape shows them."""

    class Shown:
        def collect(self) -> Iterator[Metric]:
            yield from metrics

        def describe(self) -> list[Metric]:
            return []

    registry = CollectorRegistry()
    registry.register(Shown())
    return generate_latest(registry).decode()


def merged(*texts: str) -> str:
    """The metrics of several replicas that say this."""
    found: dict[str, Metric] = {}
    for number, text in enumerate(texts, start=1):
        for family in text_string_to_metric_families(text):
            engines._merge(found, family, {"torpor_deployment": "d", "torpor_replica": f"d-{number}"})
    return text_of(list(found.values()))


def test_replicas_do_not_collide() -> None:
    """One family for all, with a replica's name on each sample."""
    text = merged(GOOD, GOOD)
    assert text.count("# TYPE x_seconds_total counter") == 1
    for replica in ("d-1", "d-2"):
        assert f'x_seconds_total{{kind="a",torpor_deployment="d",torpor_replica="{replica}"}} 1.0' in text


def test_an_engine_cannot_speak_for_torpor_nor_for_another_replica() -> None:
    """Names of Torpor's are left out, its labels are overwritten, and so is a type that differs from the first one's."""
    forged = '# TYPE y gauge\ny{torpor_deployment="other",torpor_replica="other-1"} 1\n'
    text = merged(GOOD, OTHER_TYPE, forged)
    assert "torpor_starts" not in text
    assert "5.0" not in text
    assert 'y{torpor_deployment="d",torpor_replica="d-3"} 1.0' in text


@pytest.mark.fault(
    "an engine's metrics have names, labels or times that spoil a scrape", area="metrics", outcome="held"
)
@pytest.mark.parametrize(
    "hostile",
    [
        '{"torpor,starts_total"} 9\n',  # escaped, it would be torpor_starts_total
        'y{"!.b"="c"} 9\n',  # escaped, it would begin with __
        "y 9 inf\n",
        "y 9 nan\n",
        "y 9 1e300\n",
    ],
)
def test_no_sample_of_an_engine_spoils_the_scrape(hostile: str) -> None:
    """The others can be read: each name is written as it was, and no sample has a time of its own."""
    text = merged(hostile + "z 1\n")
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    assert {sample.name for sample in samples} in ({"z"}, {"y", "z"})
    assert {sample.timestamp for sample in samples} == {None}


@pytest.mark.fault("an engine's metrics come byte by byte", area="metrics", outcome="held")
def test_metrics_that_come_too_slowly_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a deadline for the whole answer: one engine must not hold up every scrape."""
    monkeypatch.setattr(engines, "_DEADLINE_S", 0.05)

    def slowly() -> Iterator[bytes]:
        for _ in range(1000):
            time.sleep(0.01)
            yield b"#"

    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=slowly()))
    with (
        httpx.Client(transport=transport, base_url="http://engine") as client,
        pytest.raises(ValueError, match="no whole answer within"),
    ):
        engines._text(client)


@pytest.mark.parametrize("status", [404, 302])
def test_another_answer_than_200_is_none(status: int) -> None:
    """An engine without metrics is no error of the scrape; nor is one that sends Torpor elsewhere."""
    transport = httpx.MockTransport(lambda _: httpx.Response(status, headers={"location": "http://elsewhere/"}))
    with (
        httpx.Client(transport=transport, base_url="http://engine") as client,
        pytest.raises(ValueError, match=str(status)),
    ):
        engines._text(client)


@pytest.mark.fault("an engine's metrics never end", area="metrics", outcome="held")
def test_metrics_that_never_end_are_cut_off() -> None:
    """At 8 MiB."""

    def endless() -> Iterator[bytes]:
        while True:
            yield b"#" * 65536

    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=endless()))
    with (
        httpx.Client(transport=transport, base_url="http://engine") as client,
        pytest.raises(ValueError, match=r"\d+") as error,
    ):
        engines._text(client)
    assert MOST_BYTES < int(str(error.value)) <= MOST_BYTES + 65536


def test_the_figures_of_a_command_follow_its_engine(tmp_path: Path) -> None:
    """Starting, serving, asleep; an engine that sleeps is not asked for its metrics."""
    server = LocalServer(a_deployment(), backend=Standby(), root=tmp_path)
    figures = CommandFigures("small", lambda: server)
    assert [one.state for one in CommandFigures("small", lambda: None)()] == ["starting"]
    try:
        server.start()
        (serving,) = figures()
        passed_on, read = engine_metrics([("small", name, boot) for name, boot in serving.boots])
        server.sleep()
        (asleep,) = figures()
    finally:
        server.stop()
    assert (serving.state, serving.replicas, serving.in_flight) == ("serving", {"serving": 1}, 0)
    assert serving.memory["host"] > 1e6
    assert read == {("small", "small"): True}
    assert 'sglang:num_running_reqs{torpor_deployment="small",torpor_replica="small"}' in text_of(passed_on)
    assert asleep.state == "asleep"
    assert [boot.serving for _, boot in asleep.boots] == [False]
    assert [one.state for one in figures()] == ["starting"]
