"""Transforms: allowed before they are imported, known by their source, never of yesterday."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import polars as pl
import pytest

from pipeline import masking
from pipeline.config.sections import TransformSettings
from pipeline.errors import JobError, TransformNotAllowedError
from pipeline.runs.transforms.loading import fingerprint_of, load_transform

FRAME = pl.LazyFrame({"a": [1, 2]})


@dataclass(frozen=True)
class Package:
    """A package of a name that no test used before."""

    folder: Path
    name: str

    def write(self, module: str, source: str) -> str:
        path = self.folder / self.name / f"{module}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
        return f"{self.name}.{module}"

    def settings(self, *allow: str) -> TransformSettings:
        return TransformSettings(allow=allow or (self.name,), path=(str(self.folder),))

    def fingerprint(self, name: str = "main:run", **params: Any) -> str:
        return fingerprint_of(f"{self.name}.{name}", params, self.settings())

    def run(self, name: str = "main:run", **params: Any) -> list[Any]:
        transform = load_transform(f"{self.name}.{name}", params, self.settings())
        assert transform.fingerprint == self.fingerprint(name, **params)
        return list(transform.call(FRAME).collect()["a"])


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Package]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    made = Package(tmp_path, f"package_{uuid.uuid4().hex[:8]}")
    made.write("__init__", "")
    yield made
    for name in [name for name in sys.modules if name.startswith(made.name)]:
        del sys.modules[name]


def run(expression: str) -> str:
    return (
        "import polars as pl\n\n"
        f"def run(frame, **params):\n    return frame.with_columns({expression})\n"
    )


# -- allowed before imported ------------------------------------------------------------------


@pytest.mark.parametrize("allow", [("examples",), ("package",), ("main",), ("",)])
def test_what_is_not_allowed_is_not_imported(
    package: Package, allow: tuple[str, ...], tmp_path: Path
) -> None:
    mark = tmp_path / "was-imported"
    effect = f"from pathlib import Path\nPath({str(mark)!r}).touch()\n"
    package.write("__init__", effect)
    package.write("main", effect + run("pl.col('a')"))
    for call in (load_transform, fingerprint_of):
        with pytest.raises(TransformNotAllowedError, match=package.name) as caught:
            call(f"{package.name}.main:run", {}, package.settings(*allow))
        assert caught.value.exit_code == 2
        assert caught.value.hint is not None
        assert package.name in caught.value.hint
    assert not mark.exists()
    assert not [name for name in sys.modules if name.startswith(package.name)]
    package.run()
    assert mark.exists()  # the mark would have shown an import


def test_a_name_allows_itself_and_what_is_below_it(package: Package) -> None:
    package.write("main", run("pl.col('a')"))
    name = f"{package.name}.main:run"
    for allow in (package.name, f"{package.name}.main"):
        assert load_transform(name, {}, package.settings(allow)).name == name
    for allow in (package.name[:-1], f"{package.name}.mai", f"{package.name}.main.run"):
        with pytest.raises(TransformNotAllowedError):
            load_transform(name, {}, package.settings(allow))


# -- errors -----------------------------------------------------------------------------------


def test_a_name_needs_a_function(package: Package) -> None:
    with pytest.raises(JobError, match="module:function"):
        load_transform(package.name, {}, package.settings())


def test_a_module_that_does_not_exist(package: Package) -> None:
    with pytest.raises(JobError, match="does not exist") as caught:
        load_transform(f"{package.name}.absent:run", {}, package.settings())
    assert caught.value.hint is not None
    assert str(package.folder) in caught.value.hint


def test_a_function_that_does_not_exist_names_the_nearest(package: Package) -> None:
    package.write("main", run("pl.col('a')") + "\nrum = 3\n")
    for wrong in ("rune", "rum"):
        with pytest.raises(JobError, match=repr(wrong)) as caught:
            load_transform(f"{package.name}.main:{wrong}", {}, package.settings())
        assert "run" in str(caught.value) + str(caught.value.hint)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def run(frame:\n", "line 1"),
        ("import no_such_package_anywhere\n", "no_such_package_anywhere"),
        ("raise ValueError('broken at import')\n", "broken at import"),
        ("1 / 0\n", "division by zero"),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3"),
    ],
)
def test_a_module_that_cannot_be_imported(package: Package, source: str, said: str) -> None:
    package.write("main", source)
    with pytest.raises(JobError, match=said):
        load_transform(f"{package.name}.main:run", {}, package.settings())


# -- defined in an allowed module ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "function"),
    [
        ("from os import system\n", "system"),
        ("from os import system as tidy\n", "tidy"),
        ("from subprocess import run\n", "run"),
        ("from .middle import system\n", "system"),
        ("import subprocess\n", "subprocess"),
    ],
)
def test_what_is_only_imported_is_refused_before_anything_is_imported(
    package: Package, source: str, function: str, tmp_path: Path
) -> None:
    mark = tmp_path / "was-imported"
    effect = f"from pathlib import Path\nPath({str(mark)!r}).touch()\n"
    package.write("middle", effect + "from os import system\n")
    package.write("main", effect + source)
    name = f"{package.name}.main:{function}"
    for call in (load_transform, fingerprint_of):
        with pytest.raises(TransformNotAllowedError, match="not defined in a file") as caught:
            call(name, {}, package.settings())
        assert "os.system" in str(caught.value) or "subprocess" in str(caught.value)
    assert not mark.exists()


@pytest.mark.parametrize(
    "source",
    [
        "import os\nrun = os.system\n",
        "import functools, os\nrun = functools.partial(os.system, 'true')\n",
        "import subprocess\nrun = subprocess.call\n",
        "import polars as pl\nrun = pl.LazyFrame.head\n",
        "import operator\nrun = operator.methodcaller('head')\n",
        "space = {}\nexec('def run(frame):\\n return frame', space)\nrun = space['run']\n",
        "run = len\n",
        "try:\n    from os import system as run\nexcept ImportError:\n    run = None\n",
    ],
)
def test_what_is_defined_elsewhere_is_refused(package: Package, source: str) -> None:
    package.write("main", source)
    with pytest.raises(TransformNotAllowedError, match="not defined in a file"):
        load_transform(f"{package.name}.main:run", {}, package.settings())


def test_a_class_is_refused(package: Package) -> None:
    package.write("main", "class run:\n    def __init__(self, frame): ...\n")
    with pytest.raises(JobError, match="is a class"):
        load_transform(f"{package.name}.main:run", {}, package.settings())


@pytest.mark.parametrize(
    "definition",
    [
        "run = lambda frame: plus(frame, 1)",
        "run = functools.partial(plus, by=1)",
        "run = functools.partial(functools.partial(plus), by=1)",
        "@functools.singledispatch\ndef run(frame):\n    return plus(frame, 1)",
        "@functools.wraps(functools.reduce)\ndef run(frame):\n    return plus(frame, 1)",
        "class Plus:\n    def __call__(self, frame):\n        return plus(frame, 1)\nrun = Plus()",
        "class Plus:\n    def one(self, frame):\n        return plus(frame, 1)\nrun = Plus().one",
        "def make(by):\n    def inner(frame):\n        return plus(frame, by)\n    return inner\n"
        "run = make(1)",
        "from .other import run",
        "from .other import *",
    ],
)
def test_what_is_defined_here_is_taken(package: Package, definition: str) -> None:
    plus = (
        "import polars as pl\n\ndef plus(frame, by):\n    return frame.select(pl.col('a') + by)\n"
    )
    package.write("other", plus + "\ndef run(frame):\n    return plus(frame, 1)\n")
    package.write("main", "import functools\n" + plus + definition + "\n")
    assert package.run() == [2, 3]


def test_a_module_without_python_source_is_named(package: Package) -> None:
    with pytest.raises(JobError, match="has no Python source"):
        load_transform("_struct:pack", {}, package.settings("_struct"))


def test_parents_that_are_not_allowed_run_and_count(package: Package) -> None:
    """Importing `a.b` runs `a`, whatever the settings allow."""
    package.write("main", run("pl.col('a')"))
    settings = package.settings(f"{package.name}.main")
    name = f"{package.name}.main:run"
    before = fingerprint_of(name, {}, settings)
    package.write("__init__", "import polars\n")
    assert fingerprint_of(name, {}, settings) != before
    assert package.name not in sys.modules


# -- imported anew ----------------------------------------------------------------------------


def test_parameters_are_bound(package: Package) -> None:
    package.write(
        "main",
        "def run(frame, *, by):\n    return frame * by\n".replace(
            "frame * by", "frame.select('a') .with_columns(a=frame.collect()['a'] * by)"
        ),
    )
    assert package.run(by=3) == [3, 6]


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets of a test are not masked in others."""
    monkeypatch.setattr(masking, "_hidden", [()])


