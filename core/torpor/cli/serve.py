"""`torpor serve`: several deployments at one address, to zero and back."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from torpor.cli.announcing import replica_facts
from torpor.cli.console import console as make_console
from torpor.cli.ending import drained
from torpor.cli.interrupts import Signals, ends_on_sigterm
from torpor.cli.layout import Layout
from torpor.cli.listening import given_address, public_warning
from torpor.cli.terminal import result
from torpor.errors import ConfigurationError
from torpor.network import descriptors
from torpor.platforms.local.running import RunFile
from torpor.platforms.local.serve.configuration import read_configuration
from torpor.platforms.local.serve.planned import plan_of
from torpor.platforms.local.serve.server import ServeHere
from torpor.platforms.local.service_manager import ServiceManager
from torpor.telemetry.events import warnings_only
from torpor.values.addresses import url

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torpor.platforms.local.serve.planned import Plan, Planned

__all__ = ["run_serve"]

_LOOK_S = 5.0
_GATHERED_S = 0.3
"""Seconds in which further changes are gathered: a start has the machine's CPUs for itself."""


def run_serve(
    files: Sequence[str],
    *,
    config: Path | None,
    host: str | None,
    port: int | None,
    check: bool,
    as_json: bool,
    metrics: str = "",
    engine_metrics: bool = False,
) -> None:
    """Serve until a signal.

    Args:
        files: app files.
        config: the configuration's file.
        host: from the command line.
        port: from the command line.
        check: say what would be served, and serve nothing.
        as_json: print that as JSON.
        metrics: address of the metrics, apart from the control paths; empty for none.
        engine_metrics: whether the engines' own metrics are passed on.

    Raises:
        ConfigurationError: what is to be served does not fit together, or not on this machine.
        PortInUseError: somebody else listens on the port.
    """
    host, port = given_address(host, port)
    if check or as_json:
        _show(plan_of(files, read_configuration(config)), as_json=as_json)
        return
    warnings_only()
    ends_on_sigterm()
    descriptors.raise_limit()
    _Serve(files, config, host, port, metrics=metrics, engine_metrics=engine_metrics).run()


class _Serve:
    """One run of the command."""

    def __init__(
        self,
        files: Sequence[str],
        config: Path | None,
        host: str | None,
        port: int | None,
        *,
        metrics: str,
        engine_metrics: bool,
    ) -> None:
        self._metrics = metrics
        self._console = make_console()
        self._signals = Signals()
        self._manager = ServiceManager()
        self._server = ServeHere(
            files,
            config=config,
            host=host,
            port=port,
            tell=self._say,
            on_change=self._signals.look,
            engine_metrics=engine_metrics,
        )
        self._files: dict[str, RunFile] = {}
        self._written: dict[str, object] = {}

    def run(self) -> None:
        """Listen, serve, drain, stop."""
        try:
            if self._metrics:
                self._say(f"metrics on {self._server.show_metrics(self._metrics)}/metrics")
            self._signals.listen(hup_means_again=True)  # first: a SIGHUP by whom it answers already would end it
            self._server.start()
            self._say_serving()
            while not self._signals.end:
                self._announce()
                self._signals.wait(_LOOK_S)
                time.sleep(_GATHERED_S)
                if self._signals.again or self._server.changed_on_disk:
                    self._signals.again = False
                    self._reload()
            self._manager.stopping()
            drained(self._server, self._signals)
        finally:
            self._server.stop()
            for file in self._files.values():
                file.close()

    def _reload(self) -> None:
        try:
            self._server.reload()
        except ConfigurationError as error:
            self._say(f"the new configuration is refused, and the old one stays: {error}")
        else:
            self._say("the configuration was read again")

    def _say(self, text: str) -> None:
        if not self._signals.hung_up:
            self._console.print(text, markup=False, soft_wrap=True)

    def _say_serving(self) -> None:
        where = url(*self._server.address)
        plan = self._server.plan
        for one in plan.deployments:
            state = (
                "restored"
                if one.has_snapshot
                else "started cold, and captured once idle"
                if one.snapshot
                else "started cold"
            )
            self._say(
                f"{one.name}: {', '.join(model.name for model in one.models)}; on its first request it is {state}"
            )
            for note in one.notes:
                self._say(f"  note: {note}")
            if warning := public_warning(one.app.deployment, *self._server.address):
                self._say(warning)
        self._say(
            f"serving {len(plan.deployments)} deployment(s) on {where}/v1 - Ctrl-C ends it, SIGHUP reads it again"
        )
        self._say(f"control page: {where}/torpor/ - `torpor status --key` prints its key")
        self._manager.ready(f"serving {len(plan.deployments)} deployment(s) on {where}")

    def _announce(self) -> None:
        """Tell `torpor status` what has changed."""
        present = {one.name: one for one in self._server.plan.deployments}
        for told in self._server.status():
            name = str(told["name"])
            if name in present:
                self._write(present[name], str(told["state"]))
        for name in self._files.keys() - present.keys():
            self._files.pop(name).close()

    def _write(self, one: Planned, state: str) -> None:
        replicas = [replica_facts(name, boot) for name, boot in self._server.boots(one.name)]
        facts: dict[str, object] = {
            "deployment": one.name,
            "model": one.models[0].name,
            "app_file": str(one.app.file.absolute()),
            "backend": "criu" if one.snapshot else "standby",
            "url": url(*self._server.address),
            "snapshot": str(one.snapshot or ""),
            "state": state,
            "control_key": self._server.key,
            "wanted": len(replicas),
            "restarting": 0,
            "last_event": "",
            "last_event_at": 0.0,
            "replicas": replicas,
        }
        if self._written.get(one.name) != facts:
            self._written[one.name] = facts
            self._files.setdefault(one.name, RunFile("serve")).write(facts)


