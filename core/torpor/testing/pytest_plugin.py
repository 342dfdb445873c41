"""The pytest plugin of the contract kit: fixtures for tests of plugins, and the kit's marker.

The distribution registers it (entry point `pytest11`), so every pytest session with Torpor installed loads it. It imports
nothing of Torpor's before a fixture is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypedDict

import pytest
from typing_extensions import Unpack

if TYPE_CHECKING:
    from torpor.deployment import Deployment
    from torpor.hookspecs import Plugin
    from torpor.testing.plugin import StandIn

__all__ = ["LIVE_MARKER", "StandInDeployment", "Timeouts", "free_port", "standin_deployment"]

LIVE_MARKER = "torpor_live"


def pytest_configure(config: pytest.Config) -> None:
    """Register the kit's marker."""
    config.addinivalue_line(
        "markers",
        f"{LIVE_MARKER}: starts a real engine (torpor.testing.EngineContract); -m 'not {LIVE_MARKER}' leaves it out",
    )


class Timeouts(TypedDict, total=False):
    """Deadlines of a deployment, seconds."""

    startup_timeout_s: float
    warmup_timeout_s: float
    drain_timeout_s: float
    sleep_timeout_s: float
    wake_timeout_s: float
    stop_timeout_s: float


class StandInDeployment(Protocol):
    """Makes a deployment of the stand-in engine and the plugins under test."""

    def __call__(self, *plugins: Plugin, engine: StandIn | None = None, **timeouts: Unpack[Timeouts]) -> Deployment:
        """Return the deployment: `plugins` first, then the engine.

        Args:
            *plugins: the plugins under test.
            engine: the stand-in with options, e.g. `StandIn(fault=Fault.HANG_IN_WAKE)`.
            **timeouts: deadlines that differ from the stand-in's short ones.
        """


@pytest.fixture
def free_port() -> int:
    """A loopback port on which nobody listens."""
    from torpor.testing.ports import PortsTakenError, unused_port  # noqa: PLC0415 - ports: 0.1 ms of every pytest session, which imports nothing of Torpor's

    try:
        return unused_port()
    except PortsTakenError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture
def standin_deployment(free_port: int) -> StandInDeployment:
    """A factory of deployments with the stand-in engine on a free port, see `StandInDeployment`."""
    from torpor.deployment import Deployment, Model  # noqa: PLC0415 - 24 ms of every pytest session
    from torpor.testing.plugin import StandIn  # noqa: PLC0415

    def make(*plugins: Plugin, engine: StandIn | None = None, **timeouts: Unpack[Timeouts]) -> Deployment:
        fields: Timeouts = {
            "startup_timeout_s": 60.0,
            "warmup_timeout_s": 30.0,
            "drain_timeout_s": 2.0,
            "sleep_timeout_s": 20.0,
            "wake_timeout_s": 20.0,
            "stop_timeout_s": 2.0,
            **timeouts,
        }
        return Deployment(
            name="stand-in",
            model=Model(path="/models/stand-in"),
            plugins=(*plugins, engine or StandIn()),
            port=free_port,
            **fields,
        )

    return make