@pytest.mark.usefixtures("hidden")
def test_a_secret_comes_from_the_environment_and_is_masked(
    package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    package.write("main", run("pl.lit(params['http']['tokens'][0]).alias('a')"))
    params: dict[str, Any] = {"http": {"tokens": [{"from_env": "SHOP_TOKEN"}]}}
    found = []
    for token in ('planted-"1"/é', "planted-2-of-it"):
        monkeypatch.setenv("SHOP_TOKEN", token)
        assert set(package.run(**params)) == {token}
        found.append(package.fingerprint(**params))
        for text in (token, json.dumps(token), repr(token), quote(token), quote(token, safe="")):
            assert "planted" not in masking.mask_text(f"401 for {text} of it")
            assert "planted" not in str(masking.mask({"why": [text]}))
    assert found[0] == found[1], "a new value makes no new run"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"from_env": "NOT_SET_HERE"}, r"NOT_SET_HERE \(params\.by\) is not set"),
        ({"from_env": "SHORT_TOKEN"}, r"SHORT_TOKEN \(params\.by\) has fewer than 8 characters"),
        ({"from_env": ""}, "names an environment variable"),
        ({"from_env": ["SHORT_TOKEN"]}, "names an environment variable"),
        ({"from_env": "SHORT_TOKEN", "default": "x"}, "stands alone"),
        ({"a": [{"from_env": "NOT_SET_HERE"}]}, r"\(params\.by\.a\) is not set"),
    ],
)
@pytest.mark.usefixtures("hidden")
def test_a_secret_that_cannot_be_had_is_named(
    package: Package, monkeypatch: pytest.MonkeyPatch, value: Any, said: str
) -> None:
    monkeypatch.setenv("SHORT_TOKEN", "abc")
    package.write("main", run("pl.lit(1).alias('a')"))
    with pytest.raises(JobError, match=said) as refused:
        package.run(by=value)
    assert "abc" not in str(refused.value)


