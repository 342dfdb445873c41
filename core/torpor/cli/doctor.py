"""`torpor doctor`: what is known to fail with an app, and what this machine lacks for snapshots."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from torpor.app_file import load_app
from torpor.cli.console import LEVEL_STYLES
from torpor.cli.layout import Layout
from torpor.cli.terminal import claim_output, result
from torpor.doctor.app import cautions
from torpor.doctor.machine import diagnose
from torpor.errors import ConfigurationError, TorporError
from torpor.plugin_checks import plugin_findings
from torpor.values.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torpor.app_file import App
    from torpor.deployment import Deployment
    from torpor.lifecycle import Lifecycle

__all__ = ["run_doctor"]

_MODAL, _HERE = _PLATFORMS = ("modal", "here")
_RECHECK_TIMEOUT_S = 7200.0
_EXIT_CODES = {"ok": 0, "warning": 1, "error": 2}


def run_doctor(app_file: str, *, as_json: bool, recheck: bool = False, platform: str = "") -> None:
    """Look, say what was seen, and exit with 0 (nothing lacks), 1 (warnings) or 2 (errors).

    Args:
        app_file: what is to be deployed; empty for the machine alone.
        as_json: print JSON.
        recheck: also read everything that the plugins fetched to this machine, and compare it.
        platform: `modal` or `here`: what the app is looked at for; empty for what makes sense for it.

    Raises:
        ConfigurationError: a recheck or a platform without an app, or an unknown platform.
    """
    if platform and platform not in _PLATFORMS:
        raise ConfigurationError(f"--for is {platform!r}; allowed are {' and '.join(_PLATFORMS)}.")
    if platform and not app_file:
        raise ConfigurationError(
            f"--for says what an app is looked at for; name the app: torpor doctor APP --for {platform}"
        )
    if recheck and not app_file:
        raise ConfigurationError(
            "--recheck reads what an app's plugins fetched; name the app: torpor doctor APP --recheck"
        )
    claim_output()
    app = load_app(app_file) if app_file else None
    if app is None:
        findings = diagnose()
    else:
        platform, chosen = (platform, "as --for says") if platform else _chosen_platform(app)
        findings = (_of_platform(platform, chosen), *_of_app(app.lifecycle))
        findings += diagnose(app.lifecycle) if platform == _HERE else tuple(_on_modal(app.deployment))
    if recheck and app:
        findings += tuple(_rechecked(app.lifecycle))
    code = max(_EXIT_CODES[finding.level] for finding in findings)
    if as_json:
        result(
            json.dumps(
                {"exit_code": code, "for": platform, "findings": [asdict(finding) for finding in findings]}, indent=2
            )
        )
    else:
        layout = Layout()
        for finding in findings:
            who = f"plugin {finding.plugin}: " if finding.plugin else ""
            layout.field(f"{finding.level:<8} {finding.what:<12} ", f"{who}{finding.seen}", LEVEL_STYLES[finding.level])
            if finding.cure:
                layout.field(f"{'':<21} -> ", finding.cure)
    sys.exit(code)


def _chosen_platform(app: App) -> tuple[str, str]:
    """What an app is looked at for when nobody says it, and why."""
    from torpor.platforms.local.server import check_gpu  # noqa: PLC0415 - with an app only

    module, deployment = sys.modules.get(app.file.stem), app.deployment
    if not any(
        type(value).__name__ == "App" and type(value).__module__.partition(".")[0] == "modal"
        for value in vars(module).values()
    ):
        return _HERE, "the app file has no modal.App"
    try:
        check_gpu(deployment)
    except ConfigurationError:
        return (
            _MODAL,
            f"the app file has a modal.App, and this machine has no {(deployment.gpu or '').replace('!', '')}",
        )
    return _HERE, f"this machine has what the app needs ({deployment.gpu or 'no GPU'})"


def _of_platform(platform: str, chosen: str) -> Finding:
    other = _PLATFORMS[1 - _PLATFORMS.index(platform)]
    looked = "for Modal; this machine is not looked at" if platform == _MODAL else "for this machine"
    return Finding(level="ok", what="looked at", seen=f"{looked} ({chosen}); --for {other} looks at the other")


def _on_modal(deployment: Deployment) -> Iterator[Finding]:
    """Whether the app can be rendered for Modal, without an account or a network."""
    from torpor.platforms.modal import cls_options  # noqa: PLC0415 - half a second of import
    from torpor.platforms.modal.account import is_logged_in  # noqa: PLC0415

    try:
        options = cls_options(deployment)
    except ConfigurationError as error:
        yield Finding(level="error", what="Modal", seen=str(error), cure="change what it names in the app file")
    else:
        limit = f"a start may take {options['startup_timeout']} s in all"
        yield Finding(level="ok", what="Modal", seen=f"image and options can be rendered; {limit}")
    if not is_logged_in():
        yield Finding(level="ok", what="account", seen="nobody is logged in to Modal here; `modal setup` logs in")


def _rechecked(lifecycle: Lifecycle) -> Iterator[Finding]:
    """What each plugin's check before a start says when it reads everything (TORPOR_RECHECK=1)."""
    from torpor.build_steps.relocation import relocate  # noqa: PLC0415
    from torpor.errors import PreflightError  # noqa: PLC0415
    from torpor.runtime.preflight import run_preflight  # noqa: PLC0415
    from torpor.snapshots.store.paths import cache_root  # noqa: PLC0415

    deployment = lifecycle.deployment
    recipe = relocate(lifecycle.recipe(), cache_root(), deployment.name)
    if not recipe.preflight:
        yield Finding(
            level="ok", what="recheck", seen=f"no plugin of {deployment.name!r} checks anything before a start"
        )
    for check in recipe.preflight:
        os.environ["TORPOR_RECHECK"] = "1"
        try:
            run_preflight(replace(check, timeout_s=_RECHECK_TIMEOUT_S), recipe)
            yield Finding(level="ok", what=check.name, seen="all of it was read and is as it should be")
        except PreflightError as error:
            yield Finding(
                level="error", what=check.name, seen=str(error).removesuffix(check.cure).strip(), cure=check.cure
            )
        finally:
            del os.environ["TORPOR_RECHECK"]


