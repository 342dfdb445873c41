"""`FastLoad`: the engine reads its weights with the first preferred loader that its version has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torpor import ConfigurationError, Finding, ImagePatch, Plugin, check_types, hookimpl, override, plugin_name, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torpor import Deployment

__all__ = ["FastLoad"]

KNOWN = ("runai_streamer", "fastsafetensors", "instanttensor")


@dataclass(frozen=True, kw_only=True)
class FastLoad(Plugin):
    """Chooses the engine's `--load-format` and installs the packages that it needs, for any engine.

    Weights are read at a cold start, before the snapshot is taken; a vLLM that sleeps at level 2 also reads them at every wake.

    Attributes:
        prefer: loaders by preference, by the engines' own names. The first default reads with CPU threads; the other two may open
            GPUDirect storage, which a snapshot would have to survive. None of the three was timed here: with local files and 8 GB
            of weights, reading took little of a start.
    """

    plugin_name: ClassVar[str] = "fast_load"

    prefer: tuple[str, ...] = KNOWN

    def __post_init__(self) -> None:
        check_types(self)
        unknown = [name for name in self.prefer if name not in KNOWN]
        if unknown or not self.prefer:
            raise ConfigurationError(
                f"FastLoad.prefer is {shown(self.prefer)}; give one or more of {', '.join(KNOWN)}, the preferred one first."
            )

    @override
    def check(self, deployment: Deployment) -> Iterator[Finding]:
        try:
            self._chosen(deployment)
        except ConfigurationError as error:
            yield Finding(level="error", what="weights", seen=str(error))

    @hookimpl
    @override
    def prepare_image(self, deployment: Deployment) -> ImagePatch:
        name = self._chosen(deployment)
        return ImagePatch(pip=deployment.engine.load_formats()[name], engine_args=("--load-format", name))

    def _chosen(self, deployment: Deployment) -> str:
        """The first preferred loader that the engine has."""
        engine = deployment.engine
        formats = engine.load_formats()
        for name in self.prefer:
            if name in formats:
                return name
        raise ConfigurationError(
            f"FastLoad finds no loader: the engine {plugin_name(engine)!r} {engine.engine_version} has "
            f"{', '.join(formats) or 'none of the fast ones'}, and FastLoad.prefer names {', '.join(self.prefer)}. Choose a "
            "newer engine, add one that it has to prefer, or drop FastLoad() from Deployment.plugins."
        )
