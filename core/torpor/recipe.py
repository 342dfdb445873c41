"""What plugins want before a start: image patches and build plans, merged into one recipe.

`prepare_image` returns an `ImagePatch`, `compile_kernels` a `BuildPlan`. A `Recipe` merges those of all plugins and knows which
plugin each value comes from. All of them hold names, strings and numbers only, so that every platform can render them and
`torpor plan` can print them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from torpor.errors import ConfigurationError, ConflictError
from torpor.values.checks import check_env, check_retries, check_seconds, check_texts, check_words, one_line
from torpor.values.field_types import check_types, shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "IMAGE_ROOT",
    "VOLUME_ROOT",
    "BuildPlan",
    "BuildStep",
    "Cache",
    "ImagePatch",
    "Preflight",
    "Recipe",
]

IMAGE_ROOT = "/opt/torpor"
"""The folder on the image's own disk for what Torpor puts there (build-step scripts, kernel caches)."""

VOLUME_ROOT = "/vol"
"""The folder under which volumes are mounted. It is a new path: engine images already hold files under `/root/.cache`."""


_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+\[\]-]*")
_DEBIAN_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]*(:[a-z0-9-]+)?(=[A-Za-z0-9.+:~-]+)?(/[A-Za-z0-9._-]+)?")


@dataclass(frozen=True, kw_only=True)
class ImagePatch:
    """What one plugin wants the container image to hold.

    Attributes:
        base: registry reference of the image to start from; only the engine plugin should name one.
        apt: Debian packages.
        pip: Python requirements, e.g. `fastsafetensors>=0.1`.
        env: environment variables of the serving container and of every build step.
        volumes: mount path (under `/vol`) to the name of a persistent volume, for the serving container.
        python_sources: top-level packages to mount beside those that plugin classes come from.
        engine_args: command-line tokens that a plugin wants the engine to get, e.g. `("--load-format", "dummy")`.
        flag_reasons: why, by flag of `engine_args`; `torpor plan` shows it.
        python_link: link `python` to `python3` if the base image has only `python3`; Modal needs `python`.
    """

    base: str | None = None
    apt: tuple[str, ...] = ()
    pip: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    volumes: Mapping[str, str] = field(default_factory=dict)
    python_sources: tuple[str, ...] = ()
    engine_args: tuple[str, ...] = ()
    flag_reasons: Mapping[str, str] = field(default_factory=dict)
    python_link: bool = False

    def __post_init__(self) -> None:
        """Refuse values that would add a line or a word to a Dockerfile."""
        check_types(self, hidden=("env",))
        if self.base is not None and not _IMAGE.fullmatch(one_line("ImagePatch.base", self.base)):
            raise ConfigurationError(
                f"ImagePatch.base is {shown(self.base)}; it has to be a registry reference of one word, e.g. 'registry/image:tag'."
            )
        for name in self.apt:
            if not _DEBIAN_PACKAGE.fullmatch(one_line("ImagePatch.apt", name)):
                raise ConfigurationError(
                    f"ImagePatch.apt holds {shown(name)}; a Debian package is written like 'curl' or 'curl=8.5.0-2'."
                )
        for requirement in self.pip:
            if not requirement_name(one_line("ImagePatch.pip", requirement)) or requirement.lstrip().startswith("-"):
                raise ConfigurationError(
                    f"ImagePatch.pip holds {shown(requirement)}; a requirement begins with a package's name, e.g. 'foo>=1.2'. "
                    "An option of pip is none."
                )
        check_env("ImagePatch.env", self.env)
        check_texts("ImagePatch.volumes", (*self.volumes, *self.volumes.values()))
        check_texts("ImagePatch.python_sources", self.python_sources)
        check_words("ImagePatch.engine_args", self.engine_args)
        self._check_reasons()

    def _check_reasons(self) -> None:
        given = [word.partition("=")[0] for word in self.engine_args if word.startswith("--")]
        for flag, reason in self.flag_reasons.items():
            if flag not in given:
                raise ConfigurationError(
                    f"ImagePatch.flag_reasons has a reason for {shown(flag)}, which is not among engine_args "
                    f"({', '.join(given) or 'none'}): write the flag there, or drop the reason."
                )
            if not one_line("ImagePatch.flag_reasons", reason).strip():
                raise ConfigurationError(
                    f"ImagePatch.flag_reasons has an empty reason for {flag}: say why, in one line."
                )


@dataclass(frozen=True, kw_only=True)
class Cache:
    """Keeps the result of a build step on a volume, so that the next build with the same key skips the step.

    Attributes:
        volume_dir: folder on a volume that the step mounts; one sub-folder per key.
        image_dir: folder on the image's own disk where the step writes and the engine reads.
        key: what the result depends on and is known now (engine version, revision, flags, ...).
        probes: commands whose output belongs to the key too, run inside the image (`nvcc --version`, ...).
    """

    volume_dir: str
    image_dir: str
    key: tuple[str, ...]
    probes: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        """Refuse values that no path and no argument can hold."""
        check_types(self)
        check_texts("Cache.volume_dir", (self.volume_dir,))
        check_texts("Cache.image_dir", (self.image_dir,))
        check_words("Cache.key", self.key)
        check_words("Cache.probes", (word for probe in self.probes for word in probe))


