"""Transforms: allowed before they are imported, known by their source, never of yesterday."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.errors import JobError, TransformNotAllowedError
from pipeline.settings import TransformSettings
from pipeline.transforms import fingerprint_of, resolve

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
        transform = resolve(f"{self.name}.{name}", params, self.settings())
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
    for call in (resolve, fingerprint_of):
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
        assert resolve(name, {}, package.settings(allow)).name == name
    for allow in (package.name[:-1], f"{package.name}.mai", f"{package.name}.main.run"):
        with pytest.raises(TransformNotAllowedError):
            resolve(name, {}, package.settings(allow))


# -- errors -----------------------------------------------------------------------------------


def test_a_name_needs_a_function(package: Package) -> None:
    with pytest.raises(JobError, match="module:function"):
        resolve(package.name, {}, package.settings())


def test_a_module_that_does_not_exist(package: Package) -> None:
    with pytest.raises(JobError, match="does not exist") as caught:
        resolve(f"{package.name}.absent:run", {}, package.settings())
    assert caught.value.hint is not None
    assert str(package.folder) in caught.value.hint


def test_a_function_that_does_not_exist_names_the_nearest(package: Package) -> None:
    package.write("main", run("pl.col('a')") + "\nrum = 3\n")
    for wrong in ("rune", "rum"):
        with pytest.raises(JobError, match=repr(wrong)) as caught:
            resolve(f"{package.name}.main:{wrong}", {}, package.settings())
        assert "run" in str(caught.value) + str(caught.value.hint)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def run(frame:\n", "line 1"),
        ("import no_such_package_anywhere\n", "no_such_package_anywhere"),
        ("raise ValueError('broken at import')\n", "broken at import"),
        ("1 / 0\n", "division by zero"),
    ],
)
def test_a_module_that_cannot_be_imported(package: Package, source: str, said: str) -> None:
    package.write("main", source)
    with pytest.raises(JobError, match=said):
        resolve(f"{package.name}.main:run", {}, package.settings())


# -- fingerprints -----------------------------------------------------------------------------


def test_layout_and_comments_do_not_enter(package: Package) -> None:
    package.write("main", "def run(frame):\n    return frame.head(1)\n")
    before = package.fingerprint()
    package.write(
        "main", "# new\n\n\ndef run( frame ):  # why\n\n    return (frame\n      .head(1))\n"
    )
    assert package.fingerprint() == before
    assert len(before) == 16


def test_everything_else_enters(package: Package) -> None:
    package.write("main", "def run(frame, n=1):\n    return frame.head(n)\n\nother = run\n")
    seen = {package.fingerprint(), package.fingerprint("main:other")}
    seen |= {package.fingerprint(n=n) for n in (1, 2, None, "1", [1], {"a": 1})}
    assert len(seen) == 8
    package.write("main", "def run(frame, n=2):\n    return frame.head(n)\n")
    assert package.fingerprint() not in seen


def test_the_order_of_parameters_does_not_enter(package: Package) -> None:
    package.write("main", run("pl.col('a')"))
    assert package.fingerprint(a=1, b={"x": 1, "y": 2}) == package.fingerprint(
        b={"y": 2, "x": 1}, a=1
    )


@pytest.mark.parametrize(
    "statement",
    [
        "from {package} import helper",
        "from . import helper",
        "from {package}.helper import N",
        "from .helper import N",
        "import {package}.helper",
        "from .middle import helper",
        "def later():\n    from . import helper",
    ],
)
def test_helper_modules_enter(package: Package, statement: str) -> None:
    package.write("helper", "N = 1\n")
    package.write("middle", "from . import helper\n")
    package.write("unrelated", "N = 1\n")
    package.write("main", statement.format(package=package.name) + "\n" + run("pl.col('a')"))
    before = package.fingerprint()
    package.write("unrelated", "N = 2\n")
    assert package.fingerprint() == before
    package.write("helper", "N = 2\n")
    assert package.fingerprint() != before


def test_the_package_itself_enters(package: Package) -> None:
    """Its `__init__` runs before the module does."""
    package.write("main", run("pl.col('a')"))
    before = package.fingerprint()
    package.write("__init__", "import polars\n")
    assert package.fingerprint() != before


def test_a_fingerprint_of_modules_that_import_each_other(package: Package) -> None:
    package.write("helper", "from . import main\nN = 1\n")
    package.write("main", "from . import helper\n" + run("pl.col('a')"))
    assert package.fingerprint() == package.fingerprint()


# -- imported anew ----------------------------------------------------------------------------


def test_parameters_are_bound(package: Package) -> None:
    package.write(
        "main",
        "def run(frame, *, by):\n    return frame * by\n".replace(
            "frame * by", "frame.select('a') .with_columns(a=frame.collect()['a'] * by)"
        ),
    )
    assert package.run(by=3) == [3, 6]


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
