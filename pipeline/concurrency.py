"""Map a function over items in threads, and run concurrent equal calls once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from threading import Condition
from typing import Protocol, TypeVar, cast

from cachetools import LRUCache, cached

T = TypeVar("T")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

DEFAULT_THREADS = 16
"""Threads that make requests, mostly waiting. The storage layer limits the requests as well."""


def map_concurrently(
    function: Callable[[T], R], items: Iterable[T], threads: int = DEFAULT_THREADS
) -> list[R]:
    """Apply a function to each item in a thread pool; return results in the items' order."""
    items = list(items)
    if len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(threads, len(items))) as pool:
        return list(pool.map(function, items))


def map_ahead(
    pool: Executor, function: Callable[[T], R], items: Iterable[T], ahead: int
) -> Iterator[R]:
    """Apply a function to each item in a pool; yield results in the items' order.

    Args:
        pool: The pool.
        function: The function.
        items: The items; they are taken as results are.
        ahead: Maximum number of items in the pool or with results that were not taken.
    """
    begun: deque[Future[R]] = deque()
    try:
        for item in items:
            begun.append(pool.submit(function, item))
            if len(begun) == ahead:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        for future in begun:
            future.cancel()


class SingleFlight(Protocol[R_co]):
    """A function that caches its most recent results."""

    def __call__(self, *arguments: object) -> R_co:
        """Return the cached result for these arguments, or call the function."""

    def cache_clear(self) -> None:
        """Clear the cache."""


def single_flight(size: int) -> Callable[[Callable[..., R]], SingleFlight[R]]:
    """Decorate a function so that concurrent calls with equal arguments run it once.

    With `lru_cache` alone, all threads of a worker that start together would compute the same
    result. A call that raises is not cached: the next call runs again.

    Args:
        size: Number of results in the LRU cache.
    """

    def decorate(function: Callable[..., R]) -> SingleFlight[R]:
        cache: LRUCache[object, R] = LRUCache(size)
        return cast(SingleFlight[R], cached(cache, condition=Condition())(function))

    return decorate
