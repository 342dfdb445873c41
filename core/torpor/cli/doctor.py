"""`torpor doctor`: what blocks an app's start, and what this machine lacks for snapshots."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from torpor.app_file import load_app
from torpor.build_steps.relocation import relocate
from torpor.cli.console import LEVEL_STYLES
from torpor.cli.exit_codes import FAILED, OK, WRONG_INPUT
from torpor.cli.layout import Layout
from torpor.cli.terminal import claim_output, result
from torpor.doctor.app import cautions
from torpor.doctor.machine import diagnose
from torpor.doctor.several_gpus import known_of_image
from torpor.errors import ConfigurationError, PreflightError, TorporError
from torpor.platforms.local.requirements import check_gpu
from torpor.plugin_checks import plugin_findings
from torpor.runtime.preflight import RECHECK_VARIABLE, run_preflight
from torpor.snapshots.store.paths import cache_root
from torpor.values.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torpor.app_file import App
    from torpor.deployment import Deployment
    from torpor.lifecycle import Lifecycle

__all__ = ["run_doctor"]

_MODAL, _HERE = _PLATFORMS = ("modal", "here")
_RECHECK_TIMEOUT_S = 7200.0
_EXIT_CODES = {"ok": OK, "warning": FAILED, "error": WRONG_INPUT}


def run_doctor(app_file: str, *, as_json: bool, recheck: bool = False, platform: str = "") -> None:
    """Check, show what was found, and exit with 0 (no problems), 1 (warnings) or 2 (errors).

    Args:
        app_file: what is to be deployed; empty for the machine alone.
        as_json: print JSON.
        recheck: also read every file that the plugins downloaded to this machine, and compare it.
        platform: `modal` or `here`: what the app is checked for; empty chooses.

    Raises:
        ConfigurationError: a recheck or a platform without an app, or an unknown platform.
    """
    _check_options(app_file, recheck=recheck, platform=platform)
    claim_output()
    if app_file:
        platform, findings = _findings(load_app(app_file), platform, recheck=recheck)
    else:
        findings = diagnose()
    code = max(_EXIT_CODES[finding.level] for finding in findings)
    if as_json:
        told = {"exit_code": code, "for": platform, "findings": [asdict(finding) for finding in findings]}
        result(json.dumps(told, indent=2))
    else:
        _show(findings)
    sys.exit(code)


def _check_options(app_file: str, *, recheck: bool, platform: str) -> None:
    if platform and platform not in _PLATFORMS:
        raise ConfigurationError(f"--for is {platform!r}; allowed are {' and '.join(_PLATFORMS)}.")
    if platform and not app_file:
        raise ConfigurationError(
            f"--for names the platform to check an app for; name the app: torpor doctor APP --for {platform}"
        )
    if recheck and not app_file:
        raise ConfigurationError(
            "--recheck reads what an app's plugins downloaded; name the app: torpor doctor APP --recheck"
        )


def _findings(app: App, platform: str, *, recheck: bool) -> tuple[str, tuple[Finding, ...]]:
    """The platform that the app is checked for, and what was found."""
    platform, chosen = (platform, "as --for says") if platform else _chosen_platform(app)
    findings = (_of_platform(platform, chosen), *_of_app(app.lifecycle, on_modal=platform == _MODAL))
    findings += diagnose(app.lifecycle) if platform == _HERE else tuple(_on_modal(app.deployment))
    if recheck:
        findings += tuple(_rechecked(app.lifecycle))
    return platform, findings


def _show(findings: Sequence[Finding]) -> None:
    layout = Layout()
    for finding in findings:
        who = f"plugin {finding.plugin}: " if finding.plugin else ""
        layout.field(f"{finding.level:<8} {finding.what:<12} ", f"{who}{finding.seen}", LEVEL_STYLES[finding.level])
        if finding.cure:
            layout.field(f"{'':<21} -> ", finding.cure)


def _chosen_platform(app: App) -> tuple[str, str]:
    """What an app is checked for by default, and why."""
    deployment = app.deployment
    if not any(map(_is_modal_app, vars(sys.modules[app.file.stem]).values())):
        return _HERE, "the app file has no modal.App"
    try:
        check_gpu(deployment)
    except ConfigurationError:
        gpu = (deployment.gpu or "").replace("!", "")
        return _MODAL, f"the app file has a modal.App, and this machine has no {gpu}"
    return _HERE, f"this machine has what the app needs ({deployment.gpu or 'no GPU'})"


def _is_modal_app(value: object) -> bool:
    return type(value).__name__ == "App" and type(value).__module__.partition(".")[0] == "modal"


def _of_platform(platform: str, chosen: str) -> Finding:
    if platform == _MODAL:
        seen = f"checked for Modal, not for this machine ({chosen}); --for here checks this machine"
    else:
        seen = f"checked for this machine ({chosen}); --for modal checks the app for Modal"
    return Finding(level="ok", what="platform", seen=seen)


def _on_modal(deployment: Deployment) -> Iterator[Finding]:
    """Whether the app can be rendered for Modal, without an account or a network."""
    from torpor.platforms.modal import cls_options  # noqa: PLC0415 - modal: 190 ms of `doctor` for this machine
    from torpor.platforms.modal.account import is_logged_in  # noqa: PLC0415

    try:
        options = cls_options(deployment)
    except ConfigurationError as error:
        yield Finding(level="error", what="Modal", seen=str(error), cure="change what it names in the app file")
    else:
        limit = f"a start may take {options['startup_timeout']} s in all"
        yield Finding(level="ok", what="Modal", seen=f"image and options can be rendered; {limit}")
    if not is_logged_in():
        yield Finding(
            level="ok",
            what="account",
            seen="not asked: nobody is logged in to Modal here. Before `modal deploy`: modal setup",
        )


def _rechecked(lifecycle: Lifecycle) -> Iterator[Finding]:
    """What the plugins' preflight checks find when they read every file (TORPOR_RECHECK=1)."""
    deployment = lifecycle.deployment
    recipe = relocate(lifecycle.recipe(), cache_root(), deployment.name)
    if not recipe.preflight:
        yield Finding(
            level="ok", what="recheck", seen=f"no plugin of {deployment.name!r} checks anything before a start"
        )
    for check in recipe.preflight:
        os.environ[RECHECK_VARIABLE] = "1"
        try:
            run_preflight(replace(check, timeout_s=_RECHECK_TIMEOUT_S), recipe)
            yield Finding(level="ok", what=check.name, seen="all files were read and match")
        except PreflightError as error:
            yield Finding(
                level="error", what=check.name, seen=str(error).removesuffix(check.cure).strip(), cure=check.cure
            )
        finally:
            del os.environ[RECHECK_VARIABLE]


