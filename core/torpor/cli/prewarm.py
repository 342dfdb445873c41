"""`torpor prewarm`: cold starts until restores begin."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from torpor.app_file import load_app
from torpor.cli.exit_codes import FAILED
from torpor.cli.terminal import claim_output, result, say
from torpor.cli.waiting import waiting_limits
from torpor.errors import ConfigurationError
from torpor.network import descriptors
from torpor.network.modal_keys import modal_keys
from torpor.platforms.modal.log import classify
from torpor.platforms.modal.prewarm import MAX_ATTEMPTS, MAX_REQUESTS, prewarm
from torpor.values.addresses import shown_url
from torpor.values.bounds import checked_count, checked_seconds
from torpor.values.client_keys import MODAL_KEY_VARIABLE, MODAL_SECRET_VARIABLE
from torpor.values.plain_text import plain

if TYPE_CHECKING:
    from collections.abc import Callable

    from torpor.platforms.modal.log import BootsReport
    from torpor.platforms.modal.prewarm import Prewarmed, Round

__all__ = ["run_prewarm"]

_PAUSE_S = 90.0  # Modal's own scale-down window is 60 s where an app names none (client 1.6.4)
_MARGIN_S = 30.0
_TIMEOUT_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class _Target:
    url: str
    pause_s: float
    read_log: Callable[[float], BootsReport] | None


def run_prewarm(
    target: str, *, requests: int, attempts: int, pause: float | None, timeout_s: float | None, as_json: bool
) -> None:
    """Drive cold starts; the verdict goes to standard output, each round to standard error.

    Args:
        target: URL, app file or name of a deployed app.
        requests: concurrent requests in each round.
        attempts: number of rounds.
        pause: seconds between two rounds; None: as long as the app needs to scale down.
        timeout_s: seconds for all of it; None for 3600, and for ten where nothing listens.
        as_json: print JSON.

    Raises:
        SystemExit: with 1, if it gave up.
        TorporError: there is no such target, or it refuses.
    """
    limits = waiting_limits(timeout_s, _TIMEOUT_S)
    _check_options(requests, attempts, pause)
    descriptors.raise_limit()
    claim_output()
    found = _find(target)
    with limits.told(found.url):
        ended = prewarm(
            found.url,
            requests=requests,
            attempts=attempts,
            pause_s=found.pause_s if pause is None else pause,
            timeout_s=limits.timeout_s,
            connect_s=limits.connect_s,
            read_log=found.read_log,
            on_round=lambda one: say(_round_line(one)),
            on_wait=lambda reason: say(f"waiting: {reason}"),
        )
    _show(ended, found.url, as_json=as_json)
    if ended.end != "restored":
        sys.exit(FAILED)


def _show(ended: Prewarmed, url: str, *, as_json: bool) -> None:
    if as_json:
        rounds = [{**asdict(one), "restored": one.restored} for one in ended.rounds]
        result(json.dumps({**asdict(ended), "rounds": rounds, "starts": ended.starts, "url": shown_url(url)}, indent=2))
    else:
        result(plain(_verdict(ended)))


def _check_options(requests: int, attempts: int, pause: float | None) -> None:
    if pause is not None:
        checked_seconds("--pause", pause, zero=True)
    checked_count("--requests", requests, most=MAX_REQUESTS, what="requests at once")
    checked_count("--attempts", attempts, most=MAX_ATTEMPTS, what="rounds")


def _find(target: str) -> _Target:
    if target.startswith(("http://", "https://")):
        return _Target(url=target, pause_s=_PAUSE_S, read_log=None)
    from torpor.platforms.modal.account import app_logs, app_url  # noqa: PLC0415 - modal: 163 ms that a URL does not need

    name, pause_s = target, _PAUSE_S
    if target.endswith(".py"):
        deployment = load_app(target).deployment
        name, pause_s = deployment.name, deployment.scaling.scaledown_window_s + _MARGIN_S
        if deployment.modal is not None and deployment.modal.requires_proxy_auth:
            _check_token(target)
    return _Target(url=app_url(name), pause_s=pause_s, read_log=lambda hours: classify(app_logs(name, hours=hours)))


def _check_token(target: str) -> None:
    if not modal_keys():
        raise ConfigurationError(
            f"{target} is deployed with requires_proxy_auth, and there is no proxy token to ask it with. Put one into "
            f"{MODAL_KEY_VARIABLE} (wk-...) and {MODAL_SECRET_VARIABLE} (ws-...)."
        )


def _round_line(one: Round) -> str:
    new = [f"{replica.tag} {replica.boot} after {replica.seconds:.1f} s" for replica in one.new]
    if one.known:
        new.append(f"{one.known} that ran before")
    if one.restored_in_log:
        new.append(f"{one.restored_in_log} restored by the app's log")
    return (
        f"round {one.number}: {one.answered} answers in {one.seconds:.1f} s; replicas: {', '.join(new) or 'none named'}"
    )


def _verdict(ended: Prewarmed) -> str:
    seen = f"(other starts seen: {ended.starts}, rounds: {len(ended.rounds)}, {ended.seconds:.1f} s)"
    if ended.end == "restored":
        return f"restores have begun {seen}"
    if ended.end == "timeout":
        why = f"; last seen: {ended.last_seen}" if ended.last_seen else ""
        return f"gave up at the deadline without a restored start {seen}{why}"
    hint = ""
    if not ended.rounds[-1].new:
        hint = "; the last round met only replicas that ran before: give the app time to scale down with --pause"
    return f"gave up without a restored start {seen}{hint}"
