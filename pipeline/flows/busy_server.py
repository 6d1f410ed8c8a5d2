"""Wait for a Prefect server that is busy, but not for one that is gone."""

from __future__ import annotations

import random
import time

import httpx
from typing_extensions import override

BUSY_PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each repetition of a request that a busy server has refused."""


class PatientTransport(httpx.BaseTransport):
    """Repeats requests that are answered by 503 Service Unavailable.

    A server whose database is locked answers so, and has done nothing. Retries of Prefect's client
    are for a server that does not answer, too: few, since runs do without it.
    """

    def __init__(self, transport: httpx.BaseTransport) -> None:
        """Wrap the transport that sends requests."""
        self._transport = transport

    @override
    def handle_request(self, request: httpx.Request) -> httpx.Response:
        for seconds in BUSY_PAUSES:
            response = self._transport.handle_request(request)
            if response.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                return response
            response.close()
            time.sleep(seconds * random.uniform(0.5, 1.5))
        return self._transport.handle_request(request)

    @override
    def close(self) -> None:
        self._transport.close()