def _of_app(lifecycle: Lifecycle, *, on_modal: bool) -> Iterator[Finding]:
    """What is found in the app itself, whatever the machine."""
    deployment = lifecycle.deployment
    of_plugins = plugin_findings(deployment)
    yield from of_plugins
    try:
        recipe = lifecycle.recipe()
    except ConfigurationError:
        if any(finding.level == "error" for finding in of_plugins):
            return  # the plugin's check has said why
        raise
    found = cautions(deployment, recipe)
    if on_modal:  # on this machine `diagnose` asks the engine's interpreter
        found = (*known_of_image(deployment, recipe, on_modal=True), *found)
    yield from found
    if not of_plugins and not found:
        yield Finding(level="ok", what="app", seen=f"no problems found in the values of {deployment.name!r}")
    if deployment.snapshot:
        seen = "starts without a snapshot and takes none; only `modal deploy` uses snapshots"
        yield Finding(level="ok", what="modal run", seen=seen)
    if names := tuple(dict.fromkeys(name for step in recipe.steps for name in step.secrets)):
        yield _of_secrets(names)
    yield from _of_contract(deployment)


def _of_contract(deployment: Deployment) -> Iterator[Finding]:
    """Whether the plugins keep the contract, where it can be checked."""
    try:
        from torpor.testing.broken_rules import contract_findings  # noqa: PLC0415 - only with the extra `testing`
    except ImportError:
        seen = "not checked: this needs pytest (pip install 'torpor[testing]')"
        yield Finding(level="ok", what="contract", seen=seen)
        return
    yield from contract_findings(deployment)


def _of_secrets(names: tuple[str, ...]) -> Finding:
    """Whether Modal has the secrets that build steps need; asked only where somebody is logged in."""
    from torpor.platforms.modal.account import is_logged_in, missing_secrets  # noqa: PLC0415 - modal: 190 ms

    listed = ", ".join(names)
    if not is_logged_in():
        return Finding(
            level="ok",
            what="secrets",
            seen=f"build steps need {listed}; nobody is logged in to Modal here, so this was not checked",
        )
    try:
        missing = missing_secrets(names)
    except TorporError as error:
        return Finding(level="warning", what="secrets", seen=f"build steps need {listed}; {error}")
    if missing:
        return Finding(
            level="error",
            what="secrets",
            seen=f"Modal has no secret {' and none '.join(missing)}, which build steps need",
            cure="; ".join(f"modal secret create {name} KEY=VALUE" for name in missing),
        )
    return Finding(level="ok", what="secrets", seen=f"Modal has {listed}")
