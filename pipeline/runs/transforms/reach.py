"""Find the code that a function reaches: definitions and constants of allowed modules.

A definition is reached if the function, or a reached definition, names it. Effects of importing
these modules count too: statements for their effect, registrations, and changes of a reached
container. The parent packages of a module run when it is imported, so their code counts as a whole.
Where names do not show what is used (`eval`, modules that are passed as values or imported by
name), whole modules count, and a note says so.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from pipeline.errors import JobError
from pipeline.runs.transforms.effects import has_effect, holds_state, is_harmless
from pipeline.runs.transforms.names import DYNAMIC_NAMES, Path
from pipeline.runs.transforms.source import Module, Sources, Unit

_IMPORTS_BY_NAME: tuple[Path, ...] = (
    ("importlib", "import_module"),
    ("importlib", "machinery"),
    ("importlib", "reload"),
    ("importlib", "util"),
    ("pkgutil",),
    ("runpy",),
    ("sys", "modules"),
)
_BUILTINS = ("builtins",)


def allows(allow: Sequence[str], module: str) -> bool:
    """Whether a module is allowed, or inside an allowed package."""
    return any(module == name or module.startswith(name + ".") for name in allow)


@dataclass(frozen=True, slots=True)
class Reached:
    """The code that a function reaches.

    Attributes:
        code: Canonical texts by module, in order where order matters.
        definitions: Number of top-level definitions and statements.
        notes: Notes on what could not be resolved, and what counts instead.
        digests: Digest of each definition, by module and name, such as `jobs.prices:euros`.
    """

    code: dict[str, dict[str, list[str]]]
    definitions: int
    notes: tuple[str, ...]
    digests: dict[str, str]


class Reach:
    """Follows names from module to module."""

    def __init__(self, sources: Sources, allow: Sequence[str], *, effects: bool = True) -> None:
        """Start with nothing reached.

        Args:
            sources: Finder of modules.
            allow: Allowed modules and packages.
            effects: Whether effects of importing modules count too.
        """
        self.units: dict[Unit, Module] = {}
        self._sources, self._allow, self._effects = sources, tuple(allow), effects
        self._named: dict[tuple[str, Path], bool] = {}
        self._imported: dict[str, Module] = {}
        self._whole: set[str] = set()
        self._touched: dict[Unit, dict[Unit, Module]] = {}
        self._notes: dict[str, None] = {}
        self._pending: list[Callable[[], None]] = []

    def function(self, module: Module, name: str) -> None:
        """Follow a function of a module; if its name is not bound, the whole module counts."""
        self._import(module.name)
        if not self._name(module, (name,)):
            self._count_whole(module)
        self._follow()
        while self._reach_changes():
            self._follow()

    def result(self) -> Reached:
        """Return the code reached so far."""
        by_module: dict[Module, list[Unit]] = {}
        for unit, module in self.units.items():
            by_module.setdefault(module, []).append(unit)
        code: dict[str, dict[str, list[str]]] = {}
        for module, units in by_module.items():
            ordered = sorted(units, key=lambda unit: unit.position)
            free = {unit for unit in units if self._is_free(unit, module)}
            code[module.name] = {
                "ordered": [unit.code for unit in ordered if unit not in free],
                "any": sorted(unit.code for unit in free),
            }
        parents = {parent for module in by_module for parent in _parents(module.name)}
        whole: dict[Module, list[Unit]] = {}
        for parent in sorted(parents):
            package = self._sources.module(parent)
            if package is not None:
                whole[package] = [unit for unit in package.units if unit.code]
                code[parent] = {"whole": [unit.code for unit in whole[package]]}
        digests = _digests({**by_module, **whole})
        return Reached(code, len(self.units), tuple(self._notes), digests)

    def _follow(self) -> None:
        """Run pending work, without recursion: chains of calls may exceed Python's stack."""
        while self._pending:
            self._pending.pop()()

    # -- names and paths ---------------------------------------------------------------------

    def _name(self, module: Module, path: Path) -> bool:
        """Reach what a module's name with attributes refers to; return whether it is bound."""
        key = (module.name, path)
        if key in self._named:
            return self._named[key]
        name, attributes = path[0], path[1:]
        units = module.bindings.get(name, ())
        self._named[key] = bool(units)
        for unit in units:
            self._reach(unit, module)
            for target in unit.imports.get(name, ()):
                self._path((*target, *attributes), module)
        is_bound = self._starred(module, path) or bool(units)
        if not is_bound and ("__getattr__" in module.bindings or name == "__dict__"):
            self._note(module, f"`{name}` is found at run time")
            self._count_whole(module)
        self._named[key] = is_bound
        return is_bound

    def _starred(self, module: Module, path: Path) -> bool:
        """Search for a name in what a module imports with `*`."""
        is_bound = False
        for unit in module.units:
            if unit.star is None:
                continue
            source = self._at(unit.star)
            if source is None:
                if path[0] not in module.bindings and not hasattr(builtins, path[0]):
                    self._reach(unit, module)  # It may be the library's.
            elif _is_exported(path[0], source) and self._name(source, path):
                self._reach(unit, module)
                self._name(source, ("__all__",))
                is_bound = True
        return is_bound

    def _path(self, path: Path, user: Module) -> None:
        """Reach what an absolute path refers to: a module, or a name in one."""
        if not self._is_ours(path[0]):
            self._library(path, user)
            return
        module: Module | None = self._sources.module(path[0])
        rest = path[1:]
        while module is not None:
            self._import(module.name)
            if not rest:
                if allows(self._allow, module.name):
                    self._note(user, f"module {module.name} is used as a value")
                    self._count_whole(module)
                return
            below = self._below(module, rest[0])
            if allows(self._allow, module.name) and (below is None or rest[0] in module.bindings):
                self._name(module, rest)
            module, rest = below, rest[1:]

    def _at(self, path: Path) -> Module | None:
        """Return the allowed module at a path, if there is one."""
        return self._sources.module(".".join(path)) if path and self._is_ours(path[0]) else None

    def _below(self, module: Module, name: str) -> Module | None:
        inner = f"{module.name}.{name}"
        if not module.is_package or not self._is_ours(inner):
            return None
        return self._sources.module(inner)

    def _is_ours(self, module: str) -> bool:
        """Whether a module is allowed, or a parent of one that is."""
        return allows(self._allow, module) or any(
            name.startswith(module + ".") for name in self._allow
        )

    def _library(self, path: Path, user: Module) -> None:
        if any(path[: len(known)] == known for known in _IMPORTS_BY_NAME) or path == ("importlib",):
            self._cannot_tell(user, ".".join(path), by_name=True)
        elif path[:1] == _BUILTINS and path[1:2] and path[1] in DYNAMIC_NAMES:
            self._cannot_tell(user, path[1], by_name=path[1] == "__import__")

    # -- units -------------------------------------------------------------------------------

    def _reach(self, unit: Unit, module: Module) -> None:
        if unit in self.units:
            return
        self.units[unit] = module
        self._pending.append(partial(self._use, unit, module))

    def _use(self, unit: Unit, module: Module) -> None:
        self._import(module.name)
        usage = unit.usage
        for path, _ in usage.imported:
            self._import_path(path)
        for reference in usage.references:
            if reference.is_import:
                self._path(reference.path, module)
            else:
                self._name(module, reference.path)
        for line, name in usage.dynamic:
            if name not in module.bindings:
                self._cannot_tell(module, f"{name} (line {line})", by_name=name == "__import__")

    def _cannot_tell(self, module: Module, what: str, *, by_name: bool) -> None:
        """Count whole modules, because names do not show what is used."""
        self._note(module, f"it uses {what}")
        self._count_whole(module)
        package = next(
            (name for name in (*_parents(module.name), module.name) if allows(self._allow, name)),
            module.name,
        )
        for name in self._sources.below(package) if by_name else ():
            try:
                inner = self._sources.module(name)
            except JobError:
                continue  # It cannot be imported either.
            if inner is not None:
                self._count_whole(inner)

    def _count_whole(self, module: Module) -> None:
        if module.name in self._whole:
            return
        self._whole.add(module.name)
        self._import(module.name)
        for unit in module.units:
            self._reach(unit, module)
            for name in unit.imports:
                if name:
                    self._name(module, (name,))

    def _note(self, module: Module, why: str) -> None:
        self._notes[f"{module.name}: {why}, so every change of the modules concerned counts"] = None

    # -- what importing does -----------------------------------------------------------------

    def _import(self, name: str) -> None:
        """Count the effects of importing a module."""
        if name in self._imported or not self._effects:
            return
        module = self._sources.module(name)
        if module is None:
            return
        self._imported[name] = module
        self._pending.append(partial(self._run, module))

    def _run(self, module: Module) -> None:
        for parent in _parents(module.name):
            self._import(parent)
        for unit in module.units:
            if has_effect(unit, module):
                self._reach(unit, module)
        for path, is_deferred in module.imports:
            if not is_deferred:
                self._import_path(path)

    def _import_path(self, path: Path) -> None:
        for depth in range(1, len(path) + 1):
            name = ".".join(path[:depth])
            if not self._is_ours(name) or self._sources.module(name) is None:
                return
            self._import(name)

    def _reach_changes(self) -> bool:
        """Reach units that change a reached container at import; return whether there are any."""
        state = {unit for unit, module in self.units.items() if holds_state(unit, module)}
        before = len(self.units)
        for module in list(self._imported.values()):
            for unit in module.units:
                if unit in self.units or unit.statement is None:
                    continue
                stored = any(
                    binder in self.units
                    for name in unit.usage.stores
                    for binder in module.bindings.get(name, ())
                )
                if stored or (state and not state.isdisjoint(self._touches(unit, module))):
                    self._reach(unit, module)
        return len(self.units) > before

    def _touches(self, unit: Unit, module: Module) -> dict[Unit, Module]:
        """Return all units that a unit passes to code that runs at import."""
        if unit not in self._touched:
            inner = Reach(self._sources, self._allow, effects=False)
            for reference in unit.usage.references:
                if all(is_harmless(callee, module) for callee in reference.callees):
                    continue
                if reference.is_import:
                    inner._path(reference.path, module)
                else:
                    inner._name(module, reference.path)
            inner._follow()
            self._touched[unit] = inner.units
        return self._touched[unit]

    @staticmethod
    def _is_free(unit: Unit, module: Module) -> bool:
        """Whether the position of a unit in its module does not matter."""
        if not unit.binds <= module.bound_once or unit.usage.stores or unit.star is not None:
            return False
        node = unit.statement
        if isinstance(node, ast.Assign | ast.AnnAssign):
            return not unit.usage.calls and not holds_state(unit, module)
        plain = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
        return node is None or (isinstance(node, plain) and not has_effect(unit, module))


def _digests(by_module: Mapping[Module, Sequence[Unit]]) -> dict[str, str]:
    """Hash the code under each name of each module; statements without a name count together."""
    texts: dict[str, list[str]] = {}
    for module, units in by_module.items():
        for unit in sorted(units, key=lambda unit: unit.position):
            name = ", ".join(sorted(unit.binds)) or "its top level"
            texts.setdefault(f"{module.name}:{name}", []).append(unit.code)
    return {
        name: hashlib.sha256("\n".join(codes).encode()).hexdigest()[:16]
        for name, codes in sorted(texts.items())
    }


def _parents(name: str) -> Iterator[str]:
    """Yield the parent packages of a module, outermost first."""
    parts = name.split(".")
    return (".".join(parts[:depth]) for depth in range(1, len(parts)))


def _is_exported(name: str, module: Module) -> bool:
    """Whether `from module import *` may bind a name."""
    return not name.startswith("_") or "__all__" in module.bindings
