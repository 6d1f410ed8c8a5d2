"""Every page's commands run, in the page's order, as its reader would run them in a checkout."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from psutil import Process

from pipeline.cluster.local import processes
from pipeline.cluster.local.state import StateFolder
from tests.contracts.source import ROOT, repository_files
from tests.docs.pages import Block, blocks, commands, missing, read
from tests.support import forks

PAGES = [path for path in repository_files() if path.suffix == ".md"]
BIN = Path(sys.executable).parent
COPIED = ("Makefile", "conf", "constraints.txt", "pyproject.toml")

# These run the tests, which this is one of, or change the checkout's own files.
NOT_HERE = (
    "make test",
    "make test-long",
    "make test-fast",
    "make lint",
    "make format",
    "make lock",
    "make clean",
)

SHORTER = {} if "LONG" in os.environ else {"make demo": "make demo ARGS=--keep"}
"""Commands that the page says, too, with which the commands after them need not start services."""

SMALL_DEMO = f"""
import sys

if sys.argv[1:2] == ["demo"]:
    import pipeline.cli.demo

    pipeline.cli.demo.SCALE_FACTOR = 0.1
{forks.MAIN}
"""
"""The command with a tenth of the demo's data, forked from a process that has imported what it
needs; `make test-long` has it as it is."""


class Checkout:
    """A folder that looks like a checkout whose `.venv` is the running interpreter's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for item in COPIED:
            source = ROOT / item
            (shutil.copytree if source.is_dir() else shutil.copy2)(source, folder / item)
        self.variables = {"PATH": f"{BIN}:{os.environ['PATH']}", "COLUMNS": "120"}
        self.bin = BIN
        self.inherited: tuple[int, ...] = ()
        if "LONG" not in os.environ:
            self.bin = folder / ".bin"
            self.bin.mkdir()
            variables, descriptor = forks.program(self.bin / "chunkmap", SMALL_DEMO)
            self.variables |= variables
            self.inherited = (descriptor,)
            self.variables["PATH"] = f"{self.bin}:{self.variables['PATH']}"
            self.variables["CHUNKMAP_DASK__WORKERS"] = "1"
        # What make takes for "installed"; it has to be newer than the copied requirements.
        (folder / ".installed").touch()

    def run(self, line: str) -> str:
        """What a command shows. Fails the test, with all that it showed, when it fails."""
        if line.startswith("make "):
            line += f" BIN={self.bin} STAMP=.installed"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", line],
            check=False,
            cwd=self.folder,
            env=_without_make() | self.variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            pass_fds=self.inherited,
        )
        assert done.returncode == 0, f"$ {line}\n{done.stdout}\nexit code {done.returncode}"
        return done.stdout

    def servers(self) -> list[Process]:
        """What runs of the stack in this folder."""
        state = StateFolder(self.folder / ".chunkmap")
        return processes.marked(state.marker()) if state.root.exists() else []

    def execute(self, block: Block) -> None:
        """Writes the file, or runs the program or the commands, that the block holds."""
        if block.title is not None:
            path = self.folder / block.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, "utf-8")
        elif block.language == "python":
            program = self.folder / "snippet.py"
            program.write_text(block.text, "utf-8")
            self.run("python snippet.py")
        elif block.language == "console":
            for line, shows in commands(block):
                if line not in NOT_HERE:
                    shown = self.run(SHORTER.get(line, line))
                    if line == "make demo" and line not in SHORTER:
                        assert not self.servers(), "it stops what it has started"
                    lacks = missing(shows, shown)
                    assert lacks is None, f"$ {line}\n{shown}\nlacks the line {lacks!r}"


def _without_make() -> dict[str, str]:
    """The environment without what `make test ARGS=…` hands down to every make below it."""
    return {k: v for k, v in os.environ.items() if k != "ARGS" and "MAKE" not in k}


def runs_something(page: Path) -> bool:
    found = blocks(read(page))
    lines = [c.line for b in found if b.language == "console" for c in commands(b)]
    programs = [block for block in found if block.language == "python" and not block.title]
    return bool(programs) or any(line not in NOT_HERE for line in lines)


LONG = (
    *("backfills.md", "benchmarks.md", "checks.md", "cluster.md", "columns.md", "deploying.md"),
    "examples.md",
    *("groups.md", "ingest.md", "layouts.md", "load.md", "pipelines.md"),
    *("runs.md", "tables.md", "tutorial.md"),
)
"""Pages that take minutes."""


@pytest.mark.integration
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.long if page.name in LONG else ())
        for page in PAGES
        if runs_something(page)
    ],
    ids=lambda page: page.name,
)
def test_the_page_does_what_it_says(page: Path, tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    try:
        for block in blocks(read(page)):
            checkout.execute(block)
    finally:
        # A page that fails half-way leaves its servers up.
        checkout.run("chunkmap down")
        assert not checkout.servers()


def test_a_failing_command_fails_the_page(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    with pytest.raises(AssertionError, match="exit code 3"):
        checkout.execute(Block("console", None, "$ echo so far; exit 3\n", 1))
    with pytest.raises(AssertionError, match="lacks the line 'two'"):
        checkout.execute(Block("console", None, "$ echo one\ntwo\n", 1))


def test_files_and_programs_are_written_and_run(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    checkout.execute(Block("yaml", "new/job.yaml", "name: a\n", 1))
    checkout.execute(Block("console", None, "$ cat new/job.yaml\nname: a\n", 1))
    checkout.execute(Block("python", None, "import pathlib; pathlib.Path('ran').touch()\n", 1))
    assert (tmp_path / "ran").exists()
    assert "-m pytest" in checkout.run("make -n test")
