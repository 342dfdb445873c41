"""`typing.override`, which Python has from 3.12 on; `typing_extensions` has it too, but takes 7 ms of a restore to import."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

__all__ = ["override"]

if TYPE_CHECKING:
    from typing_extensions import override
elif sys.version_info >= (3, 12):
    from typing import override
else:

    def override(method):
        """Mark a method as one that overrides another (PEP 698)."""
        return method
