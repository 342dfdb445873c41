"""The kit on a good plugin: the stand-in keeps every rule."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from typing_extensions import override

from torpor.testing import EngineContract, StandIn

if TYPE_CHECKING:
    from torpor import Deployment
    from torpor.testing.pytest_plugin import StandInDeployment


class TestStandIn(EngineContract):
    """The stand-in's own plugin."""

    @override
    @pytest.fixture
    def plugin(self) -> StandIn:
        return StandIn()

    @override
    @pytest.fixture
    def live_deployment(self, standin_deployment: StandInDeployment) -> Deployment:
        return standin_deployment()
