"""The peers' scripts and locks: complete, pinned by hash, silent about where packages come from."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks import transforms
from benchmarks.suite.datasets import DATASETS
from benchmarks.suite.environments import LOCKS, PEERS, REFERENCE, PeerMissingError, environment_of
from benchmarks.suite.workloads import WORKLOADS, needs

LOCKED = {peer.name: peer for peer in PEERS.values() if peer.lock}
SCRIPTS = LOCKS.parent
# What a distribution is imported as, where that is not its own name.
IMPORTED_AS = {
    "duckdb_extensions": "duckdb-extensions",
    "pyarrow": "pyarrow",
    "s3fs": "s3fs",
    "distributed": "dask",
}
ENTRY = re.compile(
    r"^([A-Za-z0-9._-]+)==[^\s;]+(?: ; [^\\]+?)? \\\n"
    r"((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)",
    re.MULTILINE,
)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).partition(".")[0])
    return found - {"benchmarks"} - sys.stdlib_module_names


@pytest.mark.parametrize("name", LOCKED)
def test_what_a_script_imports_is_locked(name: str) -> None:
    peer = LOCKED[name]
    locked = {canonicalize_name(entry[0]) for entry in ENTRY.findall(lock_of(name))}
    for module in imports(SCRIPTS / f"{peer.module}.py"):
        assert canonicalize_name(IMPORTED_AS.get(module, module)) in locked, module


def lock_of(name: str) -> str:
    return (LOCKS / f"{LOCKED[name].lock}.txt").read_text("utf-8")


@pytest.mark.parametrize("name", LOCKED)
def test_locks_are_hashed_and_name_no_address(name: str) -> None:
    text = lock_of(name)
    rest = [line for line in ENTRY.sub("", text).splitlines() if not line.startswith("#")]
    assert rest == []
    for word in ("http:", "https:", "file:", "git+", "--index", "--find", " @ "):
        assert word not in text


@pytest.mark.parametrize("name", LOCKED)
def test_what_is_asked_for_is_locked(name: str) -> None:
    locked = {canonicalize_name(entry[0]) for entry in ENTRY.findall(lock_of(name))}
    for line in (LOCKS / f"{LOCKED[name].lock}.in").read_text("utf-8").splitlines():
        assert canonicalize_name(Requirement(line).name) in locked


@pytest.mark.parametrize("name", WORKLOADS)
def test_workloads_name_what_there_is(name: str) -> None:
    workload = WORKLOADS[name]
    assert callable(getattr(transforms, workload.transform))
    assert set(workload.peers) <= set(PEERS) - {REFERENCE}
    assert set(needs(workload)) <= set(DATASETS)
    assert set(workload.limits) <= set(workload.peers)
    for aim in workload.aims:
        assert set(aim.peers) <= set(workload.peers)
        assert aim.says()


def test_transforms_import_nothing_but_polars() -> None:
    """Peers import them in environments that hold little else."""
    tree = ast.parse(Path(transforms.__file__ or "").read_text("utf-8"))
    top = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    assert top <= {"datetime", "polars", "time"}


def test_a_peer_without_its_program_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PeerMissingError, match="PySpark needs `java`"):
        environment_of(PEERS["pyspark"], tmp_path)


def test_a_peer_that_cannot_be_installed_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from dataclasses import replace

    import benchmarks.suite.environments as environments

    monkeypatch.setattr(environments, "LOCKS", tmp_path)
    pin = "chunkmap-made-up==1.0 \\\n    --hash=sha256:" + "0" * 64 + "\n"
    (tmp_path / "made_up.txt").write_text(pin)
    # No index: the failure comes at once, and nothing leaves the machine.
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    peer = replace(PEERS["polars"], title="Made-up", lock="made_up")
    with pytest.raises(PeerMissingError, match="Made-up could not be installed"):
        environment_of(peer, tmp_path / "state")
