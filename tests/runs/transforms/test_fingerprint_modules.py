"""Fingerprints: other modules, what importing does, and what cannot be told."""

from __future__ import annotations

import pytest

from pipeline.errors import JobError
from tests.support.sources import ONE_MODULE, RUN, Folder, change

# -- what importing does -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "edited"),
    [
        ("KNOWN['a'] = 1\n", "KNOWN['a'] = 2\n"),
        ("KNOWN.update(a=1)\n", "KNOWN.update(a=2)\n"),
        ("for a in (1, 2):\n    KNOWN[a] = 1\n", "for a in (1, 3):\n    KNOWN[a] = 1\n"),
        ("known = KNOWN.setdefault('a', 1)\n", "known = KNOWN.setdefault('a', 2)\n"),
        ("@add\ndef a(frame):\n    return 1\n", "@add\ndef a(frame):\n    return 2\n"),
        ("@add_named(1)\ndef a(f):\n    return 1\n", "@add_named(1)\ndef a(f):\n    return 2\n"),
        ("a = add(lambda frame: 1)\n", "a = add(lambda frame: 2)\n"),
        ("class A(Base):\n    n = 1\n", "class A(Base):\n    n = 2\n"),
        ("import polars as pl\npl.Config.set_fmt_str_lengths(1)\n",
         "import polars as pl\npl.Config.set_fmt_str_lengths(2)\n"),
        ("import polars as pl\n@pl.api.register_expr_namespace('x')\nclass X:\n    n = 1\n",
         "import polars as pl\n@pl.api.register_expr_namespace('x')\nclass X:\n    n = 2\n"),
        ("import os\nos.environ['A'] = '1'\n", "import os\nos.environ['A'] = '2'\n"),
        ("KNOWN |= {'a': 1}\n", "KNOWN |= {'a': 2}\n"),
        ("del KNOWN['a']\n", "del KNOWN['b']\n"),
    ],
)  # fmt: skip
def test_what_importing_changes_counts(folder: Folder, statement: str, edited: str) -> None:
    registry = (
        "KNOWN = {}\n\n"
        "def add(function):\n    KNOWN[function.__name__] = function\n    return function\n\n"
        "def add_named(name):\n    return add\n\n"
        "class Base:\n    def __init_subclass__(cls):\n        KNOWN[cls.__name__] = cls\n\n"
        "def run(frame):\n    return KNOWN['a'](frame)\n\n"
    )
    before = {"main": registry + statement}
    if "add_named" in statement:
        before["main"] = before["main"].replace("    return add\n", "    return lambda f: add(f)\n")
    after = {"main": before["main"].replace(statement, edited)}
    assert change(folder, before, after)


@pytest.mark.parametrize(
    ("statement", "edited"),
    [
        ("OTHER = {}\nOTHER['a'] = 1\n", "OTHER = {}\nOTHER['a'] = 2\n"),
        ("@timed\ndef a(frame):\n    return 1\n", "@timed\ndef a(frame):\n    return 2\n"),
        ("import functools\n@functools.lru_cache\ndef a():\n    return 1\n",
         "import functools\n@functools.lru_cache\ndef a():\n    return 2\n"),
        ("A = KNOWN['a'] + 1\n", "A = KNOWN['a'] + 2\n"),
        ("A = KNOWN.get('a', 1)\n", "A = KNOWN.get('a', 2)\n"),
        ("import polars as pl\nA = pl.col(list(KNOWN)).is_in([1])\n",
         "import polars as pl\nA = pl.col(list(KNOWN)).is_in([2])\n"),
        ("class A(Plain):\n    n = 1\n", "class A(Plain):\n    n = 2\n"),
    ],
)  # fmt: skip
def test_what_importing_only_reads_does_not_count(
    folder: Folder, statement: str, edited: str
) -> None:
    source = (
        "import time\n\nKNOWN = {'a': 1}\n\nclass Plain:\n    pass\n\n"
        "def timed(function):\n    print(time.time())\n    return function\n\n"
        "@timed\ndef run(frame):\n    return KNOWN, Plain\n\n"
    )
    assert not change(folder, {"main": source + statement}, {"main": source + edited})


