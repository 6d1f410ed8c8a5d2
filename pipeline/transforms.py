"""Transforms: allowed before imported, fingerprinted by their source, bound to their parameters."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache, partial
from pathlib import Path
from threading import Lock
from typing import Any

from pipeline.errors import JobError, TransformNotAllowedError
from pipeline.job import Job
from pipeline.settings import TransformSettings

_loaded: dict[str, str] = {}
"""Digest of the source that each imported module was loaded from."""
_lock = Lock()


@dataclass(frozen=True, slots=True)
class Transform:
    """A function of the user's, ready to be called."""

    name: str
    """`module:function`."""
    fingerprint: str
    """16 hex digits over the source of its allowed modules, and its parameters."""
    call: Callable[..., Any]
    """Takes the LazyFrame; the parameters are bound."""


def resolve(name: str, params: Mapping[str, Any], settings: TransformSettings) -> Transform:
    """Find, allow and import a transform.

    A module whose source changed since this process imported it is imported anew, so that a
    long-lived worker never runs code of yesterday.

    Raises:
        TransformNotAllowedError: the settings do not allow its module; nothing was imported.
        JobError: there is no such module or function, or it cannot be imported.
    """
    fingerprint = fingerprint_of(name, params, settings)
    module_name, _, function_name = name.partition(":")
    with _lock:
        module = _import(module_name, settings)
    function = getattr(module, function_name, None)
    if not callable(function):
        names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        near = get_close_matches(function_name, names, 1)
        raise JobError(
            f"{module_name} has no function {function_name!r}",
            hint=f"did you mean {module_name}:{near[0]}?" if near else None,
        )
    _check_params(name, function, params)
    return Transform(name, fingerprint, partial(function, **params))


def _check_params(name: str, function: Callable[..., Any], params: Mapping[str, Any]) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # Not written in Python: calling it will show.
    try:
        signature.bind(None, **params)
    except TypeError as error:
        takes = ", ".join(list(signature.parameters)[1:]) or "none"
        raise JobError(
            f"{name} cannot be called with the frame and params {list(params)}: {error}",
            hint=f"mend the job's params; it takes {takes}",
        ) from error


def fingerprint_of(name: str, params: Mapping[str, Any], settings: TransformSettings) -> str:
    """The fingerprint of a transform, from its source on disk.

    It covers the module and every allowed module that it imports, as syntax trees: comments and
    layout do not enter. Code outside the allowed modules (libraries) does not enter either.

    Raises:
        TransformNotAllowedError: the settings do not allow its module.
        JobError: there is no such module.
    """
    module_name, colon, _ = name.partition(":")
    if not colon:
        raise JobError(f"transform {name!r} is not of the form module:function")
    _check_allowed(module_name, settings)
    with _lock, _searching(settings):
        sources = dict(sorted(_sources(module_name, settings)))
    said = json.dumps([name, sources, params], sort_keys=True, default=str)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def code_of(job: Job, settings: TransformSettings) -> str:
    """The fingerprint of all code that a job runs: its transform, and its reduce if it has one."""
    own = fingerprint_of(job.transform, job.params, settings)
    if job.reduce is None:
        return own
    names = [name for name in (job.reduce.combine, job.reduce.finalize) if name]
    parts = [own, *(fingerprint_of(name, {}, settings) for name in names)]
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]


def _check_allowed(module: str, settings: TransformSettings) -> None:
    if not _is_allowed(module, settings):
        raise TransformNotAllowedError(
            f"transform module {module!r} is not allowed: transforms.allow is "
            f"{list(settings.allow)}",
            hint=f"add {module.partition('.')[0]!r} to transforms.allow in conf/base.yaml",
        )


def _is_allowed(module: str, settings: TransformSettings) -> bool:
    return any(module == one or module.startswith(one + ".") for one in settings.allow)


class _searching:
    """Puts the settings' folders first on the import path, for good: imports may come later."""

    def __init__(self, settings: TransformSettings) -> None:
        self._paths = [str(Path(path).resolve()) for path in settings.path]

    def __enter__(self) -> None:
        for path in reversed(self._paths):
            if path not in sys.path:
                sys.path.insert(0, path)

    def __exit__(self, *_: object) -> None:
        return None


def _sources(module: str, settings: TransformSettings) -> Iterator[tuple[str, str]]:
    """The digest of the source of a module and of each allowed module that it imports."""
    importlib.invalidate_caches()
    pending, seen = [module], set[str]()
    while pending:
        name = pending.pop()
        parent = name.rpartition(".")[0]
        if _is_allowed(parent, settings):
            pending.append(parent)  # It is imported first, and may do anything.
        if name in seen:
            continue
        seen.add(name)
        origin = _origin(name)
        if origin is None:
            if name == module:
                raise JobError(
                    f"transform module {module!r} does not exist",
                    hint=f"searched in {', '.join(settings.path)} (transforms.path) "
                    "and among the installed packages",
                )
            continue
        path = Path(origin)
        digest, imports = _read(name, path.name, path.read_bytes())
        yield name, digest
        pending += [found for found in imports if _is_allowed(found, settings)]


def _origin(name: str) -> str | None:
    try:
        spec = importlib.util.find_spec(name)
    except (ModuleNotFoundError, ValueError):
        return None
    return spec.origin if spec and spec.origin and spec.origin.endswith(".py") else None


@lru_cache(maxsize=256)
def _read(name: str, file: str, source: bytes) -> tuple[str, tuple[str, ...]]:
    """The digest of a module's syntax tree, and the modules that it may import.

    By its text, since a long-lived worker asks again and again: a tree takes 20 ms to make.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise JobError(f"{file}, line {error.lineno}: {error.msg}") from error
    digest = hashlib.sha256(ast.dump(tree).encode()).hexdigest()
    return digest, tuple(_imports(tree, name))


def _imports(tree: ast.Module, module: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = module.split(".")[: -node.level]
                base = ".".join([*parent, base] if base else parent)
            yield base
            # `from package import module` names a module too.
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _import(module: str, settings: TransformSettings) -> Any:
    with _searching(settings):
        sources = dict(_sources(module, settings))
        if any(_loaded.get(name, digest) != digest for name, digest in sources.items()):
            # Those that did not change hold functions of those that did: all go.
            for name in sources:
                _forget(name)
        try:
            imported = importlib.import_module(module)
        except Exception as error:
            raise JobError(f"transform module {module!r} cannot be imported: {error}") from error
        _loaded.update({name: sources[name] for name in sources if name in sys.modules})
    return imported


def _forget(name: str) -> None:
    """Make the next import of a module read its source."""
    sys.modules.pop(name, None)
    origin = _origin(name)
    if origin is not None:
        # The interpreter takes a compiled file for current by size and whole seconds.
        with suppress(OSError, NotImplementedError):
            os.unlink(importlib.util.cache_from_source(origin))
