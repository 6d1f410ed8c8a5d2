"""The installed wheel, in a folder of another name that holds packages called as chunkmap's are."""

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest

from pipeline.cluster.local import processes
from pipeline.cluster.local.state import StateFolder
from tests.integration.world import REPOSITORY

# tests/contracts/test_wheel.py looks into the wheel, and runs a command from it.
pytestmark = [pytest.mark.integration, pytest.mark.long]

JOB = """\
name: mine
input: {{uri: {input}}}
transform: {transform}
output: {{uri: {output}}}
"""
SHOP = """\
import polars as pl


def dear(lf):
    return lf.filter(pl.col(lf.collect_schema().names()[0]) > 1)
"""
STRANGER = "raise ImportError('this is the package of the user')\n"


@dataclass(frozen=True)
class Installed:
    """A user's folder, and the `chunkmap` of an environment that the wheel is installed in."""

    program: Path
    folder: Path

    def give(
        self, *arguments: str, code: int = 0, variables: Mapping[str, str] | None = None
    ) -> str:
        """Give a command; returns what it shows."""
        path = f"{self.program.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            [self.program, *arguments],
            cwd=self.folder,
            # A user's own folder is first on the path of every Python.
            env={**os.environ, "PATH": path, "PYTHONPATH": str(self.folder), **(variables or {})},
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )
        assert done.returncode == code, f"{arguments}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stdout if not code else done.stderr

    def job(self, name: str, source: str, output: str, transform: str = "shop.deals:dear") -> str:
        """Write a job file; returns its name."""
        text = JOB.format(input=source, transform=transform, output=output)
        (self.folder / name).write_text(text, encoding="utf-8")
        return name


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's `chunkmap`, in an environment that takes other packages from this one."""
    folder = tmp_path_factory.mktemp("installed")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=REPOSITORY, capture_output=True, check=True)
    [wheel] = folder.glob("*.whl")
    environment = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    install = ["install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    subprocess.run([*pip, *install], check=True)
    [packages] = environment.glob("lib/*/site-packages")
    # A line of a .pth file is a folder; the .pth files in that folder, such as that of the editable
    # install, are not read.
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return environment / "bin" / "chunkmap"


@pytest.fixture
def installed(program: Path, tmp_path: Path) -> Iterator[Installed]:
    folder = tmp_path / "sales"
    for package in ("pipeline", "partitioning", "shop", "conf"):
        (folder / package).mkdir(parents=True)
    for package in ("pipeline", "partitioning"):
        (folder / package / "__init__.py").write_text(STRANGER)
    (folder / "pipeline" / "mine.py").write_text(SHOP)
    (folder / "shop" / "deals.py").write_text(SHOP)
    (folder / "conf" / "base.yaml").write_text("transforms: {allow: [shop, pipeline]}\n")
    user = Installed(program, folder)
    yield user
    if (folder / ".chunkmap" / "stack.json").exists():
        user.give("down")
    if (folder / ".chunkmap").exists():
        assert not processes.marked(StateFolder(folder / ".chunkmap").marker())


def test_it_is_the_wheel_that_runs(installed: Installed) -> None:
    where = "import pipeline.cli, partitioning; print(pipeline.__file__, partitioning.__file__)"
    python = installed.program.with_name("python")
    shown = subprocess.run(
        [python, "-c", where], cwd="/", capture_output=True, text=True, check=True
    ).stdout.split()
    assert all(Path(file).is_relative_to(installed.program.parents[1]) for file in shown)
    assert installed.give("--version").startswith("chunkmap ")


def test_a_users_own_packages_of_these_names_do_not_matter(installed: Installed) -> None:
    (installed.folder / "data").mkdir()
    pl.DataFrame({"price": [1, 2, 3]}).write_parquet(installed.folder / "data" / "a.parquet")
    job = installed.job("job.yaml", "data/", "out/")
    assert json.loads(installed.give("check", job, "--json"))["rows_out"] == 2
    assert json.loads(installed.give("plan", job, "--json"))["rows"] == 3
    assert json.loads(installed.give("run", job, "--local", "--json"))["rows_out"] == 2
    shadowed = installed.job("own.yaml", "data/", "out/", "pipeline.mine:dear")
    refused = installed.give("check", shadowed, code=2)
    assert "two packages cannot share a name" in refused
    assert "rename your folder, e.g. to my_pipeline" in refused
    assert "not part of the installed package" in installed.give("bench", "simulate", code=2)


IN_PYTHON = """
import sys
import polars as pl
import chunkmap as cm

pl.DataFrame({"price": [1, 2, 3]}).write_parquet("data/a.parquet", mkdir=True)
cm.connect("local", dask={"workers": 1})
run = cm.read("data/").map(lambda lf: lf.filter(pl.col("price") > 1)).write("out/").run()
print(cm.__file__, run.state, cm.scan("out/").collect()["price"].to_list())
print(sorted({"prefect", "dask", "distributed", "botocore", "obstore"} & set(sys.modules)))
"""


def test_python_needs_no_services_and_loads_none(program: Path, tmp_path: Path) -> None:
    python = program.with_name("python")
    done = subprocess.run(
        [python, "-c", IN_PYTHON], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    first, modules = done.stdout.splitlines()
    assert first.startswith(str(program.parents[1])) and first.endswith("done [2, 3]")
    assert modules == "[]"


@pytest.mark.timeout(600)
def test_the_first_hour(installed: Installed) -> None:
    """What the README does in a checkout, from the wheel alone."""
    foreign = {"AWS_PROFILE": "work", "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    said = installed.give("demo", "--keep", variables=foreign)
    assert "matches its manifest" in said
    commands = [line.partition("#")[0].strip() for line in said.partition("Next:")[2].splitlines()]
    head = next(command for command in commands if command.startswith("chunkmap head"))
    assert "currency" in installed.give(*head.split()[1:])
    job = installed.job("job.yaml", "s3://demo/tpch/lineitem/", "s3://demo/dear/")
    installed.give("check", job)
    run = json.loads(installed.give("run", job, "--json"))
    assert run["state"] == "done"
    assert 0 < run["rows_out"] < run["rows_in"]
    assert run["run"] in installed.give("status", "last")
    assert run["run"] in installed.give("report", "last")
    assert len(json.loads(installed.give("head", "s3://demo/dear/", "--json"))["rows"]) == 10
    before = installed.give("env") + installed.give("env", "--prefect")
    installed.give("down")
    installed.give("up")
    after = installed.give("env") + installed.give("env", "--prefect")
    assert after == before, "addresses and credentials stay the same"
