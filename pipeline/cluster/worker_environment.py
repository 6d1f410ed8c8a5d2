"""Set variables for the workers of a cluster on this machine while the cluster lasts."""

from __future__ import annotations

import os
from collections.abc import Mapping

from distributed import SchedulerPlugin
from typing_extensions import override

from pipeline.cluster.resources import configure

_VARIABLES = "distributed.nanny.pre-spawn-environ"
_current: list[WorkerEnvironment] = []
"""That of the newest cluster of this process, until it closes."""


class WorkerEnvironment(SchedulerPlugin):
    """The variables of a cluster's workers, also of those that are started later.

    Only Dask's configuration sets them before a worker's interpreter starts. A nanny then sets them
    in this process too, and prefers existing values of this process. Therefore they are set here
    first, and the old values are restored when the scheduler closes or another cluster starts.
    """

    def __init__(self, variables: Mapping[str, str]) -> None:
        """Set the variables."""
        restore_environment()
        self._saved = {name: os.environ.get(name) for name in variables}
        _current.append(self)
        os.environ.update(variables)
        configure({f"{_VARIABLES}.{name}": value for name, value in variables.items()})

    @override
    async def close(self) -> None:
        self.restore()

    def restore(self) -> None:
        """Restore the values from before, unless another cluster has its own now."""
        if self not in _current:
            return
        _current.remove(self)
        for name, value in self._saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        configure({f"{_VARIABLES}.{name}": None for name in self._saved})


def restore_environment() -> None:
    """Restore the values from before the cluster of this process that is still open, if any."""
    while _current:
        _current[-1].restore()
