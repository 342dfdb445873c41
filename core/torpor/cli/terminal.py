"""The one place by which commands print: results on standard output, everything else on standard error.

* Text from outside (paths, names, log lines, a model's words, errors of others) is text: it is never read as markup, and control
  characters in it are shown escaped.
* Standard output is for results. What an app file, a plugin or a child process prints there goes to standard error.
* Standard output that is full or closed is an error of the command; standard error that is full or closed disturbs nothing.
* On a terminal, text is wrapped at its width; elsewhere only where COLUMNS says a width.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import select
import sys
from typing import TYPE_CHECKING

from torpor._override import override
from torpor.errors import TorporError
from torpor.values.plain_text import one_line, plain

if TYPE_CHECKING:
    from typing import TextIO

    from typing_extensions import Buffer

__all__ = [
    "OutputError",
    "claim_output",
    "flush_results",
    "guard_streams",
    "output",
    "result",
    "say",
    "say_live",
    "width",
    "wrapped",
]

_STDIN, _STDOUT, _STDERR = 0, 1, 2
_FIRST_FREE = 3
_WIDEST = 1 << 14
_USUAL = 80
_CLEAR = "\r\x1b[2K"
_results: TextIO | None = None
_live = False  # whether the last line on the terminal is one of `say_live`


class OutputError(TorporError):
    """Standard output is full or closed.

    Attributes:
        left: whoever read it has gone, as `head` does: there is nobody to tell.
    """

    def __init__(self, error: OSError) -> None:
        self.left = error.errno == errno.EPIPE
        super().__init__(
            f"Cannot write to standard output: {error.strerror}. The result is lost; name a file or a pipe that takes it."
        )


class _Results(io.FileIO):
    """Standard output: the first failed write raises, the rest is dropped."""

    _failed = False

    @override
    def write(self, data: Buffer, /) -> int:
        size = memoryview(data).nbytes
        if self._failed:
            return size
        try:
            written = super().write(data)
            while written is None:  # a pipe that somebody made non-blocking, and that is full
                select.select([], [self.fileno()], [])
                written = super().write(data)
        except OSError as error:
            self._failed = True
            raise OutputError(error) from error
        return written


class _Words(io.FileIO):
    """Standard error: what cannot be written is dropped. A server does not end because its log is full."""

    @override
    def write(self, data: Buffer, /) -> int:
        size = memoryview(data).nbytes
        try:
            return super().write(data) or size
        except OSError:
            return size


def guard_streams() -> None:
    """Make the streams of this process what this module says. Harmless where somebody has put other streams in their place."""
    global _results  # noqa: PLW0603 - as global as the streams
    for number, stream, flags in (
        (_STDIN, sys.stdin, os.O_RDONLY),
        (_STDOUT, sys.stdout, os.O_RDONLY),  # a write to it fails, as one to a closed file does
        (_STDERR, sys.stderr, os.O_WRONLY),
    ):
        if stream is None:
            _fill(number, flags)
    if sys.stdin is None:
        sys.stdin = open(_STDIN, encoding="utf-8", closefd=False)  # noqa: SIM115 - as long as the process
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text(_Words(_STDERR, "w", closefd=False), sys.stderr, line_buffering=True)
    if sys.stdout is sys.__stdout__:
        number = fcntl.fcntl(_STDOUT, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE)
        _results = sys.stdout = _text(_Results(number, "w"), sys.stdout, line_buffering=os.isatty(number))


def claim_output() -> None:
    """From now on standard output is for `result` alone: what others print there goes to standard error."""
    if _results is not None and sys.stdout is _results:
        _results.flush()
        os.dup2(_STDERR, _STDOUT)
        sys.stdout = sys.stderr


def output() -> TextIO:
    """Where results go."""
    return _results or sys.stdout


def result(text: str = "", *, end: str = "\n") -> None:
    """Print a result, as it is: JSON, or text that was made `plain` before.

    Raises:
        OutputError: standard output is full or closed.
    """
    print(text, end=end, file=output(), flush=True)


def flush_results() -> None:
    """Write what is left of the results.

    Raises:
        OutputError: standard output is full or closed.
    """
    if _results is not None:
        _results.flush()


def say(text: str) -> None:
    """Tell something on standard error; control characters in it are escaped, and on a terminal long lines are wrapped."""
    global _live
    before, _live = (_CLEAR if _live else ""), False
    text = plain(text)
    if sys.stderr.isatty():
        most = width(sys.stderr)
        text = "\n".join(part for line in text.split("\n") for part in _fitting(line, most))
    print(f"{before}{text}", file=sys.stderr, flush=True)


def say_live(text: str) -> None:
    """Tell how far the work is: on a terminal in one line that the next one replaces, elsewhere as `say`."""
    global _live  # noqa: PLW0603 - as global as the line
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        say(text)
        return
    _live = True
    line = f"{one_line(text)} ..."[: width(sys.stderr) - 1]
    print(f"{_CLEAR}{line}", end="", file=sys.stderr, flush=True)


def wrapped(text: str, most: int, *, first: str = "", rest: str = "") -> list[str]:
    """A text as lines of a width; words stay whole, as a path or a flag has to.

    Args:
        text: one paragraph.
        most: characters.
        first: stands before the first line.
        rest: stands before the others.
    """
    import textwrap  # noqa: PLC0415 - 2 ms

    return textwrap.wrap(
        text,
        max(most, len(rest) + 10),
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [first.rstrip()]


def _fitting(line: str, most: int) -> list[str]:
    """A line as lines of a width, the further ones as far in as its own text; one without words to part stays as it is."""
    words = line.lstrip()
    indent = line[: len(line) - len(words)]
    if len(line) <= most or len(indent) > most // 2 or " " not in words:
        return [line]
    return wrapped(words, most, first=indent, rest=indent + ("  " if words.startswith("- ") else ""))


def width(stream: TextIO) -> int:
    """Characters of a line: of the terminal or, first of all, what COLUMNS says; without end where neither is known."""
    told = os.environ.get("COLUMNS", "")
    if told.isdecimal() and 0 < int(told) < _WIDEST:
        return int(told)
    try:
        return os.get_terminal_size(stream.fileno()).columns or _USUAL
    except (OSError, ValueError):  # a file, a pipe, a stream of a test
        return _WIDEST


def _fill(number: int, flags: int) -> None:
    """Open /dev/null as a descriptor that was closed when this process began: else the next file would become it."""
    descriptor = os.open(os.devnull, flags)
    if descriptor != number:
        os.dup2(descriptor, number)
        os.close(descriptor)


def _text(raw: io.FileIO, like: TextIO | None, *, line_buffering: bool) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=getattr(like, "encoding", None) or "utf-8",
        errors="backslashreplace",
        line_buffering=line_buffering,
    )