@dataclass(frozen=True, kw_only=True)
class BuildStep:
    """One command of the image build.

    Attributes:
        name: what progress lines and errors call it.
        argv: the command; after `script`, its arguments.
        order: steps run by ascending order, whatever the plugins' order: downloads 10, compilation 20.
        timeout_s: seconds until the command and its children are ended.
        retries: how often a failed command is tried again.
        gpu: whether the step needs the deployment's GPU.
        env: variables of this step alone; they override the image's.
        volumes: mount path to volume name, beside the serving volumes, for this step alone.
        secrets: names of the platform's secrets, for this step alone.
        script: dotted name of one self-contained module; its file is copied into the image ahead of the step.
        outputs: paths that must exist and not be empty afterwards.
        cache: see `Cache`.
        engine_args: whether core appends the engine arguments that plugins asked for.
    """

    name: str
    argv: tuple[str, ...]
    order: int
    timeout_s: float
    retries: int = 0
    gpu: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    volumes: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    script: str | None = None
    outputs: tuple[str, ...] = ()
    cache: Cache | None = None
    engine_args: bool = False

    def __post_init__(self) -> None:
        check_types(self, called=self.name, hidden=("env",))
        if not self.argv and not self.script:
            raise ConfigurationError(
                f"BuildStep {shown(self.name)} has neither argv nor script: there is nothing to run."
            )
        where = f"BuildStep {shown(self.name)}:"
        check_seconds(f"{where} timeout_s", self.timeout_s)
        check_retries(f"{where} retries", self.retries)
        check_texts(f"{where} name", (self.name,))
        check_words(f"{where} argv", self.argv)  # line breaks are refused where it becomes a line, not on this machine
        check_texts(f"{where} outputs", self.outputs)
        check_texts(f"{where} secrets", self.secrets)
        check_texts(f"{where} volumes", (*self.volumes, *self.volumes.values()))
        check_texts(f"{where} script", () if self.script is None else (self.script,))
        check_env(f"{where} env", self.env)


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """A check that core runs in the container right before the launch.

    Attributes:
        name: its name in errors.
        argv: the command; exit code 0 is a pass. After `script`, its arguments.
        timeout_s: seconds until it counts as failed.
        cure: what to do about a failure; it ends the error's message.
        script: dotted name of one self-contained module to run, as in `BuildStep`.
    """

    name: str
    argv: tuple[str, ...]
    timeout_s: float
    cure: str
    script: str | None = None

    def __post_init__(self) -> None:
        check_types(self, called=self.name)
        where = f"Preflight {shown(self.name)}"
        if not self.argv and not self.script:
            raise ConfigurationError(f"{where} has neither argv nor script: there is nothing to run.")
        check_seconds(f"{where}: timeout_s", self.timeout_s)
        check_texts(f"{where}: name", (self.name,))
        check_texts(f"{where}: script", () if self.script is None else (self.script,))
        check_words(f"{where}: argv", self.argv)


