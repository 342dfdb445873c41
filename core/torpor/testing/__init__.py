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

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.testing.contract import PluginContract
    from torpor.testing.engine_contract import EngineContract
    from torpor.testing.faults import Fault
    from torpor.testing.plugin import StandIn, StandInVLLM

__all__ = ["EngineContract", "Fault", "PluginContract", "StandIn", "StandInVLLM"]

_HOME = {
    "EngineContract": "torpor.testing.engine_contract",
    "Fault": "torpor.testing.faults",
    "PluginContract": "torpor.testing.contract",
    "StandIn": "torpor.testing.plugin",
    "StandInVLLM": "torpor.testing.plugin",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'torpor.testing' has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
