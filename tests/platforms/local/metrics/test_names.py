"""The table of metrics is what is shown, what docs/metrics.md says, and what the dashboard asks for."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import promql_parser
import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_client.parser import text_string_to_metric_families
from scripts.site.records import metric_table

from tests import ROOT
from torpor.platforms.local.metrics.collector import CommandMetrics
from torpor.platforms.local.metrics.figures import Figures
from torpor.platforms.local.metrics.names import METRICS, Metric
from torpor.telemetry.records import StageRecord
from torpor.telemetry.stage_report import StageReport

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAGE = ROOT / "docs" / "metrics.md"
DASHBOARD = ROOT / "examples" / "grafana" / "torpor.json"
BY_NAME = {metric.name: metric for metric in METRICS}
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}


def series() -> dict[str, Metric]:
    """Every name under which a query finds samples."""
    return {f"{metric.name}{suffix}": metric for metric in METRICS for suffix in SUFFIXES[metric.kind]}


def stage(name: str, **more: object) -> StageRecord:
    """A record of a stage."""
    facts = {
        "seconds": 0.2,
        "boot": "cold",
        "replica_id": "0" * 16,
        "restore_count": 0,
        "ended_at": 1.0,
        "deployment": "tiny",
    }
    return StageRecord(stage=name, **{**facts, **more})  # type: ignore[arg-type] # a record has fields of several types


@pytest.fixture
def metrics() -> Iterator[CommandMetrics]:
    """Of a command with one deployment."""
    made = CommandMetrics(
        lambda: [
            Figures(
                deployment="tiny", state="serving", replicas={"serving": 2}, in_flight=3, waiting=1, memory={"host": 5}
            )
        ]
    )
    yield made
    made.close()


def sample(metrics: CommandMetrics, name: str, **labels: str) -> float | None:
    """A sample's value."""
    for family in text_string_to_metric_families(metrics.text().decode()):
        for one in family.samples:
            if one.name == name and one.labels == labels:
                return float(one.value)
    return None


def test_starts_are_counted_by_kind_and_outcome(metrics: CommandMetrics) -> None:
    """A cold start is over when the engine has answered; a restore that failed before its wake counts as one."""
    report = StageReport()
    for name in ("launch", "canary", "serve"):
        report.end(stage(name))
    report.end(stage("serve", boot="woken"))
    report.end(stage("restore", boot="restored", ok=False))
    report.end(stage("drain", ok=False))
    report.end(stage("serve", boot="restored", reason="engine ended", restarts=1, replica_id="1" * 16))
    report.end(stage("serve", boot="restored", reason="engine ended", restarts=1, replica_id="1" * 16))
    starts = {
        (kind, outcome): sample(metrics, "torpor_starts_total", deployment="tiny", kind=kind, outcome=outcome)
        for kind in ("cold", "woken", "restored")
        for outcome in ("ok", "failed")
    }
    assert starts == {
        ("cold", "ok"): 1,
        ("cold", "failed"): None,
        ("woken", "ok"): 1,
        ("woken", "failed"): None,
        ("restored", "ok"): 2,
        ("restored", "failed"): 1,
    }
    assert sample(metrics, "torpor_replacements_total", deployment="tiny", reason="engine ended") == 1
    assert sample(metrics, "torpor_stage_failures_total", deployment="tiny", kind="cold", stage="drain") == 1


def test_labels_have_torpors_own_words_only(metrics: CommandMetrics) -> None:
    """Whatever a record says: a label's value never multiplies series without limit."""
    StageReport().end(stage("x" * 50, boot="y", reason="z"))
    StageReport().end(stage("serve", reason="any text", restarts=1))
    text = metrics.text().decode()
    assert 'kind="other",stage="other"' in text
    assert 'torpor_replacements_total{deployment="tiny",reason="other"} 1.0' in text
    assert "xxx" not in text
    assert "any text" not in text


def test_after_its_end_a_command_counts_nothing(metrics: CommandMetrics) -> None:
    """Another command of the same process has metrics of its own."""
    metrics.close()
    StageReport().end(stage("launch"))
    assert (
        sample(metrics, "torpor_stage_duration_seconds_count", deployment="tiny", kind="cold", stage="launch") is None
    )


def test_every_metric_that_is_shown_is_in_the_table(metrics: CommandMetrics) -> None:
    """With its kind, labels and meaning."""
    StageReport().end(stage("launch"))
    families = list(text_string_to_metric_families(metrics.text().decode()))
    assert {"torpor_deployment_state", "torpor_stage_duration_seconds"} <= {family.name for family in families}
    for family in families:
        metric = BY_NAME[family.name]
        assert (family.type, family.documentation) == (metric.kind, metric.meaning)
        for one in family.samples:
            assert set(one.labels) - {"le"} == set(metric.labels)


def test_the_page_has_the_table() -> None:
    """docs/metrics.md: each metric with its labels and its meaning, in order."""
    assert "<!-- generated: metrics -->" in PAGE.read_text(encoding="utf-8")
    assert re.findall(r"^\| `(torpor_\w+)` \| (\w+) \| (.*?) \| (.*?) \|$", metric_table(), re.MULTILINE) == [
        (
            metric.name + ("_total" if metric.kind == "counter" else ""),
            metric.kind,
            ", ".join(f"`{label}`" for label in metric.labels),
            metric.meaning,
        )
        for metric in METRICS
    ]


def queries() -> list[str]:
    """Every query of the dashboard, with Grafana's variables filled in."""
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    found = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    return [
        expr.replace("$__rate_interval", "5m").replace("$__range", "6h").replace("$deployment", ".*") for expr in found
    ]


def selectors(query: str) -> list[tuple[str, set[str]]]:
    """The metric's name and the labels of each selector in a query."""
    promql_parser.parse(query)  # refuses what Prometheus refuses
    found = re.findall(r"\b(torpor_\w+)(?:\{(.*?)\})?", query)
    return [(name, set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", inside))) for name, inside in found]


@pytest.mark.parametrize("query", queries())
def test_the_dashboard_asks_for_metrics_that_exist(query: str) -> None:
    """Each query is valid PromQL; its metrics and the labels that it filters and groups by are in the table."""
    known = series()
    asked = selectors(query)
    assert asked
    labels: set[str] = {"le"}
    for name, filtered in asked:
        assert name in known, query
        assert filtered <= set(known[name].labels), query
        labels |= set(known[name].labels)
    for grouped in re.findall(r"\bby \((.*?)\)", query):
        assert {label.strip() for label in grouped.split(",")} <= labels, query


def test_the_dashboard_shows_every_metric_and_fits_grafanas_schema() -> None:
    """Each of the table is in some panel; Grafana's own types read the file and lose no panel and no query."""
    asked = {series()[name].name for query in queries() for name, _ in selectors(query)}
    assert asked == set(BY_NAME)
    told = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    read = json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(told)))
    assert [panel["title"] for panel in read["panels"]] == [panel["title"] for panel in told["panels"]]
    for panel, kept in zip(told["panels"], read["panels"], strict=True):
        assert len(kept.get("targets", ())) == len(panel.get("targets", ()))
        assert kept["gridPos"]["w"] + kept["gridPos"]["x"] <= 24


def test_panels_do_not_overlap() -> None:
    """On Grafana's grid."""
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def test_a_folder_without_a_snapshot_has_no_age(tmp_path: Path) -> None:
    """Nothing is shown for it, and the scrape does not fail."""
    made = CommandMetrics(lambda: [Figures(deployment="tiny", state="on disk", snapshot=tmp_path)])
    try:
        assert "torpor_snapshot_age_seconds{" not in made.text().decode()
    finally:
        made.close()
