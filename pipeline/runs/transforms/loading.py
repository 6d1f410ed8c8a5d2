"""Load transforms: check that they are allowed, fingerprint and import them, bind parameters."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from threading import Lock
from types import FunctionType, MethodType
from typing import Any

from pipeline.config.job import Job
from pipeline.config.sections import EXAMPLES, TransformSettings
from pipeline.errors import JobError, TransformNotAllowedError
from pipeline.own_packages import is_own, put_own_first
from pipeline.quality.rows import RowSchema, require_dataframely
from pipeline.runs.transforms.by_value import (
    MAIN,
    ValueFunction,
    refuse_by_value,
    refuse_program_function,
)
from pipeline.runs.transforms.fingerprint import fingerprint, join_fingerprints, libraries
from pipeline.runs.transforms.reach import Reach, Reached, allows
from pipeline.runs.transforms.secret_params import resolve_params
from pipeline.runs.transforms.site_paths import add_new_paths
from pipeline.runs.transforms.source import Module, Sources
from pipeline.runs.transforms.user_code import describe, is_from_signal

_loaded: dict[str, str] = {}
"""Digest of the source that each imported module was loaded from."""
_lock = Lock()
_NAME_TAKEN = (
    "{0!r} is the name of a package of chunkmap's own, and two packages cannot share a name"
)


@dataclass(frozen=True, slots=True)
class Transform:
    """A user's function, ready to be called."""

    name: str
    """Name: `module:function`."""
    fingerprint: str
    """Fingerprint of what the function reaches, and of its parameters."""
    call: Callable[..., Any]
    """Function with bound parameters, which takes the LazyFrame."""
    definitions: int = 0
    """Number of definitions of allowed modules that it reaches, itself included."""
    notes: tuple[str, ...] = ()
    """Notes on code that the fingerprint cannot resolve, and what it covers instead."""


def load_transform(name: str, params: Mapping[str, Any], settings: TransformSettings) -> Transform:
    """Check and import a transform, and bind its parameters.

    A module whose source has changed since this process imported it is imported again, so that a
    long-lived worker never runs old code.

    Raises:
        TransformNotAllowedError: the settings do not allow its module, or the function is not
            defined in an allowed module.
        JobError: there is no such module or function, it cannot be imported, or a parameter is in
            an environment variable that is not set.
    """
    function, reached = _load(name, settings)
    _check_params(name, function, (None,), params)
    return Transform(
        name=name,
        fingerprint=fingerprint(name, reached, params),
        call=partial(function, **resolve_params(params)),
        definitions=reached.definitions,
        notes=reached.notes,
    )


def load_row_function(
    name: str, params: Mapping[str, Any], settings: TransformSettings
) -> Callable[[], Any]:
    """Check and import a function that yields the rows of an ingest, and bind its parameters.

    Raises:
        TransformNotAllowedError: as `load_transform`.
        JobError: as `load_transform`.
    """
    function, _ = _load(name, settings)
    _check_params(name, function, (), params)
    return partial(function, **resolve_params(params))


def _load(name: str, settings: TransformSettings) -> tuple[Callable[..., Any], Reached]:
    """Check and import a function; return it, and the code that it reaches."""
    sent = _sent_by_value(name, settings)
    if sent is not None:
        return sent.load(), sent.reached
    module_name, _, function_name = name.partition(":")
    with _lock:
        reached, sources = _read(name, settings)
        module = _import(module_name, sources, settings)
    function = getattr(module, function_name, None)
    if not callable(function):
        names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        near = get_close_matches(function_name, names, 1)
        raise JobError(
            f"{module_name} has no function {function_name!r}",
            hint=f"did you mean {module_name}:{near[0]}?" if near else None,
        )
    _check_defined(name, function, settings)
    return function, reached


