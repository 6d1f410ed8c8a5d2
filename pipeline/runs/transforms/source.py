"""Find modules without importing them, and cut their source into units."""

from __future__ import annotations

import ast
import hashlib
import importlib.machinery
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

from pipeline.errors import JobError
from pipeline.runs.transforms.canonical import canonical
from pipeline.runs.transforms.names import Binder, Path, Resolver, Usage, absolute

_BLOCKS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)


@dataclass(frozen=True, eq=False)
class Unit:
    """A top-level statement of a module, or one name of a top-level import.

    Attributes:
        position: Rank in the module.
        binds: Names of the module that it binds.
        imports: For each bound name that is imported, the paths that it may come from.
        statement: The statement; None for one name of an import.
        star: The module of a `from … import *`.
    """

    module: str
    is_package: bool
    position: int
    binds: frozenset[str]
    imports: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    statement: ast.stmt | None = None
    star: Path | None = None

    @cached_property
    def code(self) -> str:
        """Canonical text of the unit."""
        if self.star is not None:
            return f"from {'.'.join(self.star)} import *"
        if self.statement is None:
            return ";".join(
                f"{name}={'.'.join(path)}" for name in self.binds for path in self.imports[name]
            )
        return canonical(self.statement)

    @cached_property
    def usage(self) -> Usage:
        """What the unit uses."""
        if self.statement is None:
            return Usage()
        return Resolver(self.module, self.is_package).usage(self.statement)


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the parts of a statement that run when its module is imported."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, _BLOCKS):
            yield from at_import(child)


@dataclass(frozen=True, eq=False)
class Module:
    """The source of a module, as units."""

    name: str
    is_package: bool
    digest: str
    """Digest of the file's bytes."""
    units: tuple[Unit, ...]

    @cached_property
    def bindings(self) -> dict[str, tuple[Unit, ...]]:
        """Units that bind each name, in order."""
        bindings: dict[str, list[Unit]] = {}
        for unit in self.units:
            for name in unit.binds | unit.usage.rebinds:
                bindings.setdefault(name, []).append(unit)
        return {name: tuple(units) for name, units in bindings.items()}

    @cached_property
    def bound_once(self) -> frozenset[str]:
        """Names that are bound by one unit only."""
        counts = Counter(name for name, units in self.bindings.items() for _ in units)
        return frozenset(name for name, count in counts.items() if count == 1)

    @cached_property
    def imports(self) -> tuple[tuple[Path, bool], ...]:
        """Paths that its code imports, and whether only when a function is called."""
        imports: list[tuple[Path, bool]] = []
        for unit in self.units:
            if unit.star is not None:
                imports.append((unit.star, False))
            imports += [(path, False) for paths in unit.imports.values() for path in paths]
            imports += unit.usage.imported
        return tuple(dict.fromkeys(imports))


