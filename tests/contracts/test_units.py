"""Sizes are shown in decimal units everywhere: a user never has to compare MiB with MB."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BINARY = re.compile(r"(?<!\d)[KMGT]iB")
"""Binary units as they are shown; `1GiB`, without a space, is how users write a size."""
WRITTEN = {
    "pipeline/config": "sizes as users write them in files",
    "pipeline/cli/reference.py": "defaults of settings, to be copied into files",
}


def modules() -> Iterator[Path]:
    for package in ("chunkmap", "pipeline", "partitioning"):
        for module in sorted((ROOT / package).rglob("*.py")):
            name = str(module.relative_to(ROOT))
            if not name.startswith(tuple(WRITTEN)):
                yield module


def documentation(tree: ast.AST) -> set[int]:
    """The ids of docstrings, also of attributes: texts that stand alone."""
    return {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


@pytest.mark.parametrize("module", [*modules()], ids=lambda module: str(module.relative_to(ROOT)))
def test_no_text_of_ours_has_binary_units(module: Path) -> None:
    tree = ast.parse(module.read_text(encoding="utf-8"))
    texts = documentation(tree)
    found = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in texts
        if BINARY.search(node.value)
    ]
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    assert found == [] and "format_size" not in {call.id for call in calls}