def _show(plan: Plan, *, as_json: bool) -> None:
    """Say what would be served."""
    if as_json:
        result(json.dumps(_as_json(plan), indent=2))
        return
    layout = Layout()
    budget = plan.budget
    gpus = f", {', '.join(f'{size / 1e9:.1f} GB' for size in budget.gpus)} of GPU memory" if budget.gpus else ""
    layout.field("budget  ", f"{(budget.host or 0) / 1e9:.1f} GB of host memory{gpus}")
    for one in plan.deployments:
        layout.field("", f"{one.name}: {', '.join(model.name for model in one.models)}")
        for label, text in _lines(one):
            layout.field(f"  {label:<9} ", text)


def _lines(one: Planned) -> list[tuple[str, str]]:
    terms, size = one.terms, one.terms.size or one.estimate
    lines = [("app", str(one.app.file))]
    if one.snapshot:
        there = "there" if one.has_snapshot else "none yet; captured once idle"
        lines.append(
            ("snapshot", f"{one.snapshot} ({there if terms.capture != 'never' or one.has_snapshot else 'none'})")
        )
    taken = "not known before its first start"
    if size is not None:
        taken = ", ".join([f"{size.host / 1e9:.2f} GB", *(f"{gpu / 1e9:.2f} GB on a GPU" for gpu in size.gpus)])
    lines.append(("memory", taken))
    lines.append(
        (
            "falls",
            "never: it is pinned" if terms.pinned else f"after {terms.idle_s:g} s without a request, to {terms.keep}",
        )
    )
    lines.append(("requests", f"{terms.most_requests} at once for each of {terms.least} to {terms.most} replica(s)"))
    lines.append(("waiting", f"{terms.queue} at most, {terms.deadline_s:g} s each"))
    return [*lines, *(("note", note) for note in one.notes)]


def _as_json(plan: Plan) -> dict[str, object]:
    return {
        "at": time.time(),
        "budget": plan.budget._asdict(),
        "deployments": [
            {
                "name": one.name,
                "app_file": str(one.app.file),
                "models": [model.name for model in one.models],
                "snapshot": str(one.snapshot or ""),
                "has_snapshot": one.has_snapshot,
                "size": (size := one.terms.size or one.estimate) and size._asdict(),
                "pinned": one.terms.pinned,
                "idle_s": one.terms.idle_s,
                "keep": one.terms.keep,
                "queue": one.terms.queue,
                "deadline_s": one.terms.deadline_s,
                "min_containers": one.terms.least,
                "max_containers": one.terms.most,
                "notes": list(one.notes),
            }
            for one in plan.deployments
        ],
    }
