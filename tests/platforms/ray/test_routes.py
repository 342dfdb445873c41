"""`torpor.platforms.ray.routes`: what a deployment must not take from others, and in which order routes are given."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from tests.platforms.ray.with_ray import needs_ray
from torpor import ConfigurationError
from torpor.platforms.ray.names import INGRESS
from torpor.platforms.ray.routes import check_routes, in_steps, routes_of

ALONE = {"torpor-a": "/"}
SEVERAL = {"torpor-a": "/a", "torpor-b": "/b", INGRESS: "/"}


class One(NamedTuple):
    """An application, by its name."""

    name: str


@pytest.mark.parametrize("here", [{}, ALONE, SEVERAL, {"somebody": "/x"}, {**SEVERAL, "somebody": "/x"}])
def test_the_same_applications_may_be_deployed_again(here: dict[str, str]) -> None:
    """Also if one of them had `/` for itself, and beside somebody else's at another route."""
    check_routes(SEVERAL, here)
    if INGRESS not in here:
        check_routes(ALONE, here)


@pytest.mark.parametrize(
    ("wanted", "here", "message"),
    [
        (
            ALONE,
            {"torpor-b": "/"},
            r"The route / is taken by Torpor's own application torpor-b\. .*`torpor ray down b`",
        ),
        (ALONE, SEVERAL, r"taken by Torpor's own application torpor.models\. Give all app files .*`torpor ray down`"),
        (SEVERAL, {"somebody": "/"}, r"taken by somebody else's application somebody\. Remove that one"),
        (SEVERAL, {"somebody": "/b"}, r"The route /b is taken"),
        (SEVERAL, {**SEVERAL, "torpor-c": "/c"}, r"c: served .* would get 404 at /\. .*`torpor ray down c`"),
    ],
)
def test_what_is_served_is_not_cut_off(wanted: dict[str, str], here: dict[str, str], message: str) -> None:
    """The error says what is in the way, and what to do. It comes before anything is deployed."""
    with pytest.raises(ConfigurationError, match=f"{message}.* Nothing was deployed"):
        check_routes(wanted, here)


def test_what_forwards_by_model_comes_last() -> None:
    """A model that had `/` has given it back by then."""
    models = [One("torpor-a"), One("torpor-b")]
    assert in_steps([*models, One(INGRESS)]) == [models, [One(INGRESS)]]
    assert in_steps(models[:1]) == [models[:1]]


def test_an_application_that_is_deleted_has_no_route() -> None:
    """Its route is free."""
    seen: dict[str, dict[str, object]] = {
        "a": {"route_prefix": "/", "status": "DELETING"},
        "b": {"route_prefix": "/b", "status": "RUNNING"},
        "c": {"route_prefix": None, "status": "DEPLOYING"},
    }
    assert routes_of({"applications": seen}) == {"b": "/b"}


@needs_ray
def test_serve_names_routes_as_they_are_read_here() -> None:
    """Fields and states of Ray's own schema."""
    from ray.serve.schema import ApplicationDetails, ApplicationStatus, ServeInstanceDetails

    assert "applications" in ServeInstanceDetails.model_fields
    assert {"route_prefix", "status"} <= set(ApplicationDetails.model_fields)
    assert ApplicationStatus.DELETING == "DELETING"
