"""Fingerprints: an edit of what a transform reaches changes them, any other edit does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from pipeline.config.sections import TransformSettings
from pipeline.runs.transforms.fingerprint import (
    SCHEME,
    explain_difference,
    join_fingerprints,
    scheme_of,
)
from pipeline.runs.transforms.loading import load_transform
from tests.support.sources import ONE_MODULE, RUN, Folder, change

# -- one function ------------------------------------------------------------------------------


def test_it_begins_with_its_scheme(folder: Folder) -> None:
    folder.write({"main": RUN})
    scheme, _, digits = folder.of().partition("-")
    assert scheme == SCHEME == scheme_of(folder.of())
    assert len(digits) == 16
    assert int(digits, 16) >= 0
    assert scheme_of("0123456789abcdef") == "v1"
    assert join_fingerprints([folder.of()]) == folder.of()
    assert scheme_of(join_fingerprints([folder.of(), folder.of()])) == SCHEME


@pytest.mark.parametrize(
    "same",
    [
        "# new\n\n\ndef run( frame, n = 1 ):  # why\n\n    return (frame\n      .head(n))\n",
        '"""Of the module."""\n' + RUN,
        'def run(frame, n=1):\n    """Of the function."""\n    return frame.head(n)\n',
        RUN + "\nEXTRA = 1\n\ndef other(frame):\n    return EXTRA\n",
        "import polars as pl\nfrom os import path, sep\n\n" + RUN,
        RUN + "\nif __name__ == '__main__':\n    print(run(None))\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import polars\n" + RUN,
        "def run(frame, n=0x1):\n    return frame.head(n)\n",
    ],
)
def test_what_changes_nothing(folder: Folder, same: str) -> None:
    assert not change(folder, {"main": RUN}, {"main": same})


@pytest.mark.parametrize(
    "other",
    [
        RUN.replace("n=1", "n=2"),
        RUN.replace("n=1", "n=True"),
        RUN.replace("n=1", "n=1.0"),
        RUN.replace("n=1", "n='1'"),
        RUN.replace("n=1", "n=b'1'"),
        RUN.replace("head", "tail"),
        "@staticmethod\n" + RUN,
        "async " + RUN,
        RUN.replace("head(n)", "head(-n)"),
        RUN + "\nrun = run\n",
        RUN + "\n" + RUN.replace("head", "tail"),
        "if True:\n    def run(frame, n=1):\n        return frame.head(n)\n",
    ],
)
def test_what_changes_something(folder: Folder, other: str) -> None:
    assert change(folder, {"main": RUN}, {"main": other})


def test_parameters_count_and_their_order_does_not(folder: Folder) -> None:
    folder.write({"main": RUN + "other = run\n"})
    assert folder.of(a=1, b={"x": 1, "y": 2}) == folder.of(b={"y": 2, "x": 1}, a=1)
    seen = {folder.of(), folder.of(name="shop.main:other")}
    seen |= {folder.of(n=n) for n in (1, 2, None, "1", [1], {"a": 1})}
    assert len(seen) == 8


def test_the_version_of_polars_counts(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write({"main": RUN})
    before = folder.of()
    monkeypatch.setattr(
        "pipeline.runs.transforms.fingerprint._versions", lambda: {"polars": "0.0.1"}
    )
    assert folder.of() != before


# -- what is reached in its module -------------------------------------------------------------


@pytest.mark.parametrize(
    "use",
    [
        "def run(frame):\n    return frame.head(N)\n",
        "def run(frame, n=N):\n    return frame.head(n)\n",
        "def run(frame):\n    return Heir().method(frame)\n",
        "def run(frame):\n    return frame.map_batches(lambda rows: rows.head(N))\n",
        "def run(frame):\n    def inner():\n        return N\n    return inner()\n",
        "def run(frame):\n    return [N for N in (1, 2)] or [N]\n",
        "def run(frame):\n    class Inner:\n        n = N\n    return Inner\n",
        "run = lambda frame: frame.head(N)\n",
        "run = make(N)\n",
        "run = functools.partial(helper, frame=N)\n",
        "@functools.lru_cache(N)\ndef run(frame):\n    return frame\n",
        "M = N * 2\nK = M + 1\n\ndef run(frame):\n    return frame.head(K)\n",
        "if N:\n    def run(f):\n        return 1\nelse:\n    def run(f):\n        return 2\n",
        "for M in (N, 2):\n    pass\n\ndef run(frame):\n    return M\n",
        "def run(frame):\n    match frame:\n        case Base.size:\n            return N\n",
        "def run(frame):\n    return f'{N:>3}'\n",
        "class Run:\n    def __call__(self, frame):\n        return frame.head(N)\nrun = Run()\n",
        "class Run:\n    @property\n    def n(self):\n        return N\n    def go(self, f):\n"
        "        return f\nrun = Run().go\n",
        "def run(frame):\n    global N\n    N = 3\n    return N\n",
        "def ping(n):\n    return pong(n)\n\ndef pong(n):\n    return ping(n) or N\n\nrun = ping\n",
    ],
)
def test_a_constant_that_is_reached(folder: Folder, use: str) -> None:
    before, after = (ONE_MODULE.format(number=number) + use for number in (1, 2))
    assert change(folder, {"main": before}, {"main": after})


@pytest.mark.parametrize(
    "use",
    [
        "def run(frame):\n    N = 3\n    return frame.head(N)\n",
        "def run(N):\n    return N\n",
        "def run(frame, *N, **M):\n    return lambda: N\n",
        "def run(frame):\n    for N in (1, 2):\n        frame = frame.head(N)\n    return frame\n",
        "def run(frame):\n    return [N for N in (1, 2)]\n",
        "def run(frame):\n    with open('x') as N:\n        return N\n",
        "def run(f):\n    try:\n        return f\n    except ValueError as N:\n        return N\n",
        "def run(frame):\n    import os as N\n    return N.sep\n",
        "def run(frame):\n    match frame:\n        case [N, *rest]:\n            return N\n",
        "def run(frame):\n    return (N := 3) + N\n",
        "def run(frame):\n    return frame.N + frame.select(N=1)\n",
        "def run(frame):\n    return helper(frame)\n",
    ],
)
def test_a_name_of_its_own_is_not_the_modules(folder: Folder, use: str) -> None:
    before, after = (ONE_MODULE.format(number=number) + use for number in (1, 2))
    assert not change(folder, {"main": before}, {"main": after})


@pytest.mark.parametrize(
    ("edited", "by", "is_reached"),
    [
        ("    size = N\n", "    size = 7\n", True),
        ("class Base:", "class Base(dict):", True),
        ("class Heir(Base):", "class Heir(Base, dict):", True),
        ("        return frame\n\nclass Heir", "        return None\n\nclass Heir", True),
        ("def helper(frame):\n    return frame", "def helper(frame):\n    return 1", False),
        ("frame.head(count)", "frame.tail(count)", False),
    ],
)
def test_classes_count_with_bases_methods_and_attributes(
    folder: Folder, edited: str, by: str, is_reached: bool
) -> None:
    source = ONE_MODULE.format(number=1) + "def run(frame):\n    return Heir().method(frame)\n"
    assert edited in source
    changed = change(folder, {"main": source}, {"main": source.replace(edited, by)})
    assert changed is is_reached


def test_the_order_of_definitions_does_not_count_and_that_of_bindings_does(folder: Folder) -> None:
    a, b = "A = 1\n", "B = 2\n"
    use = "def run(frame):\n    return A + B\n"
    helper = "def helper():\n    return A\n"
    assert not change(folder, {"main": a + b + use}, {"main": use + b + a})
    assert not change(folder, {"main": a + helper + b + use}, {"main": helper + b + a + use})
    twice = "A = 1\n", "A = A + 1\n", "A = A * 2\n"
    before = "".join(twice) + b + use
    after = "".join((twice[0], twice[2], twice[1])) + b + use
    assert change(folder, {"main": before}, {"main": after})


# -- everywhere the same -----------------------------------------------------------------------

ELSEWHERE = """
import json, sys
from pipeline.config.settings import TransformSettings
from pipeline.runs.transforms.loading import fingerprint_of, load_transform
path, names = json.loads(sys.argv[1])
settings = TransformSettings(allow=("shop",), path=(path,))
before = [fingerprint_of(name, {"n": 2, "a": "ü"}, settings) for name in names]
assert not [name for name in sys.modules if name.startswith("shop")], "it was imported"
after = [load_transform(name, {"n": 2, "a": "ü"}, settings).fingerprint for name in names]
print(json.dumps([before, after]))
"""


def test_it_is_the_same_in_every_process_and_checkout(tmp_path: Path) -> None:
    source = ONE_MODULE.format(number=1)
    source += "NAMES = {'b', 'a', 'c'}\n\ndef run(frame, n, a):\n    assert n\n"
    source += "    return Heir().method(frame), NAMES, make, __name__\n"
    names = ["shop.main:run", "shop:run"]
    seen = set()
    for number, (flags, seed) in enumerate([((), "0"), (("-O",), "1"), (("-OO",), "random")]):
        folder = Folder(tmp_path / f"checkout {number}")
        folder.write({"main": source, "__init__": "from .main import run\n"})
        done = subprocess.run(
            [sys.executable, *flags, "-c", ELSEWHERE, json.dumps([str(folder.root), names])],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[3],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        before, after = json.loads(done.stdout)
        assert before == after
        seen.add(tuple(before))
    assert len(seen) == 1


def test_it_takes_milliseconds(folder: Folder) -> None:
    body = "".join(f"def f{n}(x):\n    return [x + {n} for _ in range({n})]\n" for n in range(300))
    used = " + ".join(f"f{n}(frame)" for n in range(0, 300, 10))
    folder.write({f"m{n}": body for n in range(5)})
    imports = "".join(f"from . import m{n}\n" for n in range(5))
    folder.write({"main": f"{imports}{body}def run(frame):\n    return {used}, m0.f1, m4.f2\n"})
    folder.of()
    seconds = []
    for _ in range(5):
        clock = time.process_time()
        folder.of()
        seconds.append(time.process_time() - clock)
    assert min(seconds) < 0.05


# -- runs of before ----------------------------------------------------------------------------


def test_another_scheme_is_not_other_code() -> None:
    said = explain_difference("shop.main:run", "0123456789abcdef", "v2-0123456789abcdef")
    assert "scheme v1" in said
    assert "cannot tell" in said
    assert "has changed since (" not in said
    assert "has changed since (" in explain_difference("x:y", "v2-0", "v2-1")


def test_resolve_says_what_it_could_not_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = f"module_{uuid.uuid4().hex}"
    (tmp_path / f"{name}.py").write_text("def run(frame):\n    return eval('frame')\n")
    found = load_transform(
        f"{name}:run", {}, TransformSettings(allow=(name,), path=(str(tmp_path),))
    )
    assert found.definitions == 1
    assert len(found.notes) == 1
    assert f"{name}: it uses eval (line 2)" in found.notes[0]
    sys.modules.pop(name)
