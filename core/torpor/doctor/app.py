"""Problems in a deployment's own values: combinations that are known to fail, or to cost time at every start.

It needs no account, network, GPU or engine. Times are from benchmarks/gpu/NOTES.md.
"""

from __future__ import annotations

import os
import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Literal

from torpor.deployment import plugin_name
from torpor.launcher.versions import ANY_ENGINE_VARIABLE
from torpor.recipe import IMAGE_ROOT
from torpor.values.addresses import is_open
from torpor.values.findings import Finding
from torpor.values.secret_shapes import BY_NAME, secret_arguments, secrets_in

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torpor.deployment import Deployment
    from torpor.recipe import Recipe

__all__ = ["cautions"]

_COMPILED_START_S = 128.0  # JIT caches partly warm
_UNCOMPILED_START_S = 331.0  # none at all
_MOVING_TAGS = ("latest", "main", "master", "dev", "nightly")
_CACHE_NAME = re.compile(r"(^|_)CACHE(_|$)|^HF_HOME$")
_PINNED = re.compile(r"==|@|\.whl$")


def cautions(deployment: Deployment, recipe: Recipe) -> tuple[Finding, ...]:
    """Every problem, as a warning or an error; empty if there is none.

    Args:
        deployment: what is to be deployed.
        recipe: what its plugins ask for.
    """
    return (
        *_start(deployment, recipe),
        *_unpinned(deployment, recipe),
        *_caches(deployment, recipe),
        *_secrets(deployment, recipe),
        *_engine(deployment),
        *_address(deployment),
    )


def _start(deployment: Deployment, recipe: Recipe) -> Iterator[Finding]:
    if deployment.gpu is None:
        return
    compiled = any(step.gpu for step in recipe.steps)
    likely_s = _COMPILED_START_S if compiled else _UNCOMPILED_START_S
    if deployment.startup_timeout_s < likely_s:
        yield Finding(
            level="warning",
            what="start-up",
            seen=f"Deployment.startup_timeout_s is {deployment.startup_timeout_s:g} s; a start like this one took up to "
            f"{likely_s:g} s on one Hopper card ({'with' if compiled else 'without'} kernels compiled in the build)",
            cure=f"set it to {2 * likely_s:g} s" + ("" if compiled else ", or compile in the build (plugin DeepGEMM)"),
        )


def _unpinned(deployment: Deployment, recipe: Recipe) -> Iterator[Finding]:
    base = recipe.image.base or ""
    tag = base.rpartition("/")[2].partition(":")[2]
    if base and "@" not in base and (not tag or tag in _MOVING_TAGS):  # a digest after @ pins it
        yield Finding(
            level="warning",
            what="image",
            seen=f"the image {base} names {f'the tag {tag}, which moves' if tag else 'no tag'}",
            cure="name a version's tag, or a digest (image@sha256:...)",
        )
    if deployment.model.repo_id and not deployment.model.revision:
        yield Finding(
            level="warning",
            what="model",
            seen=f"{deployment.model.repo_id} has no revision: each build may get other weights",
            cure="set Model.revision to a commit",
        )
    if loose := [line for line in recipe.image.pip if not _PINNED.search(line)]:
        yield Finding(
            level="warning",
            what="packages",
            seen=f"no exact version: {', '.join(loose)}",
            cure="pin each one with ==, or two builds may differ",
        )


def _caches(deployment: Deployment, recipe: Recipe) -> Iterator[Finding]:
    places = (*recipe.volumes, IMAGE_ROOT)
    for name, value in recipe.env.items():
        if (
            _CACHE_NAME.search(name)
            and value.startswith("/")
            and not any(PurePosixPath(value).is_relative_to(place) for place in places)
        ):
            yield Finding(
                level="warning",
                what="cache",
                seen=f"{name}={value} lies neither on a volume nor under {IMAGE_ROOT} of the image: each start fills it again",
                cure=f"mount a volume there (ImagePatch.volumes), or let a build step fill {IMAGE_ROOT}/...",
            )
    if deployment.model.repo_id and not recipe.volumes and not recipe.steps:
        yield Finding(
            level="warning",
            what="weights",
            seen=f"nothing keeps {deployment.model.repo_id}: each start downloads it",
            cure="add torpor_hf_cache.HFCache(volume=...)",
        )


def _secrets(deployment: Deployment, recipe: Recipe) -> Iterator[Finding]:
    refused = deployment.snapshot and deployment.secrets_in_snapshot == "refuse"
    outcome = ", so no snapshot will be taken" if refused else ", and in every snapshot"
    level: Literal["error", "warning"] = "error" if refused else "warning"
    for name, kind in secrets_in(recipe.env).items():
        origin = recipe.origins.get(f"env:{name}", "?")
        yield Finding(
            level=level,
            what="secret",
            seen=f"{name} is in the serving environment (plugin {origin}){_of_kind(kind)}{outcome}",
            cure="give it to a build step alone (BuildStep.secrets); a serving engine needs none",
        )
    extra: tuple[str, ...] = getattr(deployment.engine, "extra_args", ())
    for flag, kind in secret_arguments((*extra, *recipe.engine_args)).items():
        yield Finding(
            level=level,
            what="secret",
            seen=f"{flag} is among the engine's arguments{_of_kind(kind)}{outcome}",
            cure="take it out: command lines are read by every user of the machine, and kept in snapshots",
        )
    for step in recipe.steps:
        for name, kind in {**secrets_in(step.env), **secret_arguments(step.argv)}.items():
            yield Finding(
                level="warning",
                what="secret",
                seen=f"{name} is written out in build step {step.name!r}{_of_kind(kind)}, and stays in the image's layers",
                cure="name the platform's secret instead: BuildStep(secrets=('my-secret',))",
            )


def _of_kind(kind: str) -> str:
    return "" if kind == BY_NAME else f" and holds {kind}"


def _address(deployment: Deployment) -> Iterator[Finding]:
    if is_open(deployment.host, deployment.engine):
        yield Finding(
            level="warning",
            what="address",
            seen=f"Deployment.host is {deployment.host}: other machines may use the server, and it asks for no key",
            cure="set api_key_sha256 of the engine's plugin (`torpor key new`), or leave Deployment.host at 127.0.0.1",
        )


def _engine(deployment: Deployment) -> Iterator[Finding]:
    if os.environ.get(ANY_ENGINE_VARIABLE, "") not in ("", "0"):
        engine = deployment.engine
        yield Finding(
            level="warning",
            what="engine",
            seen=f"{ANY_ENGINE_VARIABLE} is set: {plugin_name(engine)} {engine.engine_version} may be a version whose routes and "
            "flags were never checked",
            cure=f"unset {ANY_ENGINE_VARIABLE}, and use a version that the plugin names as supported",
        )
    if not deployment.engine.guarded:
        yield Finding(
            level="warning",
            what="guard",
            seen=f"{plugin_name(deployment.engine)} runs without a guard: every route of it is public",
            cure="put a proxy before it, or use an engine plugin with a guard",
        )
