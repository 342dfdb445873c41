"""Commands print through this module only: results on standard output, everything else on standard error.

* Text from outside (paths, names, log lines, a model's words, errors of others) is never read as markup, and its control
  characters are escaped.
* Standard output is for results. What an app file, a plugin or a child process prints there goes to standard error.
* If standard output is full or closed, the command fails; if standard error is, messages are dropped.
* On a terminal, text is wrapped at its width; elsewhere only if COLUMNS is set.
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
    "DEBUG_VARIABLE",
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

DEBUG_VARIABLE = "TORPOR_DEBUG"
"""Shows tracebacks of errors if it is set, to anything but `0`."""

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
        left: the reader closed the pipe, as `head` does: an error message would help nobody.
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
            while written is None:  # a full pipe that is non-blocking
                select.select([], [self.fileno()], [])
                written = super().write(data)
        except OSError as error:
            self._failed = True
            raise OutputError(error) from error
        return written


class _Words(io.FileIO):
    """Standard error: what cannot be written is dropped. A full log must not end a server."""

    @override
    def write(self, data: Buffer, /) -> int:
        size = memoryview(data).nbytes
        try:
            return super().write(data) or size
        except OSError:
            return size


def guard_streams() -> None:
    """Set up the streams of this process as described above. Streams that somebody replaced stay."""
    global _results  # noqa: PLW0603 - as global as the streams
    for number, stream, flags in (
        (_STDIN, sys.stdin, os.O_RDONLY),
        (_STDOUT, sys.stdout, os.O_RDONLY),  # a write to it fails, as to a closed file
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
    """From now on only `result` writes to standard output; what others print there goes to standard error."""
    if _results is not None and sys.stdout is _results:
        _results.flush()
        os.dup2(_STDERR, _STDOUT)
        sys.stdout = sys.stderr


def output() -> TextIO:
    """Where results go."""
    return _results or sys.stdout


def result(text: str = "", *, end: str = "\n") -> None:
    """Print a result unchanged: JSON, or text that went through `plain`.

    Raises:
        OutputError: standard output is full or closed.
    """
    print(text, end=end, file=output(), flush=True)


def flush_results() -> None:
    """Write buffered results.

    Raises:
        OutputError: standard output is full or closed.
    """
    if _results is not None:
        _results.flush()


def say(text: str) -> None:
    """Print a message on standard error; escape control characters, and wrap long lines on a terminal."""
    global _live
    before, _live = (_CLEAR if _live else ""), False
    text = plain(text)
    if sys.stderr.isatty():
        most = width(sys.stderr)
        text = "\n".join(part for line in text.split("\n") for part in _fitting(line, most))
    print(f"{before}{text}", file=sys.stderr, flush=True)


def say_live(text: str) -> None:
    """Print progress: on a terminal in one line that the next message replaces, elsewhere as `say`."""
    global _live  # noqa: PLW0603 - as global as the line
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        say(text)
        return
    _live = True
    line = f"{one_line(text)} ..."[: width(sys.stderr) - 1]
    print(f"{_CLEAR}{line}", end="", file=sys.stderr, flush=True)


def wrapped(text: str, most: int, *, first: str = "", rest: str = "") -> list[str]:
    """A text as lines of a width. Words stay whole: a broken path or flag cannot be pasted.

    Args:
        text: one paragraph.
        most: characters on a line.
        first: prefix of the first line.
        rest: prefix of the others.
    """
    import textwrap  # noqa: PLC0415 - textwrap: 0.6 ms of a restore

    return textwrap.wrap(
        text,
        max(most, len(rest) + 10),
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [first.rstrip()]


def _fitting(line: str, most: int) -> list[str]:
    """A line as lines of a width, with its own indent; a line without blanks stays whole."""
    words = line.lstrip()
    indent = line[: len(line) - len(words)]
    if len(line) <= most or len(indent) > most // 2 or " " not in words:
        return [line]
    return wrapped(words, most, first=indent, rest=indent + ("  " if words.startswith("- ") else ""))


def width(stream: TextIO) -> int:
    """Characters of a line: COLUMNS if set, else the terminal's width, else unlimited."""
    told = os.environ.get("COLUMNS", "")
    if told.isdecimal() and 0 < int(told) < _WIDEST:
        return int(told)
    try:
        return os.get_terminal_size(stream.fileno()).columns or _USUAL
    except (OSError, ValueError):  # a file, a pipe, a stream of a test
        return _WIDEST


def _fill(number: int, flags: int) -> None:
    """Open /dev/null as a descriptor that was closed at the start: otherwise the next opened file would get its number."""
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
