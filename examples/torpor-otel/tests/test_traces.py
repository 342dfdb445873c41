"""The plugin with the stand-in engine and a small collector: what arrives, and what a collector that is away costs."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from torpor import EngineError, override
from torpor.platforms.local import LocalServer, Standby
from torpor.testing import Fault, PluginContract, StandIn

from torpor_otel import OpenTelemetry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torpor import Deployment
    from torpor.testing import StandInDeployment


class TestOpenTelemetry(PluginContract):
    """Every rule of the contract; the collector takes what the listener's rules send."""

    @pytest.fixture(autouse=True)
    def _with_a_collector(self, collector: list[list[Span]]) -> None:
        """Nothing leaves this machine."""

    @override
    @pytest.fixture
    def plugin(self) -> OpenTelemetry:
        return OpenTelemetry()


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[Span]]]:
    """A collector; what it got, one list of spans for each request."""
    got: list[list[Span]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
            got.append([span for one in told.resource_spans for scope in one.scope_spans for span in scope.spans])
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setenv("TORPOR_PLUGIN_OTEL__ENDPOINT", f"http://127.0.0.1:{server.server_port}/v1/traces")
    yield got
    server.shutdown()
    server.server_close()


def started(deployment: Deployment, root: Path) -> LocalServer:
    """A server that started cold, slept and woke, and has ended."""
    server = LocalServer(deployment, backend=Standby(), root=root, cold_on_failed_wake=False)
    try:
        server.start()
    finally:
        server.stop()
    return server


def test_each_start_is_a_trace_with_a_span_for_each_stage(
    standin_deployment: StandInDeployment, collector: list[list[Span]], tmp_path: Path
) -> None:
    """Stages lie within their start, and have its trace; attributes say whose it is."""
    boot = started(standin_deployment(OpenTelemetry()), tmp_path).boot
    cold, woken = collector
    stages_of_a_cold_start = ["preflight", "launch", "ready", "warmup", "canary", "drain", "pre_snapshot"]
    assert [span.name for span in cold] == [*stages_of_a_cold_start, "cold start"]
    assert [span.name for span in woken] == ["post_restore", "canary_check", "serve", "woken start"]
    for *stages, start in (cold, woken):
        assert {span.trace_id for span in stages} == {start.trace_id}
        assert {span.parent_span_id for span in stages} == {start.span_id}
        for stage in stages:
            assert start.start_time_unix_nano <= stage.start_time_unix_nano <= stage.end_time_unix_nano
            assert stage.end_time_unix_nano <= start.end_time_unix_nano
        facts = {one.key: one.value.string_value for one in start.attributes}
        assert facts["torpor.deployment"] == boot.deployment.name
        assert facts["torpor.replica_id"] == boot.running_engine.replica_id
    assert len({start.trace_id for *_, start in collector}) == 2
    assert woken[-1].status.code == Status.STATUS_CODE_OK


def test_a_sleep_of_a_replica_that_served_is_a_trace_of_its_own(
    standin_deployment: StandInDeployment, collector: list[list[Span]], tmp_path: Path
) -> None:
    """It is no second start."""
    server = LocalServer(
        standin_deployment(OpenTelemetry()), backend=Standby(), root=tmp_path, cold_on_failed_wake=False
    )
    try:
        server.start()
        server.sleep()
    finally:
        server.stop()
    assert [trace[-1].name for trace in collector] == ["cold start", "woken start", "sleep"]
    assert [span.name for span in collector[2]] == ["drain", "pre_snapshot", "sleep"]


def test_a_failed_start_is_an_error_in_its_trace(
    standin_deployment: StandInDeployment, collector: list[list[Span]], tmp_path: Path
) -> None:
    """The stage that failed, and the start."""
    with pytest.raises(EngineError):
        started(standin_deployment(OpenTelemetry(), engine=StandIn(fault=Fault.EXIT_AT_WAKE)), tmp_path)
    stage, start = collector[-1]
    assert [span.status.code for span in (stage, start)] == [Status.STATUS_CODE_ERROR] * 2
    assert (stage.name, start.name) == ("post_restore", "woken start")
    assert "exited" in start.status.message


def test_a_collector_that_is_away_fails_no_start(
    standin_deployment: StandInDeployment,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The log says so, without what the address holds of a secret; no thread and no socket is left."""
    monkeypatch.setenv("TORPOR_PLUGIN_OTEL__ENDPOINT", "http://me:hunter2@127.0.0.1:9/v1/traces?token=hunter2")
    server = started(standin_deployment(OpenTelemetry(timeout_s=0.2)), tmp_path)
    assert server.boot.restore_count == 1
    out = capfd.readouterr().out
    assert "listener_failed" in out
    assert "the collector at 127.0.0.1:9 did not take" in out
    assert "hunter2" not in out
    assert not [thread for thread in threading.enumerate() if "otel" in thread.name.lower()]
