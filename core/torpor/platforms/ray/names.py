"""Names of Torpor's applications in a Serve instance that others use, too. `torpor ray down` removes only these."""

from __future__ import annotations

from urllib.parse import quote

__all__ = ["INGRESS", "application_name", "deployment_name", "is_ours", "prefix_of"]

_PREFIX = "torpor-"
INGRESS = "torpor.models"
"""The application that forwards by `model`."""


def application_name(deployment: str) -> str:
    """The Serve application of a deployment."""
    return f"{_PREFIX}{deployment}"


def deployment_name(application: str) -> str:
    """The deployment of a Serve application of Torpor's."""
    return application.removeprefix(_PREFIX)


def prefix_of(deployment: str) -> str:
    """The prefix of its routes."""
    return f"/{quote(deployment, safe='')}"


def is_ours(application: str) -> bool:
    """Whether a Serve application is one of Torpor's."""
    return application == INGRESS or application.startswith(_PREFIX)
