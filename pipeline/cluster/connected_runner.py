"""Task runners of flows for a cluster at an address."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from prefect_dask import DaskTaskRunner
from prefect_dask.client import PrefectDaskClient
from typing_extensions import override

from pipeline.cluster.reachability import connect_scheduler


class AddressRunner(DaskTaskRunner):
    """A task runner for the cluster at its address, whatever clients the program has of its own.

    Prefect's would take the program's default client, and make its own the default.
    """

    @property
    @override
    def client(self) -> PrefectDaskClient:
        """Client of the scheduler at the address."""
        if not self._client:
            made: Any = PrefectDaskClient
            self._client = self._exit_stack.enter_context(
                made(self.address, **{**self.client_kwargs, "set_as_default": False})
            )
        client: PrefectDaskClient = self._client
        return client


class ConnectedRunner(AddressRunner):
    """A task runner whose first flow run uses the client that has found the scheduler.

    To connect takes as long as to plan a small run, so it is done once.
    """

    _connected: PrefectDaskClient | None = None

    @classmethod
    def connect(cls, address: str, timeout: float, options: Mapping[str, Any]) -> Self:
        """Connect to the scheduler at an address.

        Args:
            address: The address.
            timeout: Maximum seconds in which it must answer.
            options: Arguments for clients, e.g. `security`.

        Raises:
            EngineUnavailableError: No scheduler answers there in time.
        """
        runner = cls(address=address, client_kwargs=dict(options))
        security = options.get("security")
        runner._connected = connect_scheduler(address, timeout, security, PrefectDaskClient)
        return runner

    @override
    def duplicate(self) -> Self:
        """Return a runner with the same settings for a flow run; the first gets the client."""
        own: Self = super().duplicate()  # type: ignore[no-untyped-call]
        own._client, self._connected = self._connected, None
        if own._client is not None:
            own._exit_stack.callback(own._client.close)
        return own
