"""The process that holds the embedded Dask cluster."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path
from types import FrameType


def main(request: str, ready: str) -> None:
    """Start the cluster, say so by making a file, and close it on SIGTERM.

    Args:
        request: Arguments of `start_local_cluster` as JSON.
        ready: The file to make once all workers are there.
    """
    ended = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ended.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)

    from pipeline.cluster.local_cluster import start_local_cluster

    with start_local_cluster(**json.loads(request), local_directory=str(Path(ready).parent)):
        Path(ready).touch()
        ended.wait()
