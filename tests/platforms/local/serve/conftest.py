"""A cache root with this machine's CRIU, for the tests of `torpor serve`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import pytest

from tests.snapshots.conftest import criu
from torpor.platforms.local.serve.server import ServeHere
from torpor.snapshots.before_capture.lasting_folders import LASTING_VARIABLE
from torpor.snapshots.criu.program import PREFIX_VARIABLE
from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torpor.snapshots.criu.program import Criu

__all__ = ["criu"]


class Serve(Protocol):
    """Serves app files until the test's end."""

    def __call__(self, *files: str, config: str = "") -> ServeHere:
        """Return a server that listens."""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache root of the test's own, which counts as lasting."""
    root = tmp_path / "cache"
    root.mkdir()
    monkeypatch.setenv("TORPOR_CACHE", str(root))
    monkeypatch.setenv(LASTING_VARIABLE, str(tmp_path))
    return root


@pytest.fixture
def with_criu(cache: Path, criu: Criu, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's CRIU, whose trial is not repeated for each test."""
    if "root" in criu.program.parts:  # a private prefix: <prefix>/root/usr/sbin/criu
        monkeypatch.setenv(PREFIX_VARIABLE, str(criu.program.parents[3]))


@pytest.fixture
def serve(cache: Path, tmp_path: Path) -> Iterator[Serve]:
    """A factory of servers, see `Serve`."""
    servers: list[ServeHere] = []

    def start(*files: str, config: str = "") -> ServeHere:
        file = tmp_path / "serve.toml"
        file.write_text(config)
        server = ServeHere(files, config=file, port=unused_port(), tell=print)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.stop()
