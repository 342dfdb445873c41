"""Routes of a Serve instance: what a deployment must not take from others, and in which order applications get theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

from torpor.errors import ConfigurationError
from torpor.platforms.ray.names import INGRESS, deployment_name, is_ours

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["check_routes", "in_steps", "routes_of"]

_GIVE_ALL = "Give all app files to one `torpor ray up`"


class _Named(Protocol):
    @property
    def name(self) -> str:
        """Of an application."""


One = TypeVar("One", bound=_Named)


def routes_of(details: Mapping[str, Mapping[str, Mapping[str, object]]]) -> dict[str, str]:
    """Route by the name of each application that stays.

    Args:
        details: as ray.serve.schema.ServeInstanceDetails has them.
    """
    return {
        name: str(one["route_prefix"])
        for name, one in details["applications"].items()
        if one.get("route_prefix") and one.get("status") != "DELETING"
    }


def check_routes(wanted: Mapping[str, str], here: Mapping[str, str]) -> None:
    """Refuse applications whose deployment would fail half-way, or cut off a model that is served.

    Serve deploys one after the other until a route is taken. The application that forwards by `model` knows only the models
    that it was deployed with.

    Args:
        wanted: route by application.
        here: the same for what runs.

    Raises:
        ConfigurationError: says which application is in the way, and what to do.
    """
    others = {name: route for name, route in here.items() if name not in wanted}
    for name, route in others.items():
        if route in wanted.values():
            whose = "Torpor's own application" if is_ours(name) else "somebody else's application"
            raise ConfigurationError(
                f"The route {route} is taken by {whose} {name}. {_cure(name)} Nothing was deployed."
            )
    if INGRESS in wanted and (cut_off := sorted(deployment_name(name) for name in others if is_ours(name))):
        raise ConfigurationError(
            f"{', '.join(cut_off)}: served on this cluster, and not among these app files; requests for it would get 404 at /. "
            f"{_GIVE_ALL}, or remove it first: `torpor ray down {' '.join(cut_off)}`. Nothing was deployed."
        )


def in_steps(wanted: Sequence[One]) -> list[list[One]]:
    """What is deployed at once: first the models, then the application that forwards to them.

    An application that had `/` for itself has another route then.
    """
    models = [one for one in wanted if one.name != INGRESS]
    return [step for step in (models, [one for one in wanted if one.name == INGRESS]) if step]


def _cure(name: str) -> str:
    if not is_ours(name):
        return "Remove that one, or deploy it at another route."
    served = "" if name == INGRESS else f" {deployment_name(name)}"
    return f"{_GIVE_ALL}, or remove what is served: `torpor ray down{served}`."
