"""Connect to a scheduler within a time limit."""

from __future__ import annotations

from threading import Thread
from typing import TYPE_CHECKING, Any

from pipeline.errors import EngineUnavailableError

if TYPE_CHECKING:
    from distributed.security import Security


def connect_scheduler(
    address: str, timeout: float, security: Security | None = None, kind: type[Any] | None = None
) -> Any:
    """Return a client of the scheduler at an address, which is not the process's default client.

    Args:
        address: The address.
        timeout: Maximum seconds in which it must answer.
        security: The TLS configuration; None without certificates.
        kind: The class of the client; default Dask's.

    Raises:
        EngineUnavailableError: No scheduler answers there in time.
    """
    from distributed import Client

    if address.startswith("tls://") and security is None:
        raise EngineUnavailableError(
            f"the Dask scheduler at {address} (dask.scheduler) wants a certificate; none is set",
            hint="set dask.tls.ca, dask.tls.cert and dask.tls.key",
        )
    make: Any = kind or Client
    found: list[Any] = []

    def connect() -> None:
        try:
            found.append(make(address, timeout=timeout, security=security, set_as_default=False))
        except (OSError, ValueError, ImportError, TypeError) as error:
            found.append(error)

    # In a thread, because Dask waits forever for a silent server that accepts the connection.
    thread = Thread(target=connect, name="connect-scheduler", daemon=True)
    thread.start()
    thread.join(timeout)
    client = found[0] if found else TimeoutError("it does not answer as a Dask scheduler")
    if isinstance(client, Exception):
        raise EngineUnavailableError(
            f"no Dask scheduler answers at {address} (dask.scheduler) within {timeout:g} s: "
            f"{client}",
            hint="start one, or `chunkmap up`, or unset dask.scheduler for a local cluster; "
            "a scheduler with TLS needs dask.tls",
        ) from client
    return client