def _of_app(lifecycle: Lifecycle) -> Iterator[Finding]:
    """What stands out in the app itself, before anything of the machine."""
    deployment = lifecycle.deployment
    of_plugins = plugin_findings(deployment)
    yield from of_plugins
    try:
        recipe = lifecycle.recipe()
    except ConfigurationError:
        if any(finding.level == "error" for finding in of_plugins):
            return  # the plugin's check has said why
        raise
    found = (*of_plugins, *cautions(deployment, recipe))
    yield from found[len(of_plugins) :]
    if not found:
        yield Finding(level="ok", what="app", seen=f"nothing stands out in the values of {deployment.name!r}")
    if deployment.snapshot:
        yield Finding(
            level="ok",
            what="modal run",
            seen="starts without a snapshot and takes none; only `modal deploy` uses snapshots",
        )
    if names := tuple(dict.fromkeys(name for step in recipe.steps for name in step.secrets)):
        yield _of_secrets(names)
    try:
        from torpor.testing.broken_rules import contract_findings  # noqa: PLC0415 - needs pytest
    except ImportError:
        yield Finding(
            level="ok", what="contract", seen="not looked at: that takes pytest (pip install 'torpor[testing]')"
        )
        return
    yield from contract_findings(deployment)


def _of_secrets(names: tuple[str, ...]) -> Finding:
    """Whether the secrets that build steps want are there, as far as that can be asked."""
    from torpor.platforms.modal.account import is_logged_in, missing_secrets  # noqa: PLC0415 - half a second of import

    listed = ", ".join(names)
    if not is_logged_in():
        return Finding(
            level="ok", what="secrets", seen=f"build steps want {listed}; nobody is logged in to Modal here to ask"
        )
    try:
        missing = missing_secrets(names)
    except TorporError as error:
        return Finding(level="warning", what="secrets", seen=f"build steps want {listed}; {error}")
    if missing:
        return Finding(
            level="error",
            what="secrets",
            seen=f"Modal has no secret {' and none '.join(missing)}, which build steps want",
            cure="; ".join(f"modal secret create {name} KEY=VALUE" for name in missing),
        )
    return Finding(level="ok", what="secrets", seen=f"Modal has {listed}")
