"""A cache whose callers wait for the one that is already making what they want."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, update_wrapper
from threading import Lock
from typing import Any, Generic, TypeVar

R = TypeVar("R")


class _Slot:
    """What is made of some arguments, once it is."""

    __slots__ = ("lock", "made")

    def __init__(self) -> None:
        self.lock = Lock()
        self.made: list[Any] = []


class Once(Generic[R]):
    """A function that is called once for the same arguments, whoever asks at the same time.

    `lru_cache` alone lets all threads of a worker that begin together make the same thing. A call
    that raises is not remembered: the next one tries again.
    """

    def __init__(self, function: Callable[..., R], most: int) -> None:
        """Wrap.

        Args:
            function: Of hashable, positional arguments.
            most: Results that are kept: the last ones that were asked for.
        """
        update_wrapper(self, function)
        self.__qualname__: str = function.__qualname__
        self._function = function
        self._slot = lru_cache(maxsize=most)(lambda *_: _Slot())
        self.cache_clear = self._slot.cache_clear

    def __reduce__(self) -> str:
        # By name, as functions are: what a flow is pickled with may call this.
        return self.__qualname__

    def __call__(self, *arguments: Any) -> R:
        """The result for these arguments."""
        slot = self._slot(*arguments)
        with slot.lock:
            if not slot.made:
                slot.made.append(self._function(*arguments))
            result: R = slot.made[0]
            return result


def once(most: int) -> Callable[[Callable[..., R]], Once[R]]:
    """Decorate a function with `Once`."""
    return lambda function: Once(function, most)
