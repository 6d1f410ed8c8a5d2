"""Find the effects of importing a module, other than binding names."""

from __future__ import annotations

import ast

from pipeline.runs.transforms.names import Path
from pipeline.runs.transforms.source import Module, Unit, at_import

_PURE_LIBRARIES = frozenset(
    {
        *(
            "abc",
            "contextlib",
            "dataclasses",
            "datetime",
            "decimal",
            "enum",
            "fractions",
            "functools",
        ),
        *(
            "itertools",
            "logging",
            "math",
            "operator",
            "pathlib",
            "polars",
            "re",
            "string",
            "typing",
        ),
        *("typing_extensions", "uuid", "zoneinfo"),
    }
)
"""Libraries whose functions do not change their arguments."""
_CHANGING_BUILTINS = frozenset({"setattr", "delattr", "next", "map", "filter", "vars"})
_DISPLAYS = (ast.Dict, ast.List, ast.Set, ast.DictComp, ast.ListComp, ast.SetComp)
_CONTAINERS = frozenset({"dict", "list", "set", "bytearray", "sorted"})


def import_targets(module: Module, name: str) -> list[Path] | None:
    """Return where a name is imported from; None if bound otherwise, empty if not bound."""
    targets: list[Path] = []
    for unit in module.bindings.get(name, ()):
        if name not in unit.imports:
            return None
        targets += unit.imports[name]
    return targets


def has_effect(unit: Unit, module: Module) -> bool:
    """Whether a unit counts wherever its module is imported."""
    usage = unit.usage
    if usage.has_expressions:
        return True
    if any(part.lstrip("_").startswith("register") for path in usage.calls for part in path):
        return True
    # Changing something that is imported is an effect too.
    return any(
        import_targets(module, name) is not None and name not in unit.binds for name in usage.stores
    )


def is_harmless(callee: Path, module: Module) -> bool:
    """Whether a call at import cannot change its arguments."""
    if not callee:
        return False
    targets = import_targets(module, callee[0])
    if targets is None:
        return False
    if not targets:
        return callee[0] not in _CHANGING_BUILTINS
    return all(target[0] in _PURE_LIBRARIES for target in targets)


def holds_state(unit: Unit, module: Module) -> bool:
    """Whether a unit binds a mutable value: a container, or a class that registers subclasses."""
    node = unit.statement
    if isinstance(node, ast.ClassDef):
        named = (getattr(inner, "name", "") for inner in node.body)
        return bool(node.keywords) or "__init_subclass__" in named
    if node is None or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    return any(
        isinstance(part, _DISPLAYS) or _makes_state(part, module) for part in at_import(node)
    )


def _makes_state(node: ast.AST, module: Module) -> bool:
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        return False
    targets = import_targets(module, node.func.id)
    if targets is None:
        return True
    if not targets:
        return node.func.id in _CONTAINERS
    return any(target[0] not in _PURE_LIBRARIES for target in targets)
