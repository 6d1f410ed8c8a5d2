"""Which functions of a job go by name, and which by value."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from types import FunctionType
from typing import TYPE_CHECKING, Any

from chunkmap.places import current
from pipeline.errors import JobError

if TYPE_CHECKING:
    import polars as pl

    from pipeline.runs.transforms.by_value import ValueFunction


@dataclass(slots=True)
class Functions:
    """The functions of a job."""

    sent: dict[str, ValueFunction] = field(default_factory=dict)
    """Those that are sent by value, by their names in the job."""

    def add(self, function: Callable[..., Any] | str, condition: pl.Expr | None = None) -> str:
        """Add a function; return its name in the job.

        Args:
            function: The function, or its name.
            condition: A condition on rows to apply before it.

        Raises:
            JobError: It is no function, or cannot be sent.
            TransformNotAllowedError: It would be sent by value, which the settings do not allow.
        """
        if isinstance(function, str) and condition is None:
            return function
        from pipeline.runs.transforms.by_value import refuse_by_value, send_by_value
        from pipeline.runs.transforms.loading import load_transform

        settings, call = current().settings.transforms, _callable(function)
        name = call if isinstance(call, str) else _name_of(call)
        if name is not None and condition is None and _is_allowed(name, settings):
            return name
        if not settings.allow_by_value:
            raise refuse_by_value(str(name or getattr(call, "__name__", call)))
        if isinstance(call, str):
            call = load_transform(call, {}, settings).call.func  # type: ignore[attr-defined]
        if condition is not None:
            call = _Filtered(call, condition)
        value = send_by_value(call, tuple(self.sent))
        self.sent[value.name] = value
        return value.name


def _callable(function: Any) -> Any:
    """Return a function, or its name; of a class, what makes an instance in each process."""
    if not isinstance(function, str) and not callable(function):
        raise JobError(
            f"a {type(function).__name__} is no function",
            hint="pass a function from LazyFrame to LazyFrame, or its name module:function",
        )
    return _Stateful(function) if isinstance(function, type) else function


class _Filtered:
    """A function that gets the rows that satisfy a condition."""

    def __init__(self, function: Callable[..., Any], condition: pl.Expr) -> None:
        self.function, self.condition = function, condition
        self.__name__ = getattr(function, "__name__", type(function).__name__)
        self.__module__ = getattr(function, "__module__", None) or "__main__"

    def __call__(self, frame: pl.LazyFrame, **params: Any) -> Any:
        return self.function(frame.filter(self.condition), **params)


class _Stateful:
    """A class whose instance is made once per process, by the first chunk there, and called."""

    def __init__(self, kind: type) -> None:
        if "__call__" not in {name for base in kind.__mro__[:-1] for name in vars(base)}:
            raise JobError(
                f"{kind.__qualname__} is a class without __call__",
                hint="give it a method __call__ from LazyFrame to LazyFrame, or pass a function",
            )
        self.kind = kind
        self.__name__, self.__module__ = kind.__name__, kind.__module__

    def __call__(self, frame: pl.LazyFrame, **params: Any) -> Any:
        with _making:
            made = self.__dict__.get("made") or self.kind()
            self.__dict__["made"] = made
        return made(frame, **params)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "made"}


_making = Lock()
"""Held while an instance is made, since the threads of a worker share it."""


def _name_of(function: Callable[..., Any]) -> str | None:
    """Return the name by which another process can import a function; None if there is none."""
    if not isinstance(function, FunctionType) or function.__module__ in (None, "__main__"):
        return None
    module = sys.modules.get(function.__module__)
    is_named = getattr(module, function.__qualname__, None) is function
    return f"{function.__module__}:{function.__qualname__}" if is_named else None


def _is_allowed(name: str, settings: Any) -> bool:
    from pipeline.runs.transforms.reach import allows

    return allows(settings.allowed, name.partition(":")[0])


def not_writable(names: list[str]) -> JobError:
    """Return the error for a job with functions that no file can name."""
    return JobError(
        f"{', '.join(names)}: a function that is sent by value cannot be written to a file",
        hint="put it into a module, add the module to transforms.allow, and import it from there",
    )
