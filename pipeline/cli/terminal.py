"""Escape control characters in everything that a command prints.

Commands print through the consoles of `pipeline.cli.output`, which escape the text of each segment
and add their own colours. Everything else on stdout and stderr (tracebacks, warnings, lines of
libraries) passes through the streams that `guard_streams` installs.

While a command runs, stdout is for its result alone (`results_apart`): what a transform or a
library prints, here or in a worker process, goes to stderr.
"""

from __future__ import annotations

import codecs
import fcntl
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, TextIO, TypeVar, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from pipeline.errors import ChunkmapError
from pipeline.printable import printable

T = TypeVar("T")


class SafeConsole(Console):
    """A console that shows text literally, without markup, emoji codes or escape sequences."""

    def __init__(self, *, stderr: bool, width: int | None) -> None:
        file = None if stderr else cast("IO[str]", _Results())
        super().__init__(
            file=file, stderr=stderr, width=width, highlight=False, markup=False, emoji=False
        )

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render to segments, with escapes in all but rich's own control segments."""
        for segment in super().render(renderable, options):
            text = segment.text
            if segment.control or text.isprintable():
                yield segment
            else:
                yield Segment(printable(text), segment.style)


class _Results:
    """The stream `results()`, whichever that is when it is used."""

    def __getattr__(self, name: str) -> Any:
        return getattr(results(), name)


class _Sink:
    """A stream of this process whose end is no accident: its reader may leave, its disk be full.

    A reader that leaves (`| head -1`) has what it wanted: the rest is discarded, and the command
    ends as it would have. A result that cannot be written is an error; progress is not.
    """

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream = stream
        self._name = name

    def write(self, text: str) -> int:
        """Write text."""
        return self._do(self._stream.write, text) or len(text)

    def flush(self) -> None:
        """Flush the stream."""
        self._do(self._stream.flush)

    def _do(self, action: Callable[..., T], *args: str) -> T | None:
        try:
            return action(*args)
        except OSError as error:
            self._discard()
            if isinstance(error, BrokenPipeError) or self._name == "stderr":
                return None
            raise ChunkmapError(f"{self._name} cannot be written: {error.strerror}") from error

    def _discard(self) -> None:
        """Send what is written from now on, also by Python when it exits, to nowhere."""
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class SafeStream:
    """A text stream that escapes what is written to it; rich's consoles write to the sink."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self.rich_proxied_file: IO[str] = cast("IO[str]", _Sink(stream, name))
        """The wrapped stream, under the name that rich looks for."""

    def write(self, text: str) -> int:
        """Write text."""
        self.rich_proxied_file.write(printable(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)

    def __iter__(self) -> Any:
        return iter(self.rich_proxied_file)


_results: TextIO | None = None


def results() -> TextIO:
    """The stream of a command's result: stdout as the command found it."""
    return sys.stdout if _results is None else _results


@contextmanager
def results_apart() -> Iterator[None]:
    """During the block, everything but `results` that is written to stdout goes to stderr."""
    global _results
    if _results is not None:
        yield
        return
    stdout = sys.stdout
    with _descriptor_apart(stdout) as apart:
        _results, sys.stdout = apart, sys.stderr
        try:
            yield
        finally:
            _results, sys.stdout = None, stdout


@contextmanager
def _descriptor_apart(stdout: TextIO) -> Iterator[TextIO]:
    """Make descriptor 1, which processes inherit, another stderr; yield a stream to the old one."""
    try:
        stdout.flush()
        is_ours = stdout.fileno() == 1
        # Not below 3: where stderr is closed, its number is free.
        saved = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 3) if is_ours else -1
    except (OSError, ValueError):
        is_ours = False  # It is closed, or it is no file.
    if not is_ours:
        yield stdout
        return
    try:
        os.dup2(2, 1)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # stderr is closed.
    stream = os.fdopen(saved, "w", encoding=stdout.encoding, errors=stdout.errors, buffering=1)
    try:
        yield cast("TextIO", SafeStream(stream, "stdout"))
    finally:
        os.dup2(saved, 1)
        with suppress(OSError):
            stream.close()


def guard_streams() -> None:
    """Wrap stdout and stderr of this process in a `SafeStream`; a closed one goes to nowhere."""
    codecs.register_error(_ASCII_ERRORS, _to_ascii)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the process ends
        if isinstance(stream, SafeStream):
            continue
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower() not in _UNICODE:
            stream.reconfigure(errors=_ASCII_ERRORS)
        setattr(sys, name, cast("TextIO", SafeStream(stream, name)))


_UNICODE = ("utf-8", "utf8", "utf-16", "utf-32")
_ASCII_ERRORS = "chunkmap"
_ASCII = dict(zip("█░▒▓■✗✓·–—→−", "#:+%=xv.-->-", strict=True)) | {"…": "..."}
"""What stands for our signs where the terminal's encoding lacks them: each of one width."""


def _to_ascii(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replace what an encoding lacks: our own signs by similar ones, the rest by its code."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    shown = (
        _ASCII.get(sign) or sign.encode("ascii", "backslashreplace").decode() for sign in lacking
    )
    return "".join(shown), error.end
