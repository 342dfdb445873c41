"""What an engine's processes find in their environment."""

from __future__ import annotations

import os

from torpor.values.client_keys import CLIENT_VARIABLES
from torpor.values.setting_names import SETTING_PREFIX

__all__ = ["REPLICA_ID_VARIABLE", "inherited_environment"]

REPLICA_ID_VARIABLE = "TORPOR_REPLICA_ID"
"""Set by Torpor for every process of an engine: the replica id of its cold start."""


def inherited_environment() -> dict[str, str]:
    """What an engine inherits from this process's environment.

    Keys of clients and settings of plugins stay here: an engine needs neither, and a snapshot would keep them.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if name not in CLIENT_VARIABLES and not name.startswith(SETTING_PREFIX)
    }
