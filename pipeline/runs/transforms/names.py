"""Resolve the names in a statement by Python's rules of scope."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

Path = tuple[str, ...]
"""A dotted path, such as `("examples", "tpch", "LINE")`."""

DYNAMIC_NAMES = frozenset({"eval", "exec", "globals", "__import__"})
"""Builtins that may reach names which are not in the source."""
DYNAMIC_ATTRIBUTES = frozenset({"__globals__", "__builtins__", "__subclasses__"})
READ_ONLY_METHODS = frozenset({"get", "keys", "values", "items", "copy", "index", "count"})
"""Methods of containers that do not change them."""
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(frozen=True, slots=True)
class Reference:
    """A use of a name of the module, or of something that a function imports locally."""

    path: Path
    """Name and following attributes; for an import, the absolute path."""
    is_import: bool = False
    callees: tuple[Path, ...] = ()
    """Functions that it is called as or passed to at import, which may change the object."""


@dataclass(slots=True)
class Bound:
    """Names that a block binds."""

    names: set[str] = field(default_factory=set)
    imports: dict[str, list[Path]] = field(default_factory=dict)
    """Paths that names are imported from."""
    declared_global: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Usage:
    """The names that a statement uses, and what it does with them at import."""

    references: list[Reference] = field(default_factory=list)
    imported: list[tuple[Path, bool]] = field(default_factory=list)
    """Modules that it imports, and whether only when a function is called."""
    rebinds: set[str] = field(default_factory=set)
    """Module names that its functions assign to (`global`)."""
    stores: set[str] = field(default_factory=set)
    """Names whose attributes or items it assigns to at import."""
    calls: list[Path] = field(default_factory=list)
    """Named functions that it calls at import."""
    dynamic: list[tuple[int, str]] = field(default_factory=list)
    """Line and name of uses that cannot be resolved from the source."""
    has_expressions: bool = False
    """Whether it has expression statements, which run at import for their effect."""


def absolute(module: str, is_package: bool, node: ast.ImportFrom) -> Path:
    """Return the module that a `from … import` names."""
    base = tuple(node.module.split(".")) if node.module else ()
    if not node.level:
        return base
    parts = module.split(".")
    kept = len(parts) - node.level + (1 if is_package else 0)
    return (*parts[: max(kept, 0)], *base)


def callee_of(node: ast.expr) -> Path:
    """Return `("a", "b", "c")` for `a.b(1).c`; empty if it does not begin with a name."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute | ast.Call | ast.Subscript):
        if isinstance(node, ast.Attribute):
            parts.append(node.attr)
        node = node.func if isinstance(node, ast.Call) else node.value
    return (node.id, *reversed(parts)) if isinstance(node, ast.Name) else ()


def path_of(node: ast.expr) -> Path | None:
    """Return `("a", "b")` for `a.b`; None for anything but a name and its attributes."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return (node.id, *reversed(parts)) if isinstance(node, ast.Name) else None


class Binder:
    """Collects the names that a block binds, but not those of blocks within it."""

    def __init__(self, module: str, is_package: bool) -> None:
        self._module, self._is_package = module, is_package

    def bound(self, nodes: Iterable[ast.AST]) -> Bound:
        """Collect the names that statements bind in their own block."""
        bound = Bound()
        for node in nodes:
            self._visit(node, bound, in_comprehension=False)
        return bound

    def _visit(self, node: ast.AST, bound: Bound, *, in_comprehension: bool) -> None:
        if isinstance(node, (*_DEFINITIONS, ast.Lambda)):
            if isinstance(node, _DEFINITIONS):
                bound.names.add(node.name)
            for child in outside(node):
                self._visit(child, bound, in_comprehension=in_comprehension)
            return
        if isinstance(node, ast.Import):
            self._import(node, bound)
        elif isinstance(node, ast.ImportFrom):
            base = absolute(self._module, self._is_package, node)
            for alias in node.names:
                if alias.name != "*":
                    _add(bound, alias.asname or alias.name, (*base, alias.name))
        elif isinstance(node, ast.Global):
            bound.declared_global.update(node.names)
        elif not (in_comprehension and isinstance(node, ast.Name)):
            bound.names.update(_assigned(node))
        inner = in_comprehension or isinstance(node, _COMPREHENSIONS)
        for child in ast.iter_child_nodes(node):
            self._visit(child, bound, in_comprehension=inner)

    @staticmethod
    def _import(node: ast.Import, bound: Bound) -> None:
        for alias in node.names:
            whole = tuple(alias.name.split("."))
            if alias.asname:
                _add(bound, alias.asname, whole)
            else:
                _add(bound, whole[0], whole[:1])


def _assigned(node: ast.AST) -> Iterator[str]:
    """Yield the name that a node assigns to, if any."""
    match node:
        case ast.NamedExpr(target=ast.Name(id=name)):
            yield name
        case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
            yield name
        case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)):
            yield name
        case ast.MatchStar(name=str(name)) | ast.MatchMapping(rest=str(name)):
            yield name


def _add(bound: Bound, name: str, path: Path) -> None:
    bound.names.add(name)
    bound.imports.setdefault(name, []).append(path)


def outside(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the parts of a definition in the enclosing block: decorators, defaults, bases."""
    if isinstance(node, _DEFINITIONS):
        yield from node.decorator_list
    if isinstance(node, _FUNCTIONS):
        yield from node.args.defaults
        yield from (default for default in node.args.kw_defaults if default is not None)
    if isinstance(node, ast.ClassDef):
        yield from node.bases
        yield from (keyword.value for keyword in node.keywords)


