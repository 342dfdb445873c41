"""`torpor ray` without an address, where a cluster has ended and left its address behind."""

from __future__ import annotations

import pytest

from tests.platforms.ray.with_ray import needs_ray
from torpor import ServerUnavailableError


@needs_ray
def test_an_address_that_a_cluster_left_behind_is_not_tried_for_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens at what Ray finds; Ray itself is never asked to connect."""
    from torpor.platforms.ray import cluster

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster, "canonicalize_bootstrap_address", lambda _: "127.0.0.1:1")
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("Ray was asked to connect"))
    refused = pytest.raises(
        ServerUnavailableError, match=r"No Ray cluster answers at 127\.0\.0\.1:1: Connection refused"
    )
    with refused, cluster.connected():
        pass
