"""The state folder: for its user alone, whichever code creates it."""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.cluster.local.state import StateFolder
from pipeline.private import is_closed, make_folder, state_folder, write_file
from pipeline.runs.admin.known_outputs import remember_output
from tests.contracts.source import ROOT

# What makes folders of its own: outputs, generated pages, jobs of users, working folders of
# processes.
MAKES_OTHERS = {
    "pipeline/private.py",
    "pipeline/cli/init.py",
    "pipeline/cli/reference.py",
    "pipeline/cluster/local/processes.py",
    "pipeline/storage/local_backend.py",
}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(autouse=True)
def lenient() -> Iterator[None]:
    """What most accounts have: new files and folders may be read by all."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_it_is_made_with_all_above_it_for_its_user_alone(tmp_path: Path) -> None:
    root = tmp_path / "work" / ".chunkmap"
    inner = state_folder(root, "reports", "r1")
    assert inner == root / "reports" / "r1"
    assert {mode(folder) for folder in (inner, inner.parent, root, root.parent)} == {0o700}
    assert (root / ".gitignore").read_text() == "*\n"


def test_one_that_others_may_read_is_closed_to_them(tmp_path: Path) -> None:
    root = tmp_path / ".chunkmap"
    root.mkdir(mode=0o755)
    root.chmod(0o755)
    assert not is_closed(root)
    state_folder(root)
    assert mode(root) == 0o700
    assert is_closed(root)


def test_one_that_cannot_be_closed_is_used_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    tmp_path.chmod(0o755)
    monkeypatch.setattr(Path, "chmod", refuse)
    assert state_folder(tmp_path) == tmp_path
    assert not is_closed(tmp_path)


def test_a_folder_that_is_there_is_not_touched(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    make_folder(tmp_path)
    assert mode(tmp_path) == 0o755


def test_a_file_is_private_from_its_first_byte(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("old")
    write_file(file, "new")
    assert (file.read_text(), mode(file)) == ("new", 0o600)
    assert list(tmp_path.iterdir()) == [file]


MAKERS: dict[str, Callable[[Path], object]] = {
    "outputs": lambda root: remember_output(root, "s3://b/out/"),
    "stack": lambda root: StateFolder(root).create(),
}


@pytest.mark.parametrize("maker", MAKERS)
def test_every_first_user_creates_it_private(tmp_path: Path, maker: str) -> None:
    root = tmp_path / ".chunkmap"
    MAKERS[maker](root)
    assert mode(root) == 0o700


def test_nothing_else_makes_folders() -> None:
    """So that the state folder has one door."""
    found = {
        str(path.relative_to(ROOT))
        for top in ("pipeline", "partitioning")
        for path in (ROOT / top).rglob("*.py")
        if ".mkdir(" in path.read_text() or "makedirs(" in path.read_text()
    }
    assert found == MAKES_OTHERS
