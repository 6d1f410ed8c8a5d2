"""Run the local stack's Dask cluster in a background process."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path
from types import FrameType


def main(request: str, ready: str) -> None:
    """Start the cluster, create a file when it is ready, and close it on SIGTERM.

    Args:
        request: The arguments of `start_local_cluster` as JSON.
        ready: The file to create once all workers run.
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
