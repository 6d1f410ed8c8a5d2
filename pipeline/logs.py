"""Log lines that say which run, batch and chunk they are about, as text or as JSON."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from textwrap import indent
from typing import Any, Literal

from pipeline.printable import one_line_json, printable, printable_line

_here: ContextVar[dict[str, str]] = ContextVar("here", default={})  # noqa: B039 - not changed


@contextmanager
def at(**ids: str) -> Iterator[None]:
    """Lines of the block, a transform's own among them, are about these: run, batch, chunk."""
    token = _here.set({**_here.get(), **ids})
    try:
        yield
    finally:
        _here.reset(token)


def here() -> dict[str, str]:
    """What lines are about at this moment, in this thread."""
    return dict(_here.get())


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, ids, and the error if any."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "process": record.process,
            **_here.get(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return one_line_json(line)


class TextFormatter(logging.Formatter):
    """A line for people; the ids are at its end."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        first, *rest = printable(super().format(record)).split("\n", 1)
        ids = printable_line(" ".join(f"{name}={value}" for name, value in _here.get().items()))
        # Indented, no line of a message or a traceback can pass for a record of its own.
        rest = [indent(lines, "    ", lambda line: True) for lines in rest]
        return "\n".join([f"{first} [{ids}]" if ids else first, *rest])


def set_up(
    style: Literal["text", "json"], level: Literal["debug", "info", "warning"] = "info"
) -> None:
    """Give every handler of this process that writes to a stream the wanted format and level.

    Dask and Prefect have handlers of their own; what has none comes up at the root's.
    """
    least = getattr(logging, level.upper())
    formatter = JsonFormatter() if style == "json" else TextFormatter()
    root = logging.getLogger()
    if not any(_speaks(one) for one in root.handlers):
        root.addHandler(logging.StreamHandler())
    ours = logging.getLogger(__name__.partition(".")[0])
    ours.setLevel(least)
    named = [logging.getLogger(name) for name in list(logging.Logger.manager.loggerDict)]
    for logger in (root, *named):
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setFormatter(formatter)
                handler.setLevel(max(handler.level, least))


def _speaks(handler: logging.Handler) -> bool:
    """Whether it writes to a stream, and has not been told to keep quiet."""
    return isinstance(handler, logging.StreamHandler) and handler.level <= logging.CRITICAL


def set_up_driver(
    style: Literal["text", "json"], level: Literal["debug", "info", "warning"] = "info"
) -> None:
    """Let a driver's lines be read by machines too, on standard error, where that is wanted.

    People have its progress and its summary instead; a terminal belongs to its progress bar.
    """
    if style == "json" and not sys.stderr.isatty():
        set_up(style, level)