def test_modules_that_are_imported_for_their_effect_count(folder: Folder) -> None:
    main = "from . import setting  # for its effect\n" + RUN
    effect = "import polars as pl\npl.Config.set_tbl_rows({})\nunused = {}\n"
    assert change(
        folder,
        {"main": main, "setting": effect.format(1, 1)},
        {"setting": effect.format(2, 1)},
    )
    assert not change(folder, {"main": main}, {"setting": effect.format(2, 2)})


# -- other modules -----------------------------------------------------------------------------

IMPORTS = [
    ("from shop.helper import N", "N"),
    ("from shop.helper import N as M", "M"),
    ("from .helper import N", "N"),
    ("from . import helper", "helper.N"),
    ("from shop import helper as z", "z.N"),
    ("import shop.helper", "shop.helper.N"),
    ("import shop.helper as z", "z.N"),
    ("from .middle import N", "N"),
    ("from .middle import helper", "helper.N"),
    ("from . import middle", "middle.helper.N"),
    ("from .starred import N", "N"),
    ("from .starred import *", "N"),
    ("from .helper import *", "N"),
    ("try:\n    from .helper import N\nexcept ImportError:\n    N = 3", "N"),
]


@pytest.mark.parametrize(
    ("where", "statement", "use"),
    [
        (where, statement, use)
        for statement, use in IMPORTS
        for where in ("module", "function", "default")
        if where != "function" or "*" not in statement
    ],
)
def test_names_of_other_modules(folder: Folder, where: str, statement: str, use: str) -> None:
    if where == "function":
        inside = "\n".join(f"    {line}" for line in statement.splitlines())
        main = f"def run(frame):\n{inside}\n    return frame.head({use})\n"
    elif where == "module":
        main = f"{statement}\n\ndef run(frame):\n    return frame.head({use})\n"
    else:
        main = f"{statement}\n\ndef run(frame, n={use}):\n    return frame.head(n)\n"
    modules = {
        "helper": "N = 1\nM = 1\n",
        "middle": "from . import helper\nfrom .helper import N\nM = 1\n",
        "starred": "from .helper import *\n",
        "unrelated": "N = 1\n",
        "main": main,
    }
    folder.write(modules)
    assert not change(folder, modules, {"unrelated": "N = 2\n"})
    assert not change(folder, modules, {"helper": "N = 1\nM = 2\n"})
    assert not change(folder, modules, {"middle": modules["middle"].replace("M = 1", "M = 2")})
    assert change(folder, modules, {"helper": "N = 2\nM = 1\n"})


def test_an_allowed_module_that_is_imported_from_another_package(folder: Folder) -> None:
    (folder.root / "tools.py").write_text("N = 1\n")
    folder.write({"main": "import tools\n\ndef run(frame):\n    return tools.N\n"})
    alone, both = folder.of(), folder.of("shop", "tools")
    (folder.root / "tools.py").write_text("N = 2\n")
    assert folder.of() == alone  # a library
    assert folder.of("shop", "tools") != both


def test_where_a_name_is_imported_from_counts(folder: Folder) -> None:
    use = "\ndef run(frame):\n    return f(frame)\n"
    assert change(
        folder,
        {"main": "from math import sin as f" + use},
        {"main": "from math import cos as f" + use},
    )


def test_parent_packages_count_as_a_whole(folder: Folder) -> None:
    main = {"main": RUN}
    assert change(folder, main | {"__init__": ""}, {"__init__": "import polars\n"})
    assert not change(folder, main | {"__init__": ""}, {"__init__": '"""What it is for."""\n'})
    exported = {"__init__": "from .main import run\nfrom .other import thing\n"}
    assert not change(folder, main | exported | {"other": "thing = 1\n"}, {"other": "thing = 2\n"})
    called = {"__init__": "from .other import setup\nsetup()\n"}
    setup = "def setup():\n    return {}\n"
    assert change(folder, main | called | {"other": setup.format(1)}, {"other": setup.format(2)})


def test_a_function_in_a_package_itself(folder: Folder) -> None:
    for edited, changes in ((RUN.replace("head", "tail"), True), (RUN + "M = 1\n", False)):
        folder.write({"__init__": RUN})
        before = folder.of(name="shop:run")
        folder.write({"__init__": edited})
        assert (folder.of(name="shop:run") != before) is changes


def test_modules_that_import_each_other(folder: Folder) -> None:
    modules = {
        "main": "from . import helper\nN = 1\n\ndef run(frame):\n    return helper.helped(frame)\n",
        "helper": "from . import main\n\ndef helped(frame):\n    return frame.head(main.N)\n",
    }
    assert change(folder, modules, {"main": modules["main"].replace("N = 1", "N = 2")})