@dataclass(frozen=True, kw_only=True)
class BuildPlan:
    """Build steps that run once, before any start, and checks that run before every cold start."""

    steps: tuple[BuildStep, ...] = ()
    preflight: tuple[Preflight, ...] = ()

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All plugins' patches and plans, merged: everything that is known before a start.

    Attributes:
        image: the merged patch.
        steps: build steps in the order in which they run, engine arguments appended where a step asks for them.
        preflight: checks before a launch.
        origins: the plugin that each value comes from: `env:NAME`, `volume:PATH`, `pip:NAME`, `flag:--x`, `step:NAME`, ...
    """

    image: ImagePatch
    steps: tuple[BuildStep, ...] = ()
    preflight: tuple[Preflight, ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict)

    @property
    def env(self) -> Mapping[str, str]:
        """The environment of the serving container."""
        return self.image.env

    @property
    def engine_args(self) -> tuple[str, ...]:
        """Command-line tokens that plugins want the engine to get."""
        return self.image.engine_args

    @property
    def volumes(self) -> Mapping[str, str]:
        """Mount path to volume name, for the serving container."""
        return self.image.volumes

    @classmethod
    def merge(cls, patches: Sequence[tuple[str, ImagePatch]], plans: Sequence[tuple[str, BuildPlan]]) -> Recipe:
        """Merge what the plugins returned, given as pairs of plugin name and value, in the plugins' order.

        Raises:
            ConflictError: two plugins claim different values for one thing; the message names both.
        """
        claims = _Claims()
        for plugin, patch in patches:
            claims.add_patch(plugin, patch)
        for plugin, plan in plans:
            for step in plan.steps:
                claims.claim(plugin, "step", step.name, id(step))
            for check in plan.preflight:
                claims.claim(plugin, "preflight", check.name, id(check))
        image = claims.patch()
        return cls(
            image=image,
            steps=tuple(
                _with_engine_args(step, image.engine_args)
                for step in sorted((step for _, plan in plans for step in plan.steps), key=lambda step: step.order)
            ),
            preflight=tuple(check for _, plan in plans for check in plan.preflight),
            origins=claims.origins(),
        )


def _with_engine_args(step: BuildStep, engine_args: tuple[str, ...]) -> BuildStep:
    if not step.engine_args or not engine_args:
        return step
    cache = replace(step.cache, key=(*step.cache.key, *engine_args)) if step.cache else None
    return replace(step, argv=step.argv + engine_args, cache=cache)


class _Claims:
    """Records which plugin claimed which value. Equal claims are fine; different values for one thing are an error."""

    def __init__(self) -> None:
        self._claims: dict[tuple[str, str], tuple[str, object]] = {}
        self._reasons: dict[str, str] = {}

    def claim(self, plugin: str, kind: str, name: str, value: object) -> None:
        first, seen = self._claims.setdefault((kind, name), (plugin, value))
        if seen == value:
            return
        what = {"step": "a build step", "preflight": "a preflight check"}.get(kind, kind)
        values = "" if kind in ("step", "preflight") else f": {first!r} says {seen!r}, {plugin!r} says {value!r}"
        raise ConflictError(
            f"Plugins {first!r} and {plugin!r} both claim {what} {name!r}{values}. "
            "Change an option of one of them, or drop one."
        )

    def add_patch(self, plugin: str, patch: ImagePatch) -> None:
        if patch.base is not None:
            self.claim(plugin, "image", "base", patch.base)
        if patch.python_link:
            self.claim(plugin, "image", "python link", value=True)
        for name in patch.apt:
            self.claim(plugin, "apt", name, name)
        for requirement in patch.pip:
            self.claim(plugin, "pip", requirement_name(requirement), requirement)
        for name, value in patch.env.items():
            self.claim(plugin, "env", name, value)
        for path, volume in patch.volumes.items():
            if not path.startswith("/") or path.endswith("/"):
                raise ConfigurationError(
                    f"Plugin {plugin!r}: volume mount {path!r} has to be absolute, without a final '/'."
                )
            self.claim(plugin, "volume", path, volume)
        for package in patch.python_sources:
            self.claim(plugin, "python source", package, package)
        for flag, values in split_flags(patch.engine_args):
            self.claim(plugin, "flag", flag, values)
        for flag, reason in patch.flag_reasons.items():
            self._reasons.setdefault(flag, reason)

    def _of(self, kind: str) -> list[tuple[str, object]]:
        return [(name, value) for (of_kind, name), (_, value) in self._claims.items() if of_kind == kind]

    def patch(self) -> ImagePatch:
        base = self._claims.get(("image", "base"))
        args: list[str] = []
        for flag, values in self._of("flag"):
            args += [flag, *values] if isinstance(values, tuple) else [flag]
        return ImagePatch(
            base=str(base[1]) if base else None,
            apt=tuple(name for name, _ in self._of("apt")),
            pip=tuple(str(value) for _, value in self._of("pip")),
            env={name: str(value) for name, value in self._of("env")},
            volumes={name: str(value) for name, value in self._of("volume")},
            python_sources=tuple(name for name, _ in self._of("python source")),
            engine_args=tuple(args),
            flag_reasons=self._reasons,
            python_link=("image", "python link") in self._claims,
        )

    def origins(self) -> dict[str, str]:
        return {f"{kind}:{name}": plugin for (kind, name), (plugin, _) in self._claims.items()}


def requirement_name(requirement: str) -> str:
    """The normalised package name of a requirement line (PEP 503): `Foo_Bar[x]>=1` is `foo-bar`."""
    name = re.split(r"[\[<>=!~; @]", requirement.strip(), maxsplit=1)[0]
    return re.sub(r"[-_.]+", "-", name).lower()


def split_flags(argv: tuple[str, ...]) -> list[tuple[str, tuple[str, ...]]]:
    """Group command-line tokens by flag: `--a 1 2 --b --c=3` gives `--a: (1, 2)`, `--b: ()`, `--c: (3,)`.

    Raises:
        ConfigurationError: the tokens do not begin with a flag.
    """
    groups: list[tuple[str, tuple[str, ...]]] = []
    for token in argv:
        if token.startswith("--"):
            flag, equals, value = token.partition("=")
            groups.append((flag, (value,) if equals else ()))
        elif groups:
            groups[-1] = (groups[-1][0], (*groups[-1][1], token))
        else:
            raise ConfigurationError(
                f"Engine arguments {argv!r} begin with {token!r}; they have to begin with a --flag."
            )
    return groups
