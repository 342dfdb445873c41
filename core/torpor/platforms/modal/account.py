"""Questions to Modal about an account: where a deployed server answers, which secrets exist, an app's log."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, cast

import modal
from grpclib.exceptions import GRPCError, StreamTerminatedError
from modal.config import config
from modal.exception import AuthError, ClientClosed, InvalidError, LogsFetchError, NotFoundError, PermissionDeniedError
from modal.exception import ConnectionError as ModalConnectionError
from modal.exception import Error as ModalError

from torpor.errors import ConfigurationError, ServerUnavailableError
from torpor.platforms.modal.log_lines import LogLine
from torpor.values.plain_text import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torpor.deployment import Deployment

__all__ = ["app_logs", "app_url", "deployed_url", "is_logged_in", "missing_secrets", "web_url"]

_CONTAINER_PREFIX = "ta-"
_SHOWN_CHARACTERS = 500
_LOG_DAYS = 35  # the longest range that the service answers; client 1.6.4, modal/_logs.py


def web_url(server: type) -> str:
    """The URL of a class of a running app, for a local entrypoint under `modal run`, whose app is ephemeral.

    Raises:
        ServerUnavailableError: Modal gave the class no URL.
    """
    return _url_of(cast("modal.Cls", server))


def deployed_url(deployment: Deployment, class_name: str = "Server") -> str:
    """The URL of the deployed app's class.

    Raises:
        ServerUnavailableError: it is not deployed, or Modal cannot be reached.
        ConfigurationError: there are no credentials, or Modal refuses them.
    """
    return app_url(deployment.name, class_name)


def app_url(name: str, class_name: str = "Server", *, timeout_s: float = 60.0) -> str:
    """The URL of a class of the deployed app of that name.

    Args:
        name: the app's.
        class_name: of the server in it.
        timeout_s: seconds for the answer.

    Raises:
        ServerUnavailableError: it is not deployed, or Modal cannot be reached, or did not answer in time.
        ConfigurationError: the name is no valid app name, or there are no credentials, or Modal refuses them.
    """
    with _answers_of_modal():
        try:
            return _within(timeout_s, lambda: _url_of(modal.Cls.from_name(name, class_name)))
        except NotFoundError as error:
            raise ServerUnavailableError(
                f"{name!r} is not deployed ({error}). Deploy it first with `modal deploy` and the app file, or use "
                "`modal run`, which brings up its own."
            ) from error
        except InvalidError as error:
            raise ConfigurationError(f"No app can be called {name!r}: {error}") from error


def _within(timeout_s: float, ask: Callable[[], str]) -> str:
    """Ask within a deadline: Modal's client retries forever if a server accepts connections and never answers.

    Raises:
        ServerUnavailableError: it did not answer in time.
    """
    answers: list[str] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(ask())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout_s)
    for error in errors:
        raise error
    if not answers:
        logging.getLogger("asyncio").addFilter(_no_end_of_client)
        raise ServerUnavailableError(f"Modal did not say within {timeout_s:g} s where the app is.")
    return answers[0]


def _no_end_of_client(record: logging.LogRecord) -> bool:
    """Drop the log record about an abandoned client that is closed when the process ends."""
    return not (record.exc_info and isinstance(record.exc_info[1], ClientClosed))


@contextlib.contextmanager
def _answers_of_modal() -> Iterator[None]:
    """Raise Torpor's errors for Modal's."""
    try:
        yield
    except AuthError as error:
        raise ConfigurationError(f"Modal refuses to answer: {error} Log in with `modal setup`.") from error
    except PermissionDeniedError as error:
        raise ConfigurationError(
            f"Modal refuses this account: {error} Use a token of the workspace and environment that the app is in."
        ) from error
    except ModalConnectionError as error:
        raise ServerUnavailableError(f"Modal cannot be reached: {error}") from error
    except (ModalError, GRPCError, StreamTerminatedError, OSError) as error:
        if isinstance(error, TimeoutError):
            raise  # a deadline of ours
        said = plain(str(error) or "it did not say why")[:_SHOWN_CHARACTERS]
        raise ServerUnavailableError(f"Modal gave no usable answer: {type(error).__name__}: {said}") from error


def _url_of(server: modal.Cls) -> str:
    url: str | None = server().serve.get_web_url()
    if not url:
        raise ServerUnavailableError("Modal gave the class no URL: it has no running web server.")
    return url


def is_logged_in() -> bool:
    """Whether this machine has credentials for Modal; it does not ask whether they are valid."""
    return bool(config.get("token_id"))


def missing_secrets(names: Sequence[str], *, timeout_s: float = 20.0) -> tuple[str, ...]:
    """The names for which the account has no secret.

    Args:
        names: of secrets.
        timeout_s: seconds for all of them.

    Raises:
        ConfigurationError: Modal refuses the credentials.
        ServerUnavailableError: Modal cannot be reached, or did not answer in time.
    """

    async def look() -> tuple[str, ...]:
        missing = []
        async with asyncio.timeout(timeout_s):
            for name in names:
                try:
                    await modal.Secret.from_name(name).hydrate.aio()
                except NotFoundError:
                    missing.append(name)
        return tuple(missing)

    with _answers_of_modal():
        try:
            return asyncio.run(look())
        except TimeoutError:
            raise ServerUnavailableError(f"Modal did not say within {timeout_s:g} s which secrets there are.") from None


def app_logs(name: str, *, hours: float = 24.0, timeout_s: float = 60.0) -> list[LogLine]:
    """The log of an app, oldest line first.

    Args:
        name: the app's name, or its id (`ap-...`), which also finds stopped and ephemeral apps.
        hours: how far back.
        timeout_s: seconds for everything.

    Raises:
        ConfigurationError: there is no such app, Modal does not allow the range, or there are no credentials.
        ServerUnavailableError: Modal cannot be reached, or was not done in time.
    """
    if not 0 < hours <= 24 * _LOG_DAYS:
        raise ConfigurationError(
            f"The last {hours:g} hours of a log cannot be read: Modal allows more than 0 and at most {24 * _LOG_DAYS} hours."
        )
    with _answers_of_modal():
        try:
            return asyncio.run(_fetch_logs(name, datetime.now(UTC) - timedelta(hours=hours), timeout_s))
        except (NotFoundError, InvalidError) as error:
            raise ConfigurationError(
                f"Modal has no app {name!r} ({error}). `modal app list` shows names and ids; the id of a stopped app finds it too."
            ) from error
        except LogsFetchError as error:
            raise ConfigurationError(f"The log of {name!r} cannot be fetched: {error} Ask for fewer hours.") from error
        except TimeoutError:
            raise ServerUnavailableError(
                f"Modal did not send the log of {name!r} within {timeout_s:g} s. Ask for fewer hours, or allow more time."
            ) from None


async def _fetch_logs(name: str, since: datetime, timeout_s: float) -> list[LogLine]:
    """Join lines that came in pieces, separately for each container and stream."""
    lines: list[LogLine] = []
    begun: dict[tuple[str, str], LogLine] = {}
    async with asyncio.timeout(timeout_s):
        app = await modal.App.lookup.aio(name)
        async for entry in app.logs.fetch.aio(since=since):
            container = next((word for word in entry.context_ids if word.startswith(_CONTAINER_PREFIX)), "")
            at, place = entry.timestamp.timestamp(), (container, str(entry.source))
            first = begun.pop(place, LogLine(text="", at=at, container=container))
            *whole, rest = (first.text + entry.message).split("\n")
            lines += (LogLine(text=text, at=first.at, container=container) for text in whole)
            if rest:
                begun[place] = LogLine(text=rest, at=at if whole else first.at, container=container)
    return [*lines, *begun.values()]
