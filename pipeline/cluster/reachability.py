"""Check that a scheduler answers within a time limit."""

from __future__ import annotations

from threading import Thread
from typing import TYPE_CHECKING

from pipeline.errors import EngineUnavailableError

if TYPE_CHECKING:
    from distributed.security import Security


def check_scheduler(address: str, timeout: float, security: Security | None = None) -> None:
    """Raise EngineUnavailableError if no scheduler answers at the address within `timeout` s."""
    from distributed import Client

    if address.startswith("tls://") and security is None:
        raise EngineUnavailableError(
            f"the Dask scheduler at {address} (dask.scheduler) wants a certificate; none is set",
            hint="set dask.tls.ca, dask.tls.cert and dask.tls.key",
        )

    problems: list[Exception | None] = []

    def connect() -> None:
        try:
            Client(address, timeout=timeout, security=security, set_as_default=False).close()
            problems.append(None)
        except (OSError, ValueError, ImportError, TypeError) as error:
            problems.append(error)

    # In a thread, because Dask waits forever for a silent server that accepts the connection.
    thread = Thread(target=connect, name="check-scheduler", daemon=True)
    thread.start()
    thread.join(timeout)
    problem = problems[0] if problems else TimeoutError("it does not answer as a Dask scheduler")
    if problem is not None:
        raise EngineUnavailableError(
            f"no Dask scheduler answers at {address} (dask.scheduler) within {timeout:g} s: "
            f"{problem}",
            hint="start one, or `chunkmap up`, or unset dask.scheduler for a local cluster; "
            "a scheduler with TLS needs dask.tls",
        ) from problem
