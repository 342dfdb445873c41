"""Small app files on the stand-in engine, for the tests of this folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

SOURCE = """
from torpor import Deployment, Model, RayOptions, Scaling
from torpor.testing import StandIn

deployment = Deployment(
    name={name!r}, model=Model(path="/models/{name}"), plugins=(StandIn(),),
    scaling=Scaling({scaling}), {more}
)
"""


def an_app(
    folder: Path, name: str, more: str = "ray=RayOptions(cpus=4, memory_mib=8192)", *, scaling: str = "max_containers=3"
) -> str:
    """Write an app file; `more` are further arguments of its deployment, `scaling` those of its scaling. Gives the path."""
    file = folder / f"{name.replace('-', '_')}.py"
    file.write_text(SOURCE.format(name=name, more=more, scaling=scaling))
    return str(file)
