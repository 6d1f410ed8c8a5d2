"""The environment of each peer: a virtual environment of its own, from a hash-locked file.

It is made the first time it is needed, under the state folder, and made again when its lock
changes. A peer whose environment cannot be made is reported as such and never left out.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ChunkmapError
from pipeline.private import state_folder

LOCKS = Path(__file__).parents[1] / "peers" / "locks"
INSTALL_SECONDS = 1800
REFERENCE = "chunkmap"

Echo = Callable[[str], None]


class PeerMissingError(ChunkmapError):
    """A peer cannot be run here; the message says why."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Somebody who does the same work.

    Attributes:
        name: As the command line spells it.
        title: As the report does.
        module: Its script, below benchmarks.peers.
        lock: Name of its files in peers/locks; None for this very environment.
        program: Another program that it needs.
        services: Services of the stack that work for it: their memory and CPU count.
    """

    name: str
    title: str
    module: str
    lock: str | None
    program: str | None = None
    services: tuple[str, ...] = ()


PEERS: Mapping[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer(REFERENCE, "chunkmap", "chunkmap_run", None, services=("dask", "prefect")),
        Peer("polars", "Polars, one process", "polars_process", "polars"),
        Peer("duckdb", "DuckDB", "duckdb_sql", "duckdb"),
        Peer("daft", "Daft", "daft_frame", "daft"),
        Peer("dask-dataframe", "Dask DataFrame", "dask_frame", "dask_dataframe"),
        Peer("dask-futures", "Dask futures + Polars", "dask_futures", "dask_futures"),
        Peer("ray-data", "Ray Data", "ray_dataset", "ray_data"),
        Peer("pyspark", "PySpark", "spark_sql", "pyspark", program="java"),
        Peer(
            "prefect-naive",
            "Prefect task.map",
            "prefect_map",
            "prefect_naive",
            services=("prefect",),
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Environment:
    """How a peer's script is started."""

    command: tuple[str, ...]
    variables: Mapping[str, str]


def environment_of(peer: Peer, state_dir: Path, echo: Echo = lambda line: None) -> Environment:
    """The environment of a peer, which is made first if it is not there.

    Raises:
        PeerMissingError: it cannot be made.
    """
    if peer.program is not None and shutil.which(peer.program) is None:
        raise PeerMissingError(f"{peer.title} needs `{peer.program}`, which is not installed")
    if peer.lock is None:
        return Environment((sys.executable, "-m", f"benchmarks.peers.{peer.module}"), {})
    python = _made(peer, state_dir, echo)
    # Only this package may be seen from there, not what is installed next to it.
    code = state_folder(state_dir, "bench", "code")
    _link(code / "benchmarks", Path(__file__).parents[1])
    command = (str(python), "-m", f"benchmarks.peers.{peer.module}")
    return Environment(command, {"PYTHONPATH": str(code.resolve()), "PYTHONNOUSERSITE": "1"})


def is_installed(peer: Peer, state_dir: Path) -> bool:
    """Whether a peer's environment is there, as its lock says now."""
    if peer.lock is None:
        return True
    mark = state_dir / "bench" / "environments" / peer.lock / "installed"
    return mark.exists() and mark.read_text("ascii") == _wanted(peer.lock)


def _wanted(lock: str) -> str:
    content = (LOCKS / f"{lock}.txt").read_bytes()
    return hashlib.sha256(content + sys.version.encode()).hexdigest()


def _made(peer: Peer, state_dir: Path, echo: Echo) -> Path:
    assert peer.lock is not None, "this very environment is not made"
    folder = state_folder(state_dir, "bench", "environments") / peer.lock
    lock = LOCKS / f"{peer.lock}.txt"
    python = folder / "bin" / "python"
    if is_installed(peer, state_dir):
        return python
    echo(f"installing {peer.title} into {folder} (once)")
    shutil.rmtree(folder, ignore_errors=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--no-input"]
    _call(peer, [sys.executable, "-m", "venv", str(folder)])
    _call(peer, [*pip, "install", "-qq", "--no-deps", "--require-hashes", "-r", str(lock)])
    (folder / "installed").write_text(_wanted(peer.lock), "ascii")
    return python


def _call(peer: Peer, command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=INSTALL_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerMissingError(f"{peer.title} could not be installed: {error}") from error
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise PeerMissingError(f"{peer.title} could not be installed: {' '.join(last)}")


def _link(link: Path, target: Path) -> None:
    if link.is_symlink() and Path(os.readlink(link)) == target.resolve():
        return
    link.unlink(missing_ok=True)
    link.symlink_to(target.resolve())
