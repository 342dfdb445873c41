"""What requests may ask for beside text, of a real engine: after a wake nothing is compiled for the first of them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar

import httpx
import pytest

from tests.plugins.local_engines import make_tiny_model
from tests.side_by_side import built_once
from torpor import Deployment, Model, Scaling
from torpor.engine_plugins import FEATURES
from torpor.engine_plugins.feature_warmup import feature_requests
from torpor.platforms.local import LocalServer, Standby
from torpor.runtime.compilations import REQUESTS, cache_folders, newer_files
from torpor.telemetry.stages import Stage
from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.plugins.local_engines import LocalEngine, RealEngine
    from torpor.engine_plugins import ChatServer, Feature

__all__ = ["RealFeatureRules", "compiled"]

START_S, RECORDED_S = 400.0, 60.0


class RealFeatureRules:
    """The warm-up leaves nothing to compile.

    Attributes:
        local: the engine.
        refused: features that this engine refuses as it runs here.
    """

    local: ClassVar[LocalEngine]
    refused: ClassVar[tuple[Feature, ...]] = ()

    def plugin(self, engine: RealEngine, features: Sequence[Feature]) -> ChatServer:
        """The engine's plugin for this machine's CPU."""
        raise NotImplementedError

    def server(self, factory: pytest.TempPathFactory, root: Path, features: Sequence[Feature]) -> LocalServer:
        """A server that is not started, with kernel caches of its own."""
        engine = self.local.find(self.local.version)
        model = built_once(factory, f"{self.local.name}-tiny-qwen3", lambda folder: make_tiny_model(engine, folder))
        deployment = Deployment(
            name="features",
            model=Model(path=str(model), served_name="tiny"),
            plugins=(self.plugin(engine, features),),
            scaling=Scaling(target_concurrency=4, max_concurrency=8),
            port=unused_port(),
            startup_timeout_s=START_S,
        )
        return LocalServer(deployment, backend=Standby(), root=root)

    @pytest.mark.timeout(900)
    def test_nothing_is_compiled_for_the_first_requests_after_a_wake(
        self, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """One of each kind, and as many as the record waits for: no new file of a kernel cache, no line of a compilation."""
        server = self.server(tmp_path_factory, tmp_path, FEATURES)
        deployment = server.deployment
        asked = [*feature_requests(deployment, FEATURES, regex=deployment.engine.regex_fields())]  # type: ignore[attr-defined] # a ChatServer
        assert len(asked) >= REQUESTS
        try:
            server.cold_start()
            server.boot.sleep(for_snapshot=False)
            began = time.time()
            server.boot.wake()
            with httpx.Client(base_url=f"http://127.0.0.1:{deployment.port}", timeout=120, trust_env=False) as client:
                for request in asked:
                    answer = client.post(request.path, json=request.body)
                    wanted = 400 if request.feature in self.refused else 200
                    assert answer.status_code == wanted, f"{request.feature}: {answer.text}"
            record = compiled(server, "woken")
            folders = cache_folders(dict(server.boot.recipe.env), deployment.engine.kernel_cache_env(deployment))
            assert list(newer_files(folders, began)) == []
            assert record["requests"] >= REQUESTS
            assert (record["cache_files"], record["log_lines"]) == (0, 0), record
        finally:
            server.stop()


def compiled(server: LocalServer, boot: str) -> dict[str, int]:
    """Return what the record of the first requests says, once it is there."""
    deadline = time.monotonic() + RECORDED_S
    while time.monotonic() < deadline:
        for record in server.boot.report.records:
            if (record.stage, record.boot) == (Stage.FIRST_REQUESTS, boot):
                return record.compiled
        time.sleep(0.1)
    pytest.fail(f"no record of the first requests: {server.boot.report.records}")
