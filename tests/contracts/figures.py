"""`python -m tests.contracts.figures`: the size of the code, and its largest pieces."""

from __future__ import annotations

import ast
from statistics import median

from tests.contracts.picture import rooms
from tests.contracts.source import PACKAGES, ROOT, python_files

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def main() -> None:
    """Print the figures."""
    lines, classes, functions = 0, [], []
    for path in python_files(*PACKAGES):
        text = path.read_text("utf-8")
        lines += text.count("\n")
        for node in ast.walk(ast.parse(text)):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'name', '')}"
            if isinstance(node, ast.ClassDef):
                fields = sum(isinstance(statement, ast.AnnAssign) for statement in node.body)
                classes.append((_lines(node), fields, where))
            elif isinstance(node, _FUNCTIONS):
                functions.append((_lines(node), where))
    levels = rooms()
    print(f"rooms: {sum(map(len, levels))} on {len(levels)} levels")
    print(f"lines of {' and '.join(PACKAGES)}: {lines:,}")
    print("largest classes (lines, fields):")
    for size, fields, where in sorted(classes, reverse=True)[:5]:
        print(f"  {size:4} {fields:3}  {where}")
    print(f"most fields: {max((fields, where) for _, fields, where in classes)}")
    print(f"functions: {len(functions):,}, median {median(size for size, _ in functions):g} lines")
    print("longest functions:")
    for size, where in sorted(functions, reverse=True)[:3]:
        print(f"  {size:4}  {where}")


def _lines(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


if __name__ == "__main__":
    main()
