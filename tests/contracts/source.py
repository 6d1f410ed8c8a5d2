"""The repository as the contract tests see it: its files, modules and imports."""

import ast
import subprocess
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("chunkmap", "partitioning", "pipeline")


class Import(NamedTuple):
    """One imported name, as absolute dotted path, and where it stands."""

    module: str
    target: str
    line: int


class Names(NamedTuple):
    """What a file binds itself, in whatever block, and what it imports."""

    imports: tuple[Import, ...]
    taken: tuple[Import, ...]
    """Names that it imports from a module: that module, the name, and the line."""
    bound: frozenset[str]


@cache
def repository_files() -> tuple[Path, ...]:
    """Every file that is or may become part of the repository, ignored ones left out."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    return tuple(sorted({ROOT / name for name in listed.split("\0") if (ROOT / name).is_file()}))


def python_files(*folders: str) -> list[Path]:
    """The repository's Python files, or those below these of its folders."""
    files = [path for path in repository_files() if path.suffix == ".py"]
    return [
        path for path in files if not folders or path.relative_to(ROOT).parts[0] in set(folders)
    ]


def module_name(path: Path) -> str:
    """`pipeline/storage/__init__.py` -> `pipeline.storage`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> frozenset[str]:
    """The dotted names of all modules of the packages."""
    return frozenset(module_name(path) for path in python_files(*PACKAGES))


def imports_of(path: Path) -> tuple[Import, ...]:
    """Every import in a file, wherever it stands (in functions and for type checking too).

    `from a import b` counts as `a.b` when that is a module of ours, else as `a`.
    """
    return names_of(path).imports


@cache
def names_of(path: Path) -> Names:
    """What a file binds and imports; it is parsed once for all tests."""
    module = module_name(path)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    imports: list[Import] = []
    taken: list[Import] = []
    bound: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"), str(path))):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                bound.add(node.name)
            case ast.Name(ctx=ast.Store()):
                bound.add(node.id)
            case ast.Import():
                imports += [Import(module, alias.name, node.lineno) for alias in node.names]
            case ast.ImportFrom():
                base = node.module or ""
                if node.level:
                    above = package.split(".")[: len(package.split(".")) - node.level + 1]
                    base = ".".join([*above, base] if base else above)
                for alias in node.names:
                    inner = f"{base}.{alias.name}"
                    is_module = inner in modules()
                    imports.append(Import(module, inner if is_module else base, node.lineno))
                    if not is_module:
                        taken.append(Import(base, alias.name, node.lineno))
    return Names(tuple(imports), tuple(taken), frozenset(bound))
