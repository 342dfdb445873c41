"""App files as Ray Serve will serve them: an application for each, its prefix, its options, and what speaks against it.

Values alone are read; Ray is not imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torpor.app_file import load_app
from torpor.errors import ConfigurationError
from torpor.platforms.ray.checks import ray_findings
from torpor.platforms.ray.names import application_name, prefix_of
from torpor.platforms.ray.options import DeploymentOptions, deployment_options
from torpor.plugin_checks import plugin_findings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torpor.app_file import App
    from torpor.values.findings import Finding

__all__ = ["Served", "as_served", "by_model", "check_distinct", "served"]


@dataclass(frozen=True, kw_only=True)
class Served:
    """One app file on Ray Serve.

    Attributes:
        app: its app.
        application: name of its Serve application.
        route_prefix: of its routes; `/` if it is the only one, and never at zero.
        options: of its Serve deployment; None if Ray cannot serve it.
        findings: why not (`error`), and what is different (`warning`); those of Ray, and of the plugins' checks.
    """

    app: App
    application: str
    route_prefix: str
    options: DeploymentOptions | None
    findings: tuple[Finding, ...]

    def restores(self, snapshots: str) -> bool:
        """Whether its replicas are restored where a snapshot fits.

        Args:
            snapshots: URL of the store; empty for none.
        """
        return bool(snapshots) and self.app.deployment.snapshot


def served(files: Sequence[str | Path]) -> tuple[Served, ...]:
    """Import app files, each once, and find out how Ray serves them. What cannot be served has an `error` among its findings.

    Raises:
        ConfigurationError: there is no file, one cannot be imported, or two have the same deployment or model name.
    """
    if not files:
        raise ConfigurationError("No app file was given; give at least one, e.g. apps/tiny_cpu.py.")
    apps = [load_app(str(file)) for file in {Path(file).absolute(): file for file in files}.values()]
    check_distinct(apps)
    return tuple(as_served(app, alone=len(apps) == 1) for app in apps)


def by_model(apps: Sequence[Served]) -> bool:
    """Whether one application at `/` stands before all of them: with several models, and with one that goes to zero.

    Serve starts a replica for any request that reaches an application at zero, whatever its path and key.
    """
    return any(one.route_prefix != "/" for one in apps)


def check_distinct(apps: Sequence[App]) -> None:
    """Refuse two app files with one deployment name or one model name; adapters count as models.

    Raises:
        ConfigurationError: names both files.
    """
    names: dict[tuple[str, str], Path] = {}
    for app in apps:
        deployment = app.deployment
        for kind, name in (
            ("a deployment", deployment.name),
            *(("a model", name) for name in deployment.model.served_names),
        ):
            first = names.setdefault((kind, name), app.file)
            if first is not app.file:
                raise ConfigurationError(
                    f"{first} and {app.file} both have {kind} named {name!r}; give one of them another name."
                )


def as_served(app: App, *, alone: bool) -> Served:
    """How Ray serves an app.

    Args:
        app: imported already.
        alone: whether it is the only one, and so served at `/`.
    """
    deployment = app.deployment
    findings = (*ray_findings(deployment), *plugin_findings(deployment))
    fails = any(finding.level == "error" for finding in findings)
    return Served(
        app=app,
        application=application_name(deployment.name),
        route_prefix="/" if alone and deployment.scaling.min_containers else prefix_of(deployment.name),
        options=None if fails else deployment_options(deployment),
        findings=tuple(finding for finding in findings if finding.level != "ok"),
    )