class Sources:
    """Finds and reads modules by name, each once."""

    def __init__(self) -> None:
        self._modules: dict[str, Module | None] = {}
        self._specs: dict[str, importlib.machinery.ModuleSpec | None] = {}

    def module(self, name: str) -> Module | None:
        """Return a module; None if it does not exist or has no Python source.

        Raises:
            JobError: the source is not valid Python.
        """
        if name not in self._modules:
            self._modules[name] = self._read(name)
        return self._modules[name]

    def spec(self, name: str) -> importlib.machinery.ModuleSpec | None:
        """Find a module with the finders of this process, without importing its parents."""
        if name not in self._specs:
            self._specs[name] = self._find(name)
        return self._specs[name]

    def _find(self, name: str) -> importlib.machinery.ModuleSpec | None:
        parent = name.rpartition(".")[0]
        where = self._folders(parent) if parent else None
        if parent and not where:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            try:
                spec = find(name, where) if find is not None else None
                if spec is not None and spec.submodule_search_locations is not None:
                    spec.submodule_search_locations = list(spec.submodule_search_locations)
            except KeyError:
                # For a package without __init__.py in another package, Python looks up the parent,
                # which is not imported yet.
                return self._namespace(name, where or sys.path)
            if spec is not None:
                return spec  # type: ignore[no-any-return]
        return None

    def _namespace(self, name: str, above: list[str]) -> importlib.machinery.ModuleSpec:
        folders = [os.path.join(folder, name.rpartition(".")[2]) for folder in above]
        spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [folder for folder in folders if os.path.isdir(folder)]
        return spec

    def _folders(self, name: str) -> list[str]:
        """Return the folders of a package; none if it is not a package."""
        spec = self.spec(name)
        return list((spec.submodule_search_locations if spec else None) or ())

    def below(self, name: str) -> Iterator[str]:
        """Yield the names of a package's modules, at all depths."""
        for folder in self._folders(name):
            for inner in _modules_in(folder):
                yield f"{name}.{inner}"
                yield from self.below(f"{name}.{inner}")

    def _read(self, name: str) -> Module | None:
        spec = self.spec(name)
        if spec is None:
            return None
        is_package = spec.submodule_search_locations is not None
        if spec.origin is None and is_package:
            return _parse(name, "", b"", True)  # A namespace package runs no code.
        if spec.origin is None or not spec.origin.endswith(".py"):
            return None
        get_data = getattr(spec.loader, "get_data", None)
        if get_data is None:
            return None
        file = spec.origin.replace("\\", "/").rpartition("/")[2]
        return _parse(name, file, get_data(spec.origin), is_package)


def _modules_in(folder: str) -> Iterable[str]:
    from pathlib import Path as Folder

    for path in sorted(Folder(folder).iterdir()) if Folder(folder).is_dir() else ():
        if path.suffix == ".py" and path.stem.isidentifier() and path.stem != "__init__":
            yield path.stem
        elif path.is_dir() and (path / "__init__.py").exists():
            yield path.name


@lru_cache(maxsize=1024)
def _parse(name: str, file: str, source: bytes, is_package: bool) -> Module:
    """Cut a module into units. Cached by its text, since a long-lived worker does it repeatedly."""
    try:
        tree = ast.parse(source)
        units = tuple(_units(tree.body, name, is_package))
        for unit in units:
            _ = unit.usage
    except SyntaxError as error:
        raise JobError(f"{file}, line {error.lineno}: {error.msg}") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise JobError(f"{file}: not Python that can be read: {error}") from error
    return Module(name, is_package, hashlib.sha256(source).hexdigest(), units)


def _units(body: Iterable[ast.stmt], name: str, is_package: bool) -> Iterator[Unit]:
    binder = Binder(name, is_package)
    for position, node in enumerate(_statements(body)):
        common = (name, is_package, position)
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
            yield Unit(*common, frozenset(), star=absolute(name, is_package, node))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            # One unit per name: adding a name to an import does not affect the others.
            for bound, paths in binder.bound([node]).imports.items():
                yield Unit(*common, frozenset({bound}), {bound: tuple(paths)})
            if isinstance(node, ast.Import):
                for alias in node.names:  # `import a.b` binds `a` alone, but runs `a.b` too.
                    whole = tuple(alias.name.split("."))
                    yield Unit(*common, frozenset(), {"": (whole,)})
        elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            bound_names = binder.bound([node])
            imports = {key: tuple(paths) for key, paths in bound_names.imports.items()}
            star = _inner_star(node, name, is_package)
            yield Unit(*common, frozenset(bound_names.names), imports, node, star)


def _inner_star(node: ast.stmt, name: str, is_package: bool) -> Path | None:
    for part in at_import(node):
        if isinstance(part, ast.ImportFrom) and part.names[0].name == "*":
            return absolute(name, is_package, part)
    return None


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield top-level statements, without blocks that never run at import."""
    for node in body:
        if isinstance(node, ast.If) and _never_runs(node.test):
            yield from _statements(node.orelse)
        else:
            yield node


def _never_runs(test: ast.expr) -> bool:
    """Whether a condition is `TYPE_CHECKING` or `__name__ == "__main__"`."""
    match test:
        case ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING"):
            return True
        case ast.Compare(
            left=ast.Name(id="__name__"),
            ops=[ast.Eq()],
            comparators=[ast.Constant(value="__main__")],
        ):
            return True
    return False
