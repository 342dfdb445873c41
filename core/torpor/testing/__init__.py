"""The contract kit: what a plugin has to keep, as pytest classes, and a stand-in engine to try plugins on.

    from torpor.testing import EngineContract, PluginContract

    class TestMyPlugin(PluginContract):
        @pytest.fixture
        def plugin(self) -> MyPlugin:
            return MyPlugin(option="value")

`PluginContract` is for every plugin, `EngineContract` also for those that launch an engine. The stand-in speaks SGLang's
dialect (`StandIn`) and vLLM's (`StandInVLLM`), with the same faults on request (`Fault`). The fixtures come with the
pytest plugin that the distribution registers (`torpor.testing.pytest_plugin`). Needs the extra `torpor[testing]`.

Lazy (PEP 562): the stand-in's process and a test session that has nothing to do with Torpor pay for nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor._lazy import lazy_names

if TYPE_CHECKING:
    from torpor.testing.contract import PluginContract
    from torpor.testing.engine_contract import EngineContract
    from torpor.testing.faults import Fault
    from torpor.testing.plugin import StandIn, StandInVLLM
    from torpor.testing.pytest_plugin import StandInDeployment

__all__ = ["EngineContract", "Fault", "PluginContract", "StandIn", "StandInDeployment", "StandInVLLM"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "torpor.testing.contract": ("PluginContract",),
        "torpor.testing.engine_contract": ("EngineContract",),
        "torpor.testing.faults": ("Fault",),
        "torpor.testing.plugin": ("StandIn", "StandInVLLM"),
        "torpor.testing.pytest_plugin": ("StandInDeployment",),
    },
)