def load_schema(name: str, settings: TransformSettings) -> RowSchema:
    """Check and import a schema of dataframely, as `load_transform` does a transform.

    Raises:
        TransformNotAllowedError: the settings do not allow its module, or the class is not defined
            in an allowed module.
        JobError: there is no such module or class, it cannot be imported, or it is no schema.
        CheckError: dataframely is not installed.
    """
    dataframely = require_dataframely()
    module_name, _, class_name = name.partition(":")
    with _lock:
        _, sources = _read(name, settings)
        module = _import(module_name, sources, settings)
    schema = getattr(module, class_name, None)
    if not isinstance(schema, type) or not issubclass(schema, dataframely.Schema):
        kinds = [n for n, v in vars(module).items() if _is_schema(v, dataframely)]
        raise JobError(
            f"{name} (checks.rows) is no dataframely schema",
            hint=f"{module_name} defines {', '.join(kinds)}"
            if kinds
            else "name a subclass of dataframely.Schema, as module:Class",
        )
    if not allows(settings.allowed, schema.__module__):
        raise _not_defined(name, f"{schema.__module__}.{schema.__qualname__}")
    return RowSchema(name, schema)


def _is_schema(value: Any, dataframely: Any) -> bool:
    is_class = isinstance(value, type) and issubclass(value, dataframely.Schema)
    return is_class and value is not dataframely.Schema


def _check_defined(name: str, value: Any, settings: TransformSettings) -> None:
    """Raise unless a function, without decorators and partials, is defined in an allowed module."""
    if isinstance(value, type):
        raise JobError(
            f"{name} is a class, but a transform must be a function",
            hint="name a function that takes a LazyFrame and returns one",
        )
    chain = list(_unwrapped(value))
    if not any(_is_defined_in_allowed(function, settings) for function in chain):
        innermost = chain[-1]
        module = getattr(innermost, "__module__", None) or type(innermost).__module__
        what = getattr(innermost, "__qualname__", type(innermost).__qualname__)
        raise _not_defined(name, f"{module}.{what}")


def _not_defined(name: str, what: str) -> TransformNotAllowedError:
    return TransformNotAllowedError(
        f"transform {name} is {what}, which is not defined in a file of an allowed module",
        hint=f"define a function in {name.partition(':')[0]} that calls it",
    )


def _unwrapped(value: Any) -> Iterator[Any]:
    """Yield a callable, and what its partials, decorators and methods wrap."""
    for _ in range(100):
        yield value
        if isinstance(value, partial):
            value = value.func
        elif isinstance(value, MethodType):
            value = value.__func__
        elif getattr(value, "__wrapped__", None) is not None:
            value = value.__wrapped__
        elif callable(value) and isinstance(vars(type(value)).get("__call__"), FunctionType):
            value = vars(type(value))["__call__"]
        else:
            return


def _is_defined_in_allowed(function: Any, settings: TransformSettings) -> bool:
    """Whether a function's code is from the file of an allowed module."""
    if not isinstance(function, FunctionType):
        return False
    module = sys.modules.get(function.__globals__.get("__name__", ""))
    file: str | None = getattr(module, "__file__", None)
    if module is None or file is None or not allows(settings.allowed, module.__name__):
        return False
    return os.path.abspath(file) == os.path.abspath(function.__code__.co_filename)


