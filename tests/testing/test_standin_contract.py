"""The stand-in's plugins keep every rule of the contract kit, in both dialects."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from typing_extensions import override

from torpor.testing import EngineContract, StandIn, StandInVLLM

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


@pytest.mark.slow
class TestStandInVLLM(EngineContract):
    """The same engine in vLLM's dialect."""

    @override
    @pytest.fixture
    def plugin(self) -> StandInVLLM:
        return StandInVLLM()

    @override
    @pytest.fixture
    def live_deployment(self, standin_deployment: StandInDeployment) -> Deployment:
        return standin_deployment(engine=StandInVLLM())
