"""The plugins' checks of a whole deployment (`Plugin.check`), called before anything costs time.

findings = plugin_findings(deployment)      # everything: `torpor doctor`
warnings = accepted(deployment)             # errors refuse the deployment: every other command, and the import on Modal
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import os
import signal
import threading
import time
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

from torpor.adapter_checks import adapter_findings
from torpor.deployment import plugin_name
from torpor.errors import ConfigurationError
from torpor.hookspecs import EnginePlugin, Plugin
from torpor.plugin_settings import setting_findings
from torpor.telemetry.events import log
from torpor.values.field_types import article, shown
from torpor.values.findings import Finding
from torpor.values.sleep_parts import lost_parts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from torpor.deployment import Deployment

__all__ = ["accepted", "answer_of", "asked_by_the_command", "command_asks", "plugin_findings", "tell_warnings"]

_MOST_FINDINGS = 1000
_DEADLINE_S = 30.0
"""For one check. It looks at values, so it takes milliseconds; one that waits for a network may never return."""
_AGAIN_S = 1.0  # a bare `except:` in the check swallows one interrupt, not all of them
_told_once: set[Finding] = set()
_command_asks: ContextVar[bool] = ContextVar("command_asks", default=False)
_CURE = (
    "fix the plugin's check: it looks at values alone and returns findings (torpor.Finding), as a tuple or by yield, () for none; "
    "it neither raises nor waits"
)


def plugin_findings(deployment: Deployment) -> tuple[Finding, ...]:
    """The findings of every plugin's check, with the plugin's name; a failed check is an error finding.

    Beside them stand misspelt settings, and adapters in folders here that the engine could not load.
    """
    found = (finding for plugin in deployment.plugins for finding in _of_plugin(plugin, deployment))
    return (*found, *setting_findings(deployment, os.environ), *adapter_findings(deployment))


def accepted(deployment: Deployment) -> tuple[Finding, ...]:
    """The warnings of every plugin's check.

    Raises:
        ConfigurationError: a check found an error; every error is in the message, with its cure.
    """
    findings = plugin_findings(deployment)
    errors = [finding for finding in findings if finding.level == "error"]
    if errors:
        _refuse(deployment, errors)
    return tuple(finding for finding in findings if finding.level == "warning")


@contextlib.contextmanager
def asked_by_the_command() -> Iterator[None]:
    """While the block runs, a command imports an app; it calls the checks itself and shows all findings."""
    token = _command_asks.set(True)
    try:
        yield
    finally:
        _command_asks.reset(token)


def command_asks() -> bool:
    """Whether a command imports the app that calls the checks itself."""
    return _command_asks.get()


def tell_warnings(deployment: Deployment) -> None:
    """Log the warnings of every plugin's check, each once in this process.

    Raises:
        ConfigurationError: as of `accepted`.
    """
    for finding in accepted(deployment):
        if finding not in _told_once:
            _told_once.add(finding)
            log(
                "warning",
                "plugin_check",
                plugin=finding.plugin,
                what=finding.what,
                seen=finding.seen,
                cure=finding.cure,
            )


def _refuse(deployment: Deployment, errors: list[Finding]) -> NoReturn:
    told = " ".join(f"Plugin {finding.plugin!r}: {_told(finding)}." for finding in errors)
    raise ConfigurationError(f"Deployment {deployment.name!r} cannot work as it is. {told}")


def _told(finding: Finding) -> str:
    cure = f": {finding.cure.rstrip('.')}" if finding.cure else ""
    return f"{finding.what}: {finding.seen.rstrip('.')}{cure}"


def answer_of(plugin: object, deployment: Deployment) -> tuple[Finding, ...] | str:
    """The findings of one plugin's check; or a text that says what the check did instead."""
    check = getattr(plugin, "check", None)
    if isinstance(plugin, Plugin) and not callable(check):
        return f"is {check!r}, which is no method"
    if not callable(check) or not _takes_a_deployment(check):
        return ()
    try:
        with _deadline():
            return _checked(check(deployment))
    except _DeadlineError:
        return f"did not return within {_DEADLINE_S:g} s"
    except Exception as error:
        return f"raised {type(error).__name__}: {error}"
    except SystemExit as error:
        return f"called sys.exit({error.code!r})"


class _DeadlineError(BaseException):
    """A check took too long. Not an `Exception`: a check that catches those must not catch this one."""


@contextlib.contextmanager
def _deadline() -> Iterator[None]:
    """Interrupt a check that hangs, by SIGALRM. In the main thread only: Python runs signal handlers there."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise _DeadlineError

    began, handler = time.monotonic(), signal.signal(signal.SIGALRM, interrupt)
    left_s, interval_s = signal.setitimer(signal.ITIMER_REAL, _DEADLINE_S, _AGAIN_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left_s:  # a timer that ran before goes on, e.g. a test's own
            signal.setitimer(signal.ITIMER_REAL, max(left_s - (time.monotonic() - began), 0.001), interval_s)


def _of_plugin(plugin: object, deployment: Deployment) -> Iterator[Finding]:
    name, answer = plugin_name(plugin), answer_of(plugin, deployment)
    if isinstance(answer, str):
        yield Finding(level="error", plugin=name, what="check", seen=f"its check {answer}", cure=_CURE)
    else:
        yield from (replace(finding, plugin=name) for finding in answer)
    if isinstance(plugin, EnginePlugin):
        yield from _lost_in_a_sleep(plugin, deployment)


def _lost_in_a_sleep(engine: EnginePlugin, deployment: Deployment) -> Iterator[Finding]:
    """An error for each kind of memory that a sleep would drop and nobody would restore."""
    for part in lost_parts(engine.sleep_parts(deployment)):
        yield Finding(
            level="error",
            plugin=plugin_name(engine),
            what="sleep",
            seen=f"a sleep drops the {part.what} ({part.option}), and nothing restores them at the wake",
            cure="change that option, so that they are kept or read again",
        )


def _takes_a_deployment(check: object) -> bool:
    """Whether a method named `check` is Torpor's: a class that does not derive from `Plugin` may have another one."""
    owner = getattr(check, "__self__", None)
    if isinstance(owner, Plugin):
        return True
    try:
        return "deployment" in inspect.signature(check).parameters  # type: ignore[arg-type] # it is callable
    except (TypeError, ValueError):
        return False


def _checked(told: object) -> tuple[Finding, ...] | str:
    """The findings that a check returned, or what is wrong with them."""
    if inspect.iscoroutine(told):
        told.close()
        return "is an async def, which nobody awaits: it returned a coroutine"
    if isinstance(told, str | bytes | dict) or not isinstance(told, Iterable):
        return f"returned {shown(told)}" + ("" if told is None else f", {article(told)}")
    found = tuple(itertools.islice(told, _MOST_FINDINGS + 1))
    if len(found) > _MOST_FINDINGS:
        return f"gave more than {_MOST_FINDINGS} findings"
    wrong = next((item for item in found if not isinstance(item, Finding)), None)
    if any(not isinstance(item, Finding) for item in found):
        return f"gave {shown(wrong)}, {article(wrong)}, in place of a finding"
    return tuple(item for item in found if isinstance(item, Finding))
