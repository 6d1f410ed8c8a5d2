"""Fetch the pages that are not stored yet, and store each as soon as it is there."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from threading import Thread
from typing import Any, TypeVar

from pipeline.config.ingest import Http
from pipeline.http_answers import Waits
from pipeline.ingest.client import Client, open_client
from pipeline.ingest.errors import PageLimitError, SourceError
from pipeline.ingest.paging import Answer, Feed, Paging
from pipeline.ingest.parsed import ParsedPages
from pipeline.ingest.store import IngestStore, PageRecord, total
from pipeline.report.humanize import plural

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FetchProgress:
    """How far an ingest is."""

    pages: int = 0
    """Number of pages that are stored."""
    asked: int = 0
    """Number of those that were asked for now."""
    records: int = 0
    bytes: int = 0
    feeds: int = 1
    done: int = 0
    """Number of feeds all of whose pages are stored."""
    requests: int = 0
    retries: int = 0
    seconds: float = 0.0
    unit: str = "page"
    """What is counted as a page."""


def fetch_pages(
    http: Http,
    store: IngestStore,
    feeds: list[Feed],
    *,
    secret: str | None,
    waits: Waits,
    listen: Callable[[FetchProgress], None],
    parsed: ParsedPages,
) -> tuple[list[PageRecord], FetchProgress]:
    """Fetch all pages of an ingest that are not stored.

    Args:
        http: The API.
        store: State of the ingest.
        feeds: Its feeds.
        secret: The secret of `http.auth`.
        waits: Waits between attempts at a request.
        listen: Called with the progress.
        parsed: Is told what is in the pages that are fetched.

    Returns:
        All pages, in the order of feeds and pages, and the progress at the end.

    Raises:
        SourceError: The source refuses, or answers something unusable. What is stored stays.
        PageLimitError: There are more pages than the definition allows.
    """
    paging = store.paging
    assert paging is not None, "the store knows the requests"

    async def work() -> tuple[list[PageRecord], FetchProgress]:
        async with open_client(http, secret, waits) as client:
            fetching = _Fetching(http, store, paging, client, listen, parsed)
            return await fetching.all(feeds)

    return run_in_loop(work)


def run_in_loop(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine in a thread with a loop of its own: notebooks already have a running one.

    Whatever ends the wait for it, e.g. Ctrl-C, cancels it, and is raised when it has ended.
    """
    result: Future[T] = Future()
    loop = asyncio.new_event_loop()
    task: list[asyncio.Task[Any]] = []

    async def wrapped() -> T:
        current = asyncio.current_task()
        assert current is not None, "a coroutine runs in a task"
        task.append(current)
        return await work()

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                result.set_result(runner.run(wrapped()))
        except BaseException as error:
            result.set_exception(error)

    thread = Thread(target=run, name="ingest", daemon=True)
    thread.start()
    try:
        return result.result()
    except BaseException:
        if not result.done():
            with suppress(RuntimeError, IndexError):  # It has just ended, or has not begun.
                loop.call_soon_threadsafe(task[0].cancel)
            thread.join(timeout=10.0)
        raise


