"""Threads: map a function over items, and let concurrent equal calls run once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from threading import Condition
from typing import Protocol, TypeVar, cast

from cachetools import LRUCache, cached

T = TypeVar("T")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

REQUESTS = 16
"""Default number of threads: each mostly waits for S3, and every request is limited again there."""


def map_concurrently(
    function: Callable[[T], R], items: Iterable[T], threads: int = REQUESTS
) -> list[R]:
    """Apply a function to each item in a thread pool; results in the order of the items."""
    todo = list(items)
    if len(todo) < 2:
        return [function(item) for item in todo]
    with ThreadPoolExecutor(min(threads, len(todo))) as pool:
        return list(pool.map(function, todo))


class SingleFlight(Protocol[R_co]):
    """A function whose last results are kept."""

    def __call__(self, *arguments: object) -> R_co:
        """Return the kept result for these arguments, or call the function."""

    def cache_clear(self) -> None:
        """Forget all results."""


def single_flight(size: int) -> Callable[[Callable[..., R]], SingleFlight[R]]:
    """Decorate a function so that concurrent calls with equal arguments run it once.

    With `lru_cache` alone, all threads of a worker that start together would compute the same. A
    call that raises is not kept: the next one runs again.

    Args:
        size: Number of results that are kept, the most recently used ones.
    """

    def decorate(function: Callable[..., R]) -> SingleFlight[R]:
        cache: LRUCache[object, R] = LRUCache(size)
        return cast(SingleFlight[R], cached(cache, condition=Condition())(function))

    return decorate