def test_long_chains_of_helpers_and_modules(folder: Folder) -> None:
    chain = "".join(f"def f{n}(x):\n    return f{n + 1}(x)\n" for n in range(1500))
    modules = {f"m{n}": f"from . import m{n + 1}\nN = m{n + 1}.N\n" for n in range(300)}
    modules |= {"m300": "N = 1\n"}
    main = "from . import m0\n" + chain + "def f1500(x):\n    return {}\nrun = f0\n"
    modules |= {"main": main.format("m0.N")}
    assert change(folder, modules, {"m300": "N = 2\n"})
    assert change(folder, modules, {"main": main.format("m0.N + 1")})


# -- what cannot be told -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def run(frame):\n    return eval('N')\n", "eval"),
        ("def run(frame):\n    exec('M = N')\n", "exec"),
        ("def run(frame):\n    return globals()['N']\n", "globals"),
        ("import sys\n\ndef run(frame):\n    return sys.modules[__name__].N\n", "sys.modules"),
        ("import importlib\n\ndef run(f):\n    return importlib.import_module('shop.main').N\n",
         "importlib.import_module"),
        ("from importlib import import_module as load\n\ndef run(f):\n    return load('x')\n",
         "importlib.import_module"),
        ("def run(frame):\n    return __import__('shop.main').main.N\n", "__import__"),
        ("from . import helper\n\ndef run(f):\n    return helper.other(f).__globals__\n",
         "__globals__"),
    ],
)  # fmt: skip
def test_what_cannot_be_told_makes_the_module_count(folder: Folder, source: str, said: str) -> None:
    folder.write({"helper": "def other(f):\n    return f\n", "main": f"N = 1\n{source}"})
    before = folder.of()
    assert any(said in note for note in _notes(folder))
    folder.write({"main": f"N = 2\n{source}"})
    assert folder.of() != before


def test_modules_that_are_imported_by_name_count(folder: Folder) -> None:
    main = "from importlib import import_module\n\ndef run(f, of='a'):\n    "
    main += "return import_module(f'shop.plugins.{of}').run(f)\n"
    modules = {"main": main, "plugins/__init__": "", "plugins/a": "N = 1\n", "broken": "def\n"}
    (folder.root / "shop" / "plugins").mkdir()
    assert change(folder, modules, {"plugins/a": "N = 2\n"})


def test_a_module_that_is_passed_around_counts(folder: Folder) -> None:
    helper = "N = 1\nM = {}\n"
    for use in ("getattr(helper, name)", "vars(helper)", "dict(x=helper)", "helper.__dict__"):
        main = f"from . import helper\n\ndef run(frame, name='N'):\n    return {use}\n"
        assert change(
            folder, {"main": main, "helper": helper.format(1)}, {"helper": helper.format(2)}
        )
        assert any("shop.helper" in note for note in _notes(folder))


def test_a_module_that_finds_names_itself_counts(folder: Folder) -> None:
    helper = "_N = {}\n\ndef __getattr__(name):\n    return globals()['_' + name]\n"
    main = "from .helper import N\n\ndef run(frame):\n    return N\n"
    assert change(folder, {"main": main, "helper": helper.format(1)}, {"helper": helper.format(2)})


def test_heirs_that_are_looked_up_count(folder: Folder) -> None:
    main = "class Base:\n    pass\n\nclass A(Base):\n    n = {}\n\n"
    main += "def run(frame):\n    return Base.__subclasses__()[0].n\n"
    assert change(folder, {"main": main.format(1)}, {"main": main.format(2)})


def test_nothing_is_noted_of_an_ordinary_module(folder: Folder) -> None:
    folder.write({"main": ONE_MODULE.format(number=1) + RUN})
    assert _notes(folder) == ()


def _notes(folder: Folder) -> tuple[str, ...]:
    from pipeline.runs.transforms.loading import _read

    return _read("shop.main:run", folder.settings())[0].notes


@pytest.mark.parametrize("source", [b"def run(frame:\n", b"\0", b"# coding: nonsense\n", b"\xff"])
def test_what_is_not_python(folder: Folder, source: bytes) -> None:
    (folder.root / "shop" / "main.py").write_bytes(source)
    with pytest.raises(JobError, match=r"main\.py"):
        folder.of()