def test_a_changed_module_is_imported_anew(package: Package) -> None:
    for number in range(5):
        # Of the same size within the same second: the interpreter's own caches do not see it.
        package.write("main", run(f"pl.col('a') + {number}"))
        assert package.run() == [1 + number, 2 + number]


@pytest.mark.parametrize(
    ("statement", "use"),
    [
        ("from .helper import N", "N"),
        ("from . import helper", "helper.N"),
        ("import {package}.helper", "{package}.helper.N"),
        ("from .middle import N", "N"),
    ],
)
def test_a_changed_helper_is_imported_anew(package: Package, statement: str, use: str) -> None:
    package.write("middle", "from .helper import N\n")
    package.write(
        "main",
        statement.format(package=package.name)
        + "\n"
        + run(f"pl.col('a') * {use.format(package=package.name)}"),
    )
    for number in range(4):
        package.write("helper", f"N = {number}\n")
        assert package.run() == [number, 2 * number]


def test_a_new_module_is_found_at_once(package: Package) -> None:
    package.write("main", run("pl.col('a')"))
    package.run()
    for number in range(3):
        package.write(f"new{number}", run(f"pl.lit({number}).alias('a')"))
        assert package.run(f"new{number}:run") == [number] * 2


def test_what_did_not_change_is_not_imported_again(package: Package) -> None:
    package.write(
        "main",
        "import itertools\ncount = itertools.count()\n" + run("pl.lit(next(count)).alias('a')"),
    )
    assert package.run() == [0, 0]
    assert package.run() == [1, 1]


def test_folders_without_init_at_any_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing above them is imported when they are looked for."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    top = f"package_{uuid.uuid4().hex[:8]}"
    folder = tmp_path / top / "etl" / "daily"
    folder.mkdir(parents=True)
    (folder / "main.py").write_text(run("pl.col('a') + 1"))
    settings = TransformSettings(allow=(f"{top}.etl",), path=(str(tmp_path),))
    transform = load_transform(f"{top}.etl.daily.main:run", {}, settings)
    assert transform.call(FRAME).collect()["a"].to_list() == [2, 3]
    for name in [name for name in sys.modules if name.startswith(top)]:
        del sys.modules[name]


@pytest.mark.parametrize("module", ["pipeline.mine", "partitioning.jobs", "pipeline"])
def test_a_package_of_chunkmaps_own_name_is_refused_with_the_way_out(
    package: Package, module: str
) -> None:
    with pytest.raises(TransformNotAllowedError, match="two packages cannot share a name") as found:
        load_transform(f"{module}:run", {}, package.settings("pipeline", "partitioning"))
    assert f"my_{module.partition('.')[0]}" in (found.value.hint or "")


@pytest.mark.parametrize("line", ["from pipeline.mine import x", "from pipeline import mine"])
def test_what_imports_from_such_a_package_is_told_why_it_cannot(
    package: Package, line: str
) -> None:
    (package.folder / "pipeline").mkdir()
    (package.folder / "pipeline" / "mine.py").write_text("x = 1\n")
    package.write("main", f"{line}\n\n" + run("pl.lit(1)"))
    with pytest.raises(JobError, match="two packages cannot share a name") as found:
        package.run()
    assert "my_pipeline" in (found.value.hint or "")


def test_the_examples_are_always_allowed(package: Package) -> None:
    name = "pipeline.examples.revenue:revenue"
    assert load_transform(name, {"currency": "EUR"}, package.settings()).definitions >= 2


def test_processes_that_are_started_later_import_chunkmap_beside_a_folder_of_its_name(
    package: Package,
) -> None:
    for name in ("pipeline", "partitioning"):
        (package.folder / name).mkdir()
        (package.folder / name / "__init__.py").write_text("raise ImportError('a stranger')\n")
    package.write("main", run("pl.col('a')"))
    package.run()
    assert str(package.folder) in sys.path
    program = f"import sys; sys.path[:] = {sys.path!r}; import partitioning.model, pipeline.errors"
    subprocess.run([sys.executable, "-c", program], check=True)