def _annotations(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        yield from (node.returns,) if node.returns else ()
    if isinstance(node, _FUNCTIONS):
        yield from (arg.annotation for arg in _arguments(node.args) if arg.annotation)
    # PEP 695: bounds of type parameters.
    yield from getattr(node, "type_params", ())


def _arguments(arguments: ast.arguments) -> Iterator[ast.arg]:
    yield from (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
    yield from (star for star in (arguments.vararg, arguments.kwarg) if star is not None)


@dataclass(frozen=True, slots=True)
class _Scope:
    bound: Bound
    is_class: bool = False


class Resolver:
    """Finds what a top-level statement of a module uses."""

    def __init__(self, module: str, is_package: bool) -> None:
        self._module, self._is_package = module, is_package
        self._binder = Binder(module, is_package)

    def usage(self, statement: ast.stmt) -> Usage:
        """Find what a statement uses, resolved within each of its blocks."""
        usage = Usage()
        _Walk(self._module, self._is_package, self._binder, usage).visit(statement, ())
        return usage


@dataclass(slots=True)
class _Walk:
    module: str
    is_package: bool
    binder: Binder
    usage: Usage
    deferred: bool = False
    """Whether the visited code runs when a function is called, not at import."""
    callees: tuple[Path, ...] = ()

    def visit(self, node: ast.AST, scopes: tuple[_Scope, ...]) -> None:
        if isinstance(node, _FUNCTIONS):
            self._function(node, scopes)
        elif isinstance(node, ast.ClassDef):
            self._class(node, scopes)
        elif isinstance(node, _COMPREHENSIONS):
            self._comprehension(node, scopes)
        elif isinstance(node, ast.Name | ast.Attribute):
            self._name(node, scopes)
        elif isinstance(node, ast.Call):
            self._call(node, scopes)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            self._imports(node)
        else:
            if isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant):
                self.usage.has_expressions |= not self.deferred
            elif isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
                self._store(node.value)
            elif isinstance(node, ast.AugAssign):
                self._store(node.target)
            for child in ast.iter_child_nodes(node):
                self.visit(child, scopes)

    def _function(
        self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda, scopes: tuple[_Scope, ...]
    ) -> None:
        self._decorators(node, scopes)
        for child in outside(node):
            self.visit(child, scopes)
        before, self.deferred = self.deferred, True
        for child in _annotations(node):
            self.visit(child, scopes)
        body = [node.body] if isinstance(node, ast.Lambda) else node.body
        bound = self.binder.bound(body)
        self.usage.rebinds |= bound.declared_global & bound.names
        bound.names |= {argument.arg for argument in _arguments(node.args)}
        bound.names |= {parameter.name for parameter in getattr(node, "type_params", ())}
        inner = (*scopes, _Scope(bound))
        callees, self.callees = self.callees, ()
        for child in body:
            self.visit(child, inner)
        self.deferred, self.callees = before, callees

    def _decorators(self, node: ast.AST, scopes: tuple[_Scope, ...]) -> None:
        """Record decorators as calls, with or without parentheses."""
        for decorator in getattr(node, "decorator_list", ()):
            path = path_of(decorator)
            if path and not self.deferred:
                self.usage.calls.append(path)
                self._refer(path, scopes, callees=(path,))

    def _class(self, node: ast.ClassDef, scopes: tuple[_Scope, ...]) -> None:
        self._decorators(node, scopes)
        before = self.callees
        if not self.deferred:
            self.callees = (*before, ())  # A base class may register its subclasses.
        for child in outside(node):
            self.visit(child, scopes)
        self.callees = before
        for child in getattr(node, "type_params", ()):
            self.visit(child, scopes)
        expressions = self.usage.has_expressions
        inner = (*scopes, _Scope(self.binder.bound(node.body), is_class=True))
        for child in node.body:
            self.visit(child, inner)
        self.usage.has_expressions = expressions  # Expressions in its body do not count.

    def _comprehension(
        self,
        node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp,
        scopes: tuple[_Scope, ...],
    ) -> None:
        self.visit(node.generators[0].iter, scopes)
        targets = [generator.target for generator in node.generators]
        inner = (*scopes, _Scope(self.binder.bound(targets)))
        for position, generator in enumerate(node.generators):
            self.visit(generator.target, inner)
            if position:
                self.visit(generator.iter, inner)
            for condition in generator.ifs:
                self.visit(condition, inner)
        values = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        for value in values:
            self.visit(value, inner)

    def _call(self, node: ast.Call, scopes: tuple[_Scope, ...]) -> None:
        before, path = self.callees, callee_of(node.func)
        if not self.deferred:
            if path:
                self.usage.calls.append(path)
            if not (path[1:] and path[-1] in READ_ONLY_METHODS):
                self.callees = (*before, path)
        for child in ast.iter_child_nodes(node):
            self.visit(child, scopes)
        self.callees = before

    def _name(self, node: ast.Name | ast.Attribute, scopes: tuple[_Scope, ...]) -> None:
        if isinstance(node, ast.Attribute):
            if node.attr in DYNAMIC_ATTRIBUTES:
                self.usage.dynamic.append((node.lineno, node.attr))
            if not isinstance(node.ctx, ast.Load):
                self._store(node.value)
        path = path_of(node)
        if path is None:
            for child in ast.iter_child_nodes(node):
                self.visit(child, scopes)
        elif isinstance(node, ast.Attribute) or isinstance(node.ctx, ast.Load):
            self._refer(path, scopes, callees=self.callees, line=node.lineno)

    def _refer(
        self,
        path: Path,
        scopes: tuple[_Scope, ...],
        *,
        callees: tuple[Path, ...],
        line: int = 0,
    ) -> None:
        name, *attributes = path
        innermost = len(scopes) - 1
        for depth in range(innermost, -1, -1):
            scope = scopes[depth]
            if scope.is_class and depth != innermost:
                continue  # Names of a class are not visible in its methods.
            if name in scope.bound.declared_global:
                break
            if name in scope.bound.names:
                for target in scope.bound.imports.get(name, ()):
                    whole = (*target, *attributes)
                    self.usage.references.append(Reference(whole, True, callees))
                if not scope.is_class:
                    return  # A class body may use the module's name before it binds its own.
        if name in DYNAMIC_NAMES:
            self.usage.dynamic.append((line, name))
        self.usage.references.append(Reference(path, False, callees))

    def _imports(self, node: ast.Import | ast.ImportFrom) -> None:
        """Record which modules are imported, whether or not their names are used."""
        if isinstance(node, ast.Import):
            paths = [tuple(alias.name.split(".")) for alias in node.names]
        else:
            base = absolute(self.module, self.is_package, node)
            paths = [(*base, alias.name) if alias.name != "*" else base for alias in node.names]
        self.usage.imported += [(path, self.deferred) for path in paths]

    def _store(self, node: ast.expr) -> None:
        """Record the root name of an assignment to items and attributes."""
        while isinstance(node, ast.Subscript | ast.Attribute):
            node = node.value
        if isinstance(node, ast.Name) and not self.deferred:
            self.usage.stores.add(node.id)