def _check_params(
    name: str, function: Callable[..., Any], arguments: Sequence[None], params: Mapping[str, Any]
) -> None:
    """Raise unless a function takes parameters after its arguments: the frame, or none."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # Not written in Python; calling it will fail if the parameters do not fit.
    try:
        signature.bind(*arguments, **params)
    except TypeError as error:
        takes = ", ".join(list(signature.parameters)[len(arguments) :]) or "none"
        frame = "the frame and " if arguments else ""
        raise JobError(
            f"{name} cannot be called with {frame}params {list(params)}: {error}",
            hint=f"fix {'the job' if arguments else 'the ingest'}'s params; {name} takes {takes}",
        ) from error


def fingerprint_of(name: str, params: Mapping[str, Any], settings: TransformSettings) -> str:
    """Compute the fingerprint of a transform from its source on disk, without importing it.

    See `pipeline.runs.transforms.reach` for what it covers.

    Raises:
        TransformNotAllowedError: the settings do not allow its module, or the name is only
            imported there from a module that they do not allow.
        JobError: there is no such module.
    """
    return fingerprint(name, _reached(name, settings), params)


def _reached(name: str, settings: TransformSettings) -> Reached:
    """Find the code that a function reaches, without importing it."""
    sent = _sent_by_value(name, settings)
    if sent is not None:
        return sent.reached
    with _lock:
        return _read(name, settings)[0]


def _sent_by_value(name: str, settings: TransformSettings) -> ValueFunction | None:
    """Return a function that is sent by value; None if it is a module's.

    Raises:
        TransformNotAllowedError: the settings do not allow that.
    """
    sent: ValueFunction | None = settings.functions.get(name)
    if sent is not None and not settings.allow_by_value:
        raise refuse_by_value(name)
    return sent


def job_fingerprint(job: Job, settings: TransformSettings) -> str:
    """Compute the fingerprint of a job's code: all its functions, and its schema of rows."""
    parts = [fingerprint_of(name, params, settings) for name, params in named_code(job)]
    return join_fingerprints(parts)


def named_code(job: Job) -> list[tuple[str, Mapping[str, Any]]]:
    """List the functions and the schema of a job with their parameters, its transform first."""
    code: list[tuple[str, Mapping[str, Any]]] = [(job.transform, job.params)]
    if job.reduce is not None:
        code.append((job.reduce.combine, {}))
        code += [(job.reduce.finalize, {})] if job.reduce.finalize is not None else []
    code += [(job.checks.rows.schema_, {})] if job.checks.rows is not None else []
    code += [(job.then.function, job.then.params)] if job.then is not None else []
    return code


def load_functions(job: Job, settings: TransformSettings) -> None:
    """Load all functions and the schema of a job, to find out whether that is possible.

    Raises:
        TransformNotAllowedError, JobError, CheckError: as `load_transform` and `load_schema`.
    """
    schema = job.checks.rows.schema_ if job.checks.rows is not None else None
    for name, params in named_code(job):
        if name == schema:
            load_schema(name, settings)
        else:
            load_transform(name, params, settings)


def job_definitions(job: Job, settings: TransformSettings) -> dict[str, str]:
    """Hash each definition that a job's code reaches, and name the libraries that count."""
    names = [name for name, _ in named_code(job)]
    digests = [_reached(name, settings).digests for name in names]
    return {**{name: digest for some in digests for name, digest in some.items()}, **libraries()}


def _read(name: str, settings: TransformSettings) -> tuple[Reached, Sources]:
    """Read the code that a transform reaches, without importing it."""
    module_name, colon, function = name.partition(":")
    if not colon:
        raise JobError(f"transform {name!r} is not of the form module:function")
    if module_name == MAIN:
        raise refuse_program_function(name)
    if is_own(module_name) and not allows((EXAMPLES,), module_name):
        package = module_name.partition(".")[0]
        raise TransformNotAllowedError(
            f"transform module {module_name!r} cannot be used: {_NAME_TAKEN.format(package)}",
            hint=_rename_hint(package),
        )
    if not allows(settings.allowed, module_name):
        raise TransformNotAllowedError(
            f"transform module {module_name!r} is not allowed: transforms.allow is "
            f"{list(settings.allow)}",
            hint=f"add {module_name.partition('.')[0]!r} to transforms.allow in conf/base.yaml",
        )
    _extend_import_path(settings)
    sources = Sources()
    module = sources.module(module_name)
    if module is None and add_new_paths():
        sources = Sources()
        module = sources.module(module_name)
    if module is None:
        raise _no_module(module_name, sources, settings)
    foreign = _imported_from(module, function, sources, settings, set())
    if foreign is not None:
        raise _not_defined(name, foreign)
    reach = Reach(sources, settings.allowed)
    reach.function(module, function)
    return reach.result(), sources


def module_exists(name: str, settings: TransformSettings) -> bool:
    """Whether a module is found, without importing it."""
    with _lock:
        _extend_import_path(settings)
        return Sources().spec(name) is not None or (
            add_new_paths() and Sources().spec(name) is not None
        )


