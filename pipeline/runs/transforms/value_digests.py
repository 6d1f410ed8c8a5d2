"""Digest functions as they are in memory: code, constants, closures and what they refer to.

Equal digests mean the same results: the same cell of a notebook, run again, has the same one. Names
of local variables, line numbers and docstrings do not count.
"""

from __future__ import annotations

import builtins
import dis
import logging
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache, cached_property
from hashlib import sha256
from pathlib import Path
from types import (
    BuiltinFunctionType,
    CellType,
    CodeType,
    FunctionType,
    GenericAlias,
    MappingProxyType,
    MethodType,
    ModuleType,
)
from typing import Any

from pipeline.errors import JobError
from pipeline.own_packages import is_own
from pipeline.runs.transforms.user_code import describe

_GLOBALS = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL", "DELETE_GLOBAL"})
_IMPORTS = "IMPORT_NAME"
_LEFT_OUT = frozenset(
    {
        *("__dict__", "__weakref__", "__doc__", "__module__", "__firstlineno__"),
        *("__static_attributes__", "__abstractmethods__", "_abc_impl", "__annotations__"),
        *("__annotate__", "__annotate_func__", "__annotations_cache__"),
    }
)
"""Attributes of a class that say nothing about what it does."""
_CONSTANTS = (type(None), type(Ellipsis), type(NotImplemented), bool, int, float, complex, str)


