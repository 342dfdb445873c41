"""`HFCache`: weights on a volume, fetched while the image is built and checked before every start."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from torpor import (
    IMAGE_ROOT,
    VOLUME_ROOT,
    BuildPlan,
    BuildStep,
    ConfigurationError,
    Finding,
    ImagePatch,
    Plugin,
    Preflight,
    check_retries,
    check_seconds,
    check_types,
    check_volume,
    hookimpl,
    override,
    secret_value,
    shown,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torpor import Deployment

__all__ = ["HFCache"]

_SCRIPT = "torpor_hf_cache.download"
_VERIFY_TIMEOUT_S = 300.0
"""Seconds for the check before a launch, which hashes files with changed times at about 1 GB per second."""
_SECRET_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class HFCache(Plugin):
    """Keeps the files of the model and its adapters on a volume, in the hub's cache layout, so that no start needs the hub.

    For what is a local folder (`path=...`) the plugin does nothing.

    Attributes:
        volume: name of the volume; it is mounted at `/vol/<volume>` and holds the cache in `hub/`.
        token_secret: name of the platform's secret with the key HF_TOKEN, for a gated or private model; only the
            download step gets it, because whatever a serving container holds ends up in its snapshot.
        allow_patterns: fetch only files that match one of these (fnmatch on the path in the repository); empty for all. Of
            adapters and drafts all files are fetched.
        ignore_patterns: fetch no file that matches one of these; the default leaves out weights in formats
            that serving engines do not read.
        timeout_s: seconds that the download may take.
        retries: further attempts after a temporary failure (network, a truncated body).
    """

    plugin_name: ClassVar[str] = "hf_cache"

    volume: str = "huggingface-cache"
    token_secret: str | None = None
    allow_patterns: tuple[str, ...] = ()
    ignore_patterns: tuple[str, ...] = ("original/*", "metal/*", "*.onnx", "*.h5", "*.msgpack", "*.tflite")
    timeout_s: float = 3600.0
    retries: int = 1

    def __post_init__(self) -> None:
        check_types(self)
        check_volume("HFCache.volume", self.volume)
        for name in ("allow_patterns", "ignore_patterns"):
            if bad := [pattern for pattern in getattr(self, name) if not pattern or not pattern.isprintable()]:
                raise ConfigurationError(
                    f"HFCache.{name} holds {shown(bad[0])}; a pattern is text of one line, e.g. '*.onnx'."
                )
        if self.token_secret is not None and not _SECRET_NAME.fullmatch(self.token_secret):
            raise ConfigurationError(
                "HFCache.token_secret has to be the name of a secret of the platform that holds HF_TOKEN, e.g. 'huggingface': "
                "letters, digits, '-', '_' and '.'; never the token itself."
            )
        if self.token_secret is not None and secret_value(self.token_secret):
            raise ConfigurationError(
                "HFCache.token_secret looks like a token; it has to be the name of a secret of the platform that holds HF_TOKEN, "
                "e.g. 'huggingface'. Take the token out of the file, and out of its history."
            )
        check_seconds("HFCache.timeout_s", self.timeout_s)
        check_retries("HFCache.retries", self.retries)

    @override
    def check(self, deployment: Deployment) -> Iterator[Finding]:
        if not _repositories(deployment):
            yield Finding(
                level="warning",
                what="weights",
                seen=f"Model.path is {deployment.model.path!r}, so there is nothing to fetch: the plugin does nothing",
                cure="drop HFCache() from Deployment.plugins, or name the model by repo_id and revision",
            )

    @property
    def mount(self) -> str:
        """The mount path of the volume."""
        return f"{VOLUME_ROOT}/{self.volume}"

    @property
    def cache(self) -> str:
        """The hub cache on the volume; a sub-folder that holds only the hub's own layout."""
        return f"{self.mount}/hub"

    @hookimpl
    @override
    def prepare_image(self, deployment: Deployment) -> ImagePatch | None:
        if not _repositories(deployment):
            return None
        env = {
            # Sources: huggingface_hub `constants.py` 0.36.0 and 2.4.0; hf-xet 1.8.0.
            "HF_HUB_CACHE": self.cache,
            # Token file, Xet's chunks and remote code live under HF_HOME: off the volume, on the container's own disk.
            "HF_HOME": f"{IMAGE_ROOT}/hf",
            "HF_XET_CACHE": f"{IMAGE_ROOT}/hf/xet",
            # Otherwise an engine may list the repository at each start, and delete cached files to repair them
            # (`model_loader/weight_utils.py` 0.5.6.post2). It also keeps connections to the hub out of snapshots.
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        return ImagePatch(env=env, volumes={self.mount: self.volume})

    @hookimpl
    @override
    def compile_kernels(self, deployment: Deployment) -> BuildPlan | None:
        wanted = _repositories(deployment)
        if not wanted:
            return None
        return BuildPlan(
            steps=tuple(self._fetch(one) for one in wanted),
            preflight=tuple(self._check(one, self._cure(deployment)) for one in wanted),
        )

    def _fetch(self, wanted: _Wanted) -> BuildStep:
        """Download a commit. Each step is for one, so that a further adapter fetches nothing again."""
        patterns = [f"--allow={pattern}" for pattern in self.allow_patterns if wanted.whole_model]
        patterns += [f"--ignore={pattern}" for pattern in self.ignore_patterns]
        return BuildStep(
            name=f"fetch {wanted.name}",
            script=_SCRIPT,
            argv=("fetch", wanted.repo_id, wanted.revision, "--cache", self.cache, *patterns),
            order=10,
            timeout_s=self.timeout_s,
            retries=self.retries,
            env={"HF_HUB_OFFLINE": "0", "HF_XET_HIGH_PERFORMANCE": "1"},
            # The serving container mounts it as well, but the step commits only volumes that it names itself.
            volumes={self.mount: self.volume},
            secrets=() if self.token_secret is None else (self.token_secret,),
        )

    def _check(self, wanted: _Wanted, cure: str) -> Preflight:
        return Preflight(
            name=wanted.name,
            script=_SCRIPT,
            argv=("verify", wanted.repo_id, wanted.revision, "--cache", self.cache),
            timeout_s=_VERIFY_TIMEOUT_S,
            cure=cure,
        )

    def _cure(self, deployment: Deployment) -> str:
        """How to fetch the files again. A deploy does not: a built image stays cached when its volume is emptied."""
        file = f"apps/{deployment.name.replace('-', '_')}.py"
        return (
            f"Fetch them again: `modal run {file}::download` (put the file that defines the deployment "
            f"{deployment.name!r} in its place if it has another name); on this machine `torpor up {file}` does it."
        )


class _Wanted(NamedTuple):
    """A commit of the hub.

    Attributes:
        name: what it is, in a build step's name.
        repo_id: `owner/name`.
        revision: the commit.
        whole_model: whether it is the model; otherwise it is an adapter or a draft.
    """

    name: str
    repo_id: str
    revision: str
    whole_model: bool


def _repositories(deployment: Deployment) -> tuple[_Wanted, ...]:
    """The model, its draft and its adapters, as far as they are on the hub."""
    model, draft = deployment.model, deployment.model.draft
    named = [("weights", model.repo_id, model.revision, True)]
    named += [("draft", draft.repo_id, draft.revision, False)] if draft is not None else []
    named += [(f"adapter {name}", one.repo_id, one.revision, False) for name, one in model.adapters.items()]
    return tuple(
        _Wanted(name, repo_id, revision, whole)
        for name, repo_id, revision, whole in named
        if repo_id is not None and revision is not None
    )
