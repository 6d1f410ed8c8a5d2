"""Format log lines as text or JSON, with the ids of backfill, run, batch and chunk."""

from __future__ import annotations

import io
import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from textwrap import indent
from typing import Any, Literal

from typing_extensions import override

from pipeline.masking import mask_text
from pipeline.printable import one_line_json, printable, printable_line

_ids: ContextVar[dict[str, str]] = ContextVar("ids", default={})  # noqa: B039 - not changed


@contextmanager
def log_ids(**ids: str) -> Iterator[None]:
    """Add ids (run, batch, chunk) to all log lines of the block, also to those of transforms."""
    token = _ids.set({**_ids.get(), **ids})
    try:
        yield
    finally:
        _ids.reset(token)


def current_ids() -> dict[str, str]:
    """Return the ids that log lines of this thread have now."""
    return dict(_ids.get())


def with_ids(line: str) -> str:
    """Append the ids of this thread to a line."""
    ids = printable_line(" ".join(f"{name}={value}" for name, value in _ids.get().items()))
    return f"{line} [{ids}]" if ids else line


PRINTED = logging.WARNING + 5
"""Level of lines that a transform prints: no level that is set leaves them out."""
MAX_PRINTED = 64 * 1024
"""Maximum length of a printed line; longer ones become several."""
logging.addLevelName(PRINTED, "PRINTED")


class PrintedLines(io.TextIOBase):
    """A stdout of worker processes: lines become log lines, with the ids of batch and chunk."""

    def __init__(self) -> None:
        super().__init__()
        self._log = logging.getLogger("pipeline.printed")
        self._open = threading.local()

    @override
    def writable(self) -> bool:
        return True

    @override
    def write(self, text: str) -> int:
        """Log the lines that this text completes; each thread has its own unfinished line."""
        *lines, rest = (getattr(self._open, "line", "") + text).split("\n")
        self._open.line = "" if len(rest) > MAX_PRINTED else rest
        for line in [*lines, rest] if len(rest) > MAX_PRINTED else lines:
            if line.strip():
                self._log.log(PRINTED, "%s", line)
        return len(text)


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time (UTC), level, logger, message, ids, and the error if any."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": mask_text(record.getMessage()),
            "process": record.process,
            **_ids.get(),
        }
        if record.exc_info:
            line["error"] = mask_text(self.formatException(record.exc_info))
        return one_line_json(line)


class TextFormatter(logging.Formatter):
    """A line for people, with its time in UTC, and the ids at its end."""

    converter = staticmethod(time.gmtime)

    def __init__(self) -> None:
        super().__init__(
            "%(asctime)s.%(msecs)03dZ %(levelname)-7s %(name)s: %(message)s", "%Y-%m-%d %H:%M:%S"
        )

    @override
    def format(self, record: logging.LogRecord) -> str:
        first, *rest = printable(mask_text(super().format(record))).split("\n", 1)
        # Indentation keeps lines of a message or a traceback from looking like a record.
        rest = [indent(lines, "    ", lambda line: True) for lines in rest]
        return "\n".join([with_ids(first), *rest])


def set_up(
    style: Literal["text", "json"], level: Literal["debug", "info", "warning"] = "info"
) -> None:
    """Set the format and the level of all stream handlers of this process.

    Dask and Prefect have their own handlers; other loggers use the handler of the root logger.
    """
    min_level = getattr(logging, level.upper())
    formatter = JsonFormatter() if style == "json" else TextFormatter()
    root = logging.getLogger()
    if not any(_writes_to_stream(handler) for handler in root.handlers):
        root.addHandler(logging.StreamHandler())
    logging.getLogger(__name__.partition(".")[0]).setLevel(min_level)
    loggers = [logging.getLogger(name) for name in list(logging.Logger.manager.loggerDict)]
    for logger in (root, *loggers):
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setFormatter(formatter)
                handler.setLevel(max(handler.level, min_level))


def _writes_to_stream(handler: logging.Handler) -> bool:
    """Whether a handler writes to a stream and is not silenced by its level."""
    return isinstance(handler, logging.StreamHandler) and handler.level <= logging.CRITICAL


def set_up_driver(
    style: Literal["text", "json"], level: Literal["debug", "info", "warning"] = "info"
) -> None:
    """Write a driver's log lines as JSON to standard error, if set so and not on a terminal.

    On a terminal, people see the progress bar and the summary instead.
    """
    if style == "json" and not sys.stderr.isatty():
        set_up(style, level)
