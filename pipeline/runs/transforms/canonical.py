"""Write a syntax tree as canonical text, which depends on what runs but not on the layout.

Unlike `ast.dump`, the text is the same for all versions of Python that parse the same tree: empty
fields, which differ between versions, are left out.
"""

from __future__ import annotations

import ast
from typing import Any

_LEFT_OUT = frozenset({"ctx", "kind", "type_comment", "type_ignores"})
_WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def canonical(node: ast.AST) -> str:
    """Return the text of a tree, without positions and docstrings."""
    parts: list[str] = []
    _write(node, parts)
    return "".join(parts)


def _write(value: Any, parts: list[str]) -> None:
    if isinstance(value, ast.AST):
        parts.append(f"{type(value).__name__}(")
        for name, content in ast.iter_fields(value):
            is_body = name == "body" and isinstance(value, _WITH_DOCSTRING)
            inner = _without_docstring(content) if is_body else content
            if name not in _LEFT_OUT and inner is not None and inner != []:
                parts.append(f"{name}=")
                _write(inner, parts)
                parts.append(",")
        parts.append(")")
    elif isinstance(value, list):
        parts.append("[")
        for item in value:
            _write(item, parts)
            parts.append(",")
        parts.append("]")
    elif isinstance(value, int) and not isinstance(value, bool):
        parts.append(hex(value))  # Not decimal: Python limits the number of digits.
    else:
        # Not `repr`: which characters it escapes depends on the version of Unicode.
        parts.append(ascii(value))


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    match body:
        case [ast.Expr(value=ast.Constant(value=str())), *rest]:
            return rest
    return body