def _rename_hint(package: str) -> str:
    return (
        f"rename your folder, e.g. to my_{package}, or move it into another package, and name that "
        "in the job and in transforms.allow"
    )


def _no_module(name: str, sources: Sources, settings: TransformSettings) -> JobError:
    if sources.spec(name) is not None:
        return JobError(
            f"transform module {name!r} has no Python source",
            hint="name a module that is a .py file: its source is read before it is imported",
        )
    return JobError(
        f"transform module {name!r} does not exist",
        hint=f"searched in {', '.join(settings.path)} (transforms.path) "
        "and among the installed packages",
    )


def _imported_from(
    module: Module, name: str, sources: Sources, settings: TransformSettings, seen: set[str]
) -> str | None:
    """Return where a name is imported from, if only from modules that are not allowed."""
    units = module.bindings.get(name, ())
    if not units or any(unit.statement is not None for unit in units) or module.name in seen:
        return None
    seen.add(module.name)
    origin = None
    for target in (target for unit in units for target in unit.imports[name]):
        *above, attribute = target
        source = ".".join(above)
        inner = sources.module(source) if source and allows(settings.allowed, source) else None
        if inner is not None:
            origin = _imported_from(inner, attribute, sources, settings, seen)
        elif not allows(settings.allowed, ".".join(target)):
            origin = ".".join(target)
        if origin is None:
            return None
    return origin


def _extend_import_path(settings: TransformSettings) -> None:
    """Put the settings' folders first on the import path, for good: a transform may import late."""
    for path in reversed([str(Path(path).resolve()) for path in settings.path]):
        if path not in sys.path:
            sys.path.insert(0, path)
            put_own_first()
    importlib.invalidate_caches()


def _digests(module: str, sources: Sources, settings: TransformSettings) -> dict[str, str]:
    """Return the source digests of a module, its parents, and the allowed modules it imports."""
    pending, digests = [module], dict[str, str]()
    while pending:
        name = pending.pop()
        parent = name.rpartition(".")[0]
        if parent and parent not in digests:
            pending.append(parent)  # Imported first, with any effects.
        source = sources.module(name) if name not in digests else None
        if source is None:
            continue
        digests[name] = source.digest
        if allows(settings.allowed, name):
            imported = {
                ".".join(path[: n + 1]) for path, _ in source.imports for n in range(len(path))
            }
            pending += [path for path in sorted(imported) if allows(settings.allowed, path)]
    return dict(sorted(digests.items()))


def _import(module: str, sources: Sources, settings: TransformSettings) -> Any:
    digests = _digests(module, sources, settings)
    changed = {name for name, digest in digests.items() if _loaded.get(name, digest) != digest}
    if changed:
        # Unload unchanged modules too: they refer to functions of changed ones.
        for name in digests:
            # Their parent is the running program itself.
            is_program = is_own(name) and not allows((EXAMPLES,), name)
            if not is_program and (name in changed or allows(settings.allowed, name)):
                _forget(name, sources)
    try:
        imported = importlib.import_module(module)
    except BaseException as error:
        if is_from_signal(error):
            raise
        package = (getattr(error, "name", None) or "").partition(".")[0]
        is_taken = isinstance(error, ImportError) and is_own(package)
        reason = f" ({_NAME_TAKEN.format(package)})" if is_taken else ""
        raise JobError(
            f"transform module {module!r} cannot be imported: {describe(error)}{reason}",
            hint=_rename_hint(package) if is_taken else None,
        ) from error
    _loaded.update({name: digest for name, digest in digests.items() if name in sys.modules})
    return imported


def _forget(name: str, sources: Sources) -> None:
    """Make the next import of a module read its source."""
    sys.modules.pop(name, None)
    spec = sources.spec(name)
    if spec is not None and spec.origin is not None:
        # Python compares only size and whole seconds to detect a stale compiled file.
        with suppress(OSError, NotImplementedError):
            os.unlink(importlib.util.cache_from_source(spec.origin))
