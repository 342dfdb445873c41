"""The keys of a client: the environment variables that hold them, and the header of a bearer key. No engine gets them."""

from __future__ import annotations

__all__ = [
    "API_KEY_VARIABLE",
    "AUTHORIZATION_HEADER",
    "CLIENT_VARIABLES",
    "MODAL_KEY_VARIABLE",
    "MODAL_SECRET_VARIABLE",
]

API_KEY_VARIABLE = "TORPOR_API_KEY"
"""The bearer key of a server that demands one."""

AUTHORIZATION_HEADER = "Authorization"
"""The header that carries the bearer key."""

MODAL_KEY_VARIABLE = "TORPOR_MODAL_KEY"
"""The id of a proxy token of Modal."""

MODAL_SECRET_VARIABLE = "TORPOR_MODAL_SECRET"  # noqa: S105 - the variable's name
"""The secret of a proxy token of Modal."""

CLIENT_VARIABLES = frozenset({API_KEY_VARIABLE, MODAL_KEY_VARIABLE, MODAL_SECRET_VARIABLE})
"""All of them. Engines do not inherit them, so no snapshot holds them."""