@dataclass(slots=True)
class _Fetching:
    http: Http
    store: IngestStore
    paging: Paging
    client: Client
    listen: Callable[[FetchProgress], None]
    parsed: ParsedPages
    _progress: FetchProgress = field(default_factory=FetchProgress)
    _started: float = field(default_factory=time.monotonic)

    async def all(self, feeds: list[Feed]) -> tuple[list[PageRecord], FetchProgress]:
        stored = await asyncio.to_thread(self.store.stored_pages, len(feeds))
        self._progress = replace(self._progress, feeds=len(feeds))
        tasks = [asyncio.ensure_future(self._feed(f, stored.get(f.number, []))) for f in feeds]
        try:
            pages = [page for found in await asyncio.gather(*tasks) for page in found]
        finally:
            await _cancel(tasks)
        await self._refuse_unnamed(pages)
        return pages, self._progress

    async def _refuse_unnamed(self, pages: list[PageRecord]) -> None:
        """Refuse pages none of which names the next: the keys that lead to it may be wrong."""
        if self.http.pages.optional or any(page.names_next for page in pages):
            return
        for page in pages:
            if page.records:
                body = await asyncio.to_thread(self.store.body, page)
                raise self.paging.unnamed(Answer(json.loads(body)), page.address)

    async def _feed(self, feed: Feed, stored: list[int]) -> list[PageRecord]:
        if self.http.pages.is_numbered:
            pages = await self._numbered(feed, set(stored))
        else:
            pages = await self._followed(feed, set(stored))
        self._tell(done=self._progress.done + 1)
        return pages

    # -- pages that lead to each other -----------------------------------------------------------

    async def _followed(self, feed: Feed, stored: set[int]) -> list[PageRecord]:
        pages: list[PageRecord] = []
        address: str | None = self.paging.first(feed)
        seen: set[str] = set()
        while address is not None:
            if address in seen:
                raise SourceError(
                    f"{address}: the feed leads back to this page, which it has already had: "
                    "it would "
                    "never end",
                    hint="check http.pages: the parameter may have another name",
                )
            seen.add(address)
            number = len(pages) + 1
            if number in stored:
                page = await self._stored(feed, number)
                self._refuse_other(page, address)
            else:
                page = await self._fetch(feed, number, address, 0)
            pages.append(page)
            self._use(page)
            address = page.next
        return pages

    def _refuse_other(self, page: PageRecord, address: str) -> None:
        if page.address != address:
            raise SourceError(
                f"page {page.number} is stored as the answer to {page.address}, but the page "
                "before it "
                f"leads to {address}",
                hint=self.store.begin_again,
            )

    # -- pages that have numbers -----------------------------------------------------------------

    async def _numbered(self, feed: Feed, stored: set[int]) -> list[PageRecord]:
        """Fetch pages ahead, ever more of them; stop at the first that is the last."""
        pages: list[PageRecord] = []
        pending: dict[int, asyncio.Future[PageRecord]] = {}
        ahead, step, last = 1, 0, self.http.max_pages
        try:
            while not pages or pages[-1].next is not None:
                number = len(pages) + 1
                for later in range(number, min(number + ahead, last + 1)):
                    if later not in pending:
                        pending[later] = asyncio.ensure_future(
                            self._one(feed, later, step, is_stored=later in stored)
                        )
                if number not in pending:
                    self._refuse_more()
                page = await pending.pop(number)
                self._refuse_gap(page, pages, step)
                step = step or page.records
                pages.append(page)
                self._use(page)
                last = last if page.last is None else min(page.last, self.http.max_pages)
                # A short page is probably the last.
                ahead = min(ahead * 2, self.http.concurrency) if page.records >= step else 1
        finally:
            await _cancel(list(pending.values()))
        await self._refuse_early_end(feed, pages, step)
        return pages

    async def _one(self, feed: Feed, number: int, step: int, *, is_stored: bool) -> PageRecord:
        if is_stored:
            return await self._stored(feed, number)
        return await self._fetch(feed, number, self.paging.numbered(feed, number, step), step)

    def _refuse_gap(self, page: PageRecord, pages: list[PageRecord], step: int) -> None:
        """Refuse a page after a short one where pages begin at offsets: records may be missing."""
        if self.http.pages.by != "offset" or not pages or not page.records:
            return
        before = pages[-1]
        if before.records != step or before.next != page.address:
            raise _gap(before, step)

    async def _refuse_early_end(self, feed: Feed, pages: list[PageRecord], step: int) -> None:
        """Refuse an empty page as the end of offsets, if records follow the short page before it.

        Pages begin a full page apart, so the empty one begins after those records.
        """
        if self.http.pages.by != "offset" or len(pages) < 2:
            return
        short, end = pages[-2:]
        if end.records or end.last is not None or short.records >= step:
            return
        address = self.paging.at(feed, (short.number - 1) * step + short.records)
        page = await self.client.get(address)
        if self.paging.records(page.answer, address):
            raise _gap(short, step)

    # -- one page --------------------------------------------------------------------------------

    async def _stored(self, feed: Feed, number: int) -> PageRecord:
        return await asyncio.to_thread(self.store.page, feed.number, number)

    async def _fetch(self, feed: Feed, number: int, address: str, step: int) -> PageRecord:
        page = await self.client.get(address)
        found = self.paging.records(page.answer, address)
        records = len(found)
        following = self.paging.following(
            feed, address, page.answer, number=number, records=records, step=step or records
        )
        last = None
        if self.http.pages.is_numbered:
            last = self.paging.last(page.answer, address, step or records)
        self.client.refuse_secret(address, following)
        record = PageRecord(
            ingest=self.store.ingest,
            feed=feed.number,
            number=number,
            address=address,
            next=following,
            last=last,
            names_next=self.paging.names_next(page.answer),
            records=records,
            bytes=len(page.body),
            fetched=time.time(),
        )
        stored = await asyncio.to_thread(self.store.put_page, record, page.body)
        if stored is record:  # Otherwise, another process has stored its answer before.
            self.parsed.add(record, found)
        self._tell(asked=self._progress.asked + 1)
        return stored

    def _use(self, page: PageRecord) -> None:
        self._tell(
            pages=self._progress.pages + 1,
            records=self._progress.records + total([page]),
            bytes=self._progress.bytes + page.bytes,
        )
        if page.next is not None and self._progress.pages >= self.http.max_pages:
            self._refuse_more()

    def _refuse_more(self) -> None:
        raise PageLimitError(
            f"{self.http.url} has more than {plural(self.http.max_pages, 'page')} "
            "(http.max_pages), or "
            "never ends",
            hint="raise http.max_pages and give the command again, which resumes after them; or "
            "narrow what is asked for",
        )

    def _tell(self, **changes: Any) -> None:
        counts = self.client.counts
        self._progress = replace(
            self._progress,
            requests=counts.requests,
            retries=counts.retries,
            seconds=time.monotonic() - self._started,
            **changes,
        )
        self.listen(self._progress)


def _gap(short: PageRecord, step: int) -> SourceError:
    return SourceError(
        f"page {short.number} has {plural(short.records, 'record')} and the first page has "
        f"{step:,}, but more follow: records between them may be missing",
        hint="ask for a page size that the API allows (http.pages.size), or read by another kind "
        "of pages",
    )


async def _cancel(tasks: Sequence[asyncio.Future[Any]]) -> None:
    """Cancel tasks and wait for their ends; their errors are those of pages that are not needed."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
