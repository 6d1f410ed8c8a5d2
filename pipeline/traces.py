"""Trace runs with OpenTelemetry, if an endpoint is set: a span per phase, batch and chunk.

Spans go to a collector by OTLP over HTTP, from a thread; where none answers, they are dropped, and
nothing waits or fails. Without an endpoint, nothing of OpenTelemetry is imported.
"""

from __future__ import annotations

import atexit
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from threading import Lock, Thread
from typing import Any, NamedTuple

from pipeline.masking import mask_text

SEND_SECONDS = 5.0
"""Seconds in which the collector must answer."""
FLUSH_SECONDS = 2.0
"""Seconds that a run waits at its end, and a process at its exit, for the last spans to be sent."""
DELAY_MILLIS = 1_000
"""Time that spans wait for others."""
MAX_WAITING = 16_384
"""Maximum number of spans that wait to be sent; further ones are dropped."""

Attributes = Mapping[str, str | int | float | bool]

log = logging.getLogger(__name__)


class TraceParent(NamedTuple):
    """What a process needs to continue a trace: the collector's address and the parent's id."""

    endpoint: str
    parent: str
    """In the form of W3C's header `traceparent`."""


@dataclass(frozen=True, slots=True)
class _Tracing:
    """Makes spans for one collector."""

    endpoint: str
    tracer: Any
    provider: Any
    exporter: Any


_current: ContextVar[_Tracing | None] = ContextVar("tracing", default=None)
_lock = Lock()


def is_on() -> bool:
    """Whether spans of this thread's work are kept."""
    return _current.get() is not None


@contextmanager
def tracing(endpoint: str | None) -> Iterator[None]:
    """Keep the spans of the block, and wait at its end, for a moment, until they are sent.

    Args:
        endpoint: The collector's address; None: keep none.
    """
    current = None if endpoint is None or is_on() else _tracing(endpoint)
    if current is None:
        yield
        return
    token = _current.set(current)
    try:
        yield
    finally:
        _current.reset(token)
        _flush(current)


@contextmanager
def continued(parent: TraceParent | None) -> Iterator[None]:
    """Keep the spans of the block as those of a trace that another process began."""
    current = None if parent is None else _tracing(parent.endpoint)
    if parent is None or current is None:
        yield
        return
    from opentelemetry import context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    extracted = TraceContextTextMapPropagator().extract({"traceparent": parent.parent})
    attached, token = context.attach(extracted), _current.set(current)
    try:
        yield
    finally:
        _current.reset(token)
        context.detach(attached)


def current_parent() -> TraceParent | None:
    """Return what another process needs to continue the current span; None if none is kept."""
    current = _current.get()
    if current is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return TraceParent(current.endpoint, carrier.get("traceparent", ""))


@contextmanager
def span(
    name: str, attributes: Attributes | None = None, started: float | None = None
) -> Iterator[None]:
    """Make a span of the block; an error marks it as failed.

    Args:
        name: Its name.
        attributes: What it is about; secrets are masked.
        started: Its start, in Unix seconds; default now.
    """
    current = _current.get()
    if current is None:
        yield
        return
    with current.tracer.start_as_current_span(
        name,
        attributes=_masked(attributes or {}),
        start_time=None if started is None else _nanoseconds(started),
        record_exception=False,  # Tracebacks hold data.
        set_status_on_exception=False,
    ) as made:
        try:
            yield
        except BaseException as error:
            _fail(made, f"{type(error).__name__}: {error}")
            raise


def set_attributes(attributes: Attributes) -> None:
    """Add to what the current span is about."""
    if is_on():
        from opentelemetry import trace

        trace.get_current_span().set_attributes(_masked(attributes))


def record_span(
    name: str, started: float, ended: float, attributes: Attributes, error: str = ""
) -> None:
    """Make a span of what is over, below the current one.

    Args:
        name: Its name.
        started: Its start, in Unix seconds.
        ended: Its end.
        attributes: What it is about; secrets are masked.
        error: Why it failed; empty if it did not.
    """
    current = _current.get()
    if current is None:
        return
    made = current.tracer.start_span(
        name, attributes=_masked(attributes), start_time=_nanoseconds(started)
    )
    if error:
        _fail(made, error)
    made.end(_nanoseconds(max(started, ended)))


def _fail(made: Any, message: str) -> None:
    from opentelemetry.trace import Status, StatusCode

    made.set_status(Status(StatusCode.ERROR, mask_text(message)))


def _masked(attributes: Attributes) -> dict[str, str | int | float | bool]:
    return {
        name: mask_text(value) if isinstance(value, str) else value
        for name, value in attributes.items()
    }


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)


# -- sending ---------------------------------------------------------------------------------------


def _tracing(endpoint: str) -> _Tracing | None:
    with _lock:
        return _open(endpoint.rstrip("/"))


@cache
def _open(endpoint: str) -> _Tracing | None:
    """Return what makes and sends spans; None if OpenTelemetry is not installed."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        log.warning(
            "traces.endpoint is set, and OpenTelemetry is not installed (%s): there are no traces; "
            "pip install 'chunkmap[traces]'",
            error,
        )
        return None
    for name in ("exporter.otlp.proto.http.trace_exporter", "sdk._shared_internal"):
        # They write a line for each request that fails.
        logging.getLogger(f"opentelemetry.{name}").setLevel(logging.CRITICAL)
    sender = OTLPSpanExporter(f"{endpoint}/v1/traces", timeout=SEND_SECONDS)
    exporter = _Exporter(endpoint, sender)
    # Not the global one, which is the user's. OTEL_SERVICE_NAME and others apply.
    version = metadata.version("chunkmap")
    service = os.environ.get("OTEL_SERVICE_NAME") or "chunkmap"
    resource = Resource.create(
        {
            "service.name": service,
            "service.version": version,
            "host.name": socket.gethostname(),
            "process.pid": os.getpid(),
        }
    )
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(
        BatchSpanProcessor(exporter, max_queue_size=MAX_WAITING, schedule_delay_millis=DELAY_MILLIS)
    )
    opened = _Tracing(endpoint, provider.get_tracer("chunkmap", version), provider, exporter)
    atexit.register(_flush, opened)
    return opened


class _Exporter:
    """Sends spans, and says once if the collector does not take them."""

    def __init__(self, endpoint: str, sender: Any) -> None:
        self._endpoint, self._sender = endpoint, sender
        self.is_away = False

    def export(self, spans: Any) -> Any:
        """Send some spans; they are dropped if that fails."""
        was_away, self.is_away = self.is_away, True
        result = self._sender.export(spans)
        self.is_away = result.name != "SUCCESS"
        if self.is_away and not was_away:
            log.warning("the collector at %s takes no traces; they are dropped", self._endpoint)
        return result

    def shutdown(self) -> None:
        """End."""
        self._sender.shutdown()


def _flush(tracing: _Tracing) -> None:
    """Send what waits, for a moment; nothing if the collector is away."""
    if tracing.exporter.is_away:
        return
    # The provider's own limit of time has no effect.
    thread = Thread(target=tracing.provider.force_flush, name="traces", daemon=True)
    with suppress(RuntimeError):  # From Python 3.12 on, no thread may start at exit.
        thread.start()
        thread.join(FLUSH_SECONDS)