class ValueDigests:
    """Digests of what some functions reach, one per definition or value with a name."""

    def __init__(self, job_name: str) -> None:
        """Start with nothing reached.

        Args:
            job_name: Name of the function in the job, for errors.
        """
        self.digests: dict[str, str] = {}
        self.modules: set[str] = set()
        """Modules of the user's own that are reached."""
        self.packages: set[str] = set()
        """Top-level names of the libraries that are reached."""
        self._name = job_name
        self._keys: dict[int, str] = {}
        """Keys of functions, classes and modules by their ids."""
        self._kept: list[Any] = []
        """Keeps what has a key alive, so that no other object gets its id."""
        self._active: dict[int, int] = {}
        """Depth of the values that are being digested, by their ids."""
        self._place: list[str] = []

    def add(self, function: Any) -> None:
        """Digest a function, or another callable, and what it reaches.

        Raises:
            JobError: It uses a value that cannot be sent.
        """
        digest = self._value(function)
        if not isinstance(function, FunctionType):
            self.digests[f"{self._name} (object)"] = digest

    # -- values ----------------------------------------------------------------------------

    def _value(self, value: Any) -> str:
        if isinstance(value, _CONSTANTS):
            return _digest(type(value).__name__, repr(value))
        if isinstance(value, bytes | bytearray | memoryview):
            return _digest(type(value).__name__, sha256(value).hexdigest())
        if isinstance(value, FunctionType | type | ModuleType | GenericAlias):
            return self._definition(value)
        if isinstance(value, CodeType):
            return _digest("code", *self._code(value))
        if id(value) in self._active:
            return _digest("cycle", str(self._active[id(value)]))
        self._active[id(value)] = len(self._active)
        try:
            return self._inner(value)
        finally:
            del self._active[id(value)]

    def _inner(self, value: Any) -> str:
        kind = type(value)
        if kind in (list, tuple):
            return _digest(kind.__name__, *map(self._value, value))
        if kind in (set, frozenset):
            return _digest(kind.__name__, *sorted(map(self._value, value)))
        if kind is dict:
            pairs = (self._value(part) for pair in value.items() for part in pair)
            return _digest("dict", *pairs)
        if kind is CellType:
            return _digest("cell", *self._cell(value))
        if kind is MethodType:
            return _digest("method", self._value(value.__func__), self._value(value.__self__))
        if kind is MappingProxyType:
            return self._inner(dict(value))
        if kind in (property, staticmethod, classmethod, cached_property):
            names = ("fget", "fset", "fdel", "__func__", "func")
            parts = (getattr(value, name, None) for name in names)
            return _digest(kind.__name__, *map(self._value, parts))
        if isinstance(value, logging.Logger):
            return _digest("logger", value.name)
        wrapped = getattr(value, "__wrapped__", None)
        if isinstance(wrapped, FunctionType):
            return _digest("wrapper", kind.__qualname__, self._definition(wrapped))
        return self._reduced(value)

    def _cell(self, cell: CellType) -> Iterator[str]:
        try:
            yield self._value(cell.cell_contents)
        except ValueError:
            yield "empty"

    def _reduced(self, value: Any) -> str:
        """Digest an object by what it is pickled as."""
        try:
            reduced = value.__reduce_ex__(4)
        except Exception:
            return self._pickled(value)
        if isinstance(reduced, str):
            self._note_library(getattr(value, "__module__", None) or type(value).__module__)
            return _digest("name", getattr(value, "__module__", None) or "", reduced)
        make, arguments, *rest = reduced
        parts = [self._value(make), *map(self._value, arguments)]
        for position, part in enumerate(rest):
            # Further items come as iterators: those of a list, then those of a dict.
            is_items = position in (1, 2) and part is not None
            parts.append(self._value(list(part) if is_items else part))
        return _digest("object", *parts)

    def _pickled(self, value: Any) -> str:
        import cloudpickle

        try:
            return _digest("pickled", sha256(cloudpickle.dumps(value)).hexdigest())
        except Exception as error:
            raise JobError(
                f"{self._name} uses {self._describe(value)}, which cannot be sent to workers: "
                f"{describe(error)}",
                hint="make connections, locks and files inside the function; pass what it needs "
                "as params",
            ) from error

    def _describe(self, value: Any) -> str:
        kind = f"a {type(value).__module__}.{type(value).__qualname__}"
        return f"{kind} ({self._place[-1]})" if self._place else kind

    # -- definitions -----------------------------------------------------------------------

    def _definition(self, value: Any) -> str:
        """Digest a function, class or module by its name, and what it is under that name."""
        if isinstance(value, GenericAlias):
            return _digest(
                "alias", self._value(value.__origin__), *map(self._value, value.__args__)
            )
        is_module = isinstance(value, ModuleType)
        module = (value.__name__ if is_module else value.__module__) or "__main__"
        name = "" if is_module else value.__qualname__
        if not _is_users(module):
            self._note_library(module)
            return _digest("library", module, name)
        key = self._keys.get(id(value))
        if key is None:
            key = self._new_key(value, f"{module}:{name}")
            self.modules.add(module)
            with self._at(key):
                self.digests[key] = _digest(*self._parts(value, key))
        return _digest("definition", key)

    def _new_key(self, value: Any, base: str) -> str:
        key, number = base, 1
        while key in self.digests:
            number += 1
            key = f"{base} ({number})"
        self._keys[id(value)] = key
        self._kept.append(value)
        self.digests[key] = ""  # The key is taken.
        return key

    def _parts(self, value: Any, key: str) -> Iterable[str]:
        if isinstance(value, FunctionType):
            return self._function(value)
        attributes = vars(value)
        names = [name for name in attributes if name not in _LEFT_OUT]
        if isinstance(value, ModuleType):
            names = [name for name in names if not name.startswith("__")]
        own = (self._named(name, attributes[name]) for name in sorted(names))
        if isinstance(value, ModuleType):
            return ["module", *own]
        meta = type(value)
        return ["class", self._value(meta), *map(self._value, value.__bases__), *own]

    def _named(self, name: str, value: Any) -> str:
        with self._at(name):
            return _digest(name, self._value(value))

    def _function(self, function: FunctionType) -> Iterator[str]:
        code = function.__code__
        yield "function"
        yield from self._code(code)
        yield self._value(function.__defaults__)
        yield self._value(function.__kwdefaults__)
        yield self._value(function.__dict__)
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            yield self._named(name, cell)
        for name in sorted(set(_global_names(code))):
            yield self._global(name, function)

    def _global(self, name: str, function: FunctionType) -> str:
        values = function.__globals__
        if name not in values:
            return _digest("builtin" if hasattr(builtins, name) else "missing", name)
        value = values[name]
        if isinstance(value, FunctionType | type | ModuleType | BuiltinFunctionType):
            return self._named(name, value)
        # Under a name of its own, so that a changed value can be named.
        key = f"{function.__module__}:{name}"
        if key not in self.digests:
            self.digests[key] = ""
            with self._at(name):
                self.digests[key] = self._value(value)
        return _digest("global", key)

    def _code(self, code: CodeType) -> Iterator[str]:
        """Yield what a code object does, without names of local variables and positions."""
        flags = code.co_flags
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, flags)
        yield repr(counts)
        yield repr(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
        for instruction in dis.get_instructions(code):
            if instruction.opcode in dis.hasconst:
                yield _digest(instruction.opname, self._value(instruction.argval))
            elif instruction.opcode in dis.hasname or instruction.opcode in dis.hasfree:
                yield _digest(instruction.opname, str(instruction.argval))
                if instruction.opname == _IMPORTS:
                    self._note_library(str(instruction.argval))
            else:
                yield f"{instruction.opname} {instruction.arg}"
        yield sha256(code.co_exceptiontable).hexdigest()

    @contextmanager
    def _at(self, place: str) -> Iterator[None]:
        self._place.append(place)
        try:
            yield
        finally:
            self._place.pop()

    def _note_library(self, module: str | None) -> None:
        top = (module or "").partition(".")[0]
        if top and top not in sys.stdlib_module_names and not is_own(top) and not _is_users(top):
            self.packages.add(top)


def _digest(*parts: str) -> str:
    """Digest some texts; where one ends and the next begins counts."""
    text = "".join(f"{len(part)}:{part}" for part in parts)
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _global_names(code: CodeType) -> Iterator[str]:
    """Yield the names of a module that code uses, also in the functions that it defines."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in _GLOBALS:
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _global_names(constant)


def _is_users(module: str | None) -> bool:
    """Whether a module is the user's own, whose code is sent: no library, and none of ours."""
    if module is None or module == "__main__":
        return True
    return _is_users_module(module, sys.modules.get(module))


@cache
def _libraries() -> tuple[Path, ...]:
    paths = sysconfig.get_paths()
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    return tuple({Path(paths[name]).resolve() for name in names})


def _is_users_module(name: str, module: ModuleType | None) -> bool:
    top = name.partition(".")[0]
    if is_own(top) or top in sys.stdlib_module_names or top in sys.builtin_module_names:
        return False
    file = getattr(module, "__file__", None)
    if module is None or file is None:
        # A namespace package is a user's if its folder is; a module made at run time is.
        places = list(getattr(module, "__path__", ()))
        file = places[0] if places else None
        if file is None:
            return module is not None and getattr(module, "__spec__", None) is None
    path = Path(file).resolve()
    if path.suffix not in ("", ".py", ".ipynb"):
        return False  # Compiled code is imported.
    is_library = any(path.is_relative_to(folder) for folder in _libraries())
    return not (is_library or {"site-packages", "dist-packages"} & set(path.parts))
