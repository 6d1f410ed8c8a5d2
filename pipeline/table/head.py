"""Read and move HEAD.json: the pointer to the current manifest, and the claim of a publisher."""

from __future__ import annotations

import uuid
from collections.abc import Iterable

from pipeline.errors import ObjectMissingError, StateError
from pipeline.storage import Storage, join
from pipeline.storage.documents import parse_stored, seal_json
from pipeline.table.errors import DamagedStateError, HeadBehindError, refuse_newer
from pipeline.table.manifest import HEAD_VERSION, Head

MAX_BYTES = 256 << 20
"""Maximum size of a pointer or a manifest; a million commits take about 200 MB."""


def manifest_uri(state: str, number: int) -> str:
    """Return the URI of a manifest."""
    return join(state, "manifests", f"{number}.json")


def stored_manifests(storage: Storage, state: str) -> list[int]:
    """Return the numbers of the stored manifests, in order."""
    prefix = join(state, "manifests") + "/"
    return sorted(_numbers(info.uri.removeprefix(prefix) for info in storage.objects(prefix)))


def _numbers(names: Iterable[str]) -> list[int]:
    stems = (name.removesuffix(".json") for name in names if name.endswith(".json"))
    return [int(stem) for stem in stems if stem.isascii() and stem.isdigit()]


class HeadFile:
    """Reads and moves the pointer of an output.

    If the pointer was deleted, or restored from a backup, a process that trusts it would publish
    over newer manifests and delete their files. So the first read checks that no manifest is newer
    than the pointer allows.
    """

    def __init__(self, storage: Storage, state: str) -> None:
        self._storage, self._state = storage, state
        self.uri = join(state, "HEAD.json")
        self._is_checked = False

    def read(self) -> tuple[Head, str | None]:
        """Return the pointer and its ETag; a default pointer and None if nothing was published.

        Raises:
            HeadBehindError: A stored manifest is newer than the pointer allows.
            DamagedStateError: The pointer cannot be read.
        """
        while True:
            head, etag = self.read_unchecked()
            if self._is_checked or not self._is_behind(head, etag):
                self._is_checked = True
                return head, etag
            # Publishers move the pointer before a manifest can be two ahead of it.
            if self.read_unchecked()[1] == etag:
                newest = stored_manifests(self._storage, self._state)[-1]
                raise HeadBehindError(self.uri, None if etag is None else head.current, newest)

    def _is_behind(self, head: Head, etag: str | None) -> bool:
        if etag is None:
            return bool(stored_manifests(self._storage, self._state))
        unexplained = head.current + (2 if head.publishing is not None else 1)
        try:
            self._storage.head(manifest_uri(self._state, unexplained))
        except ObjectMissingError:
            return False
        return True

    def read_unchecked(self) -> tuple[Head, str | None]:
        """Read the pointer without comparing it with the stored manifests."""
        blob = self._storage.get_or_none(self.uri)
        if blob is None:
            return Head(), None
        try:
            head = parse_stored(Head, blob.data, self.uri, max_bytes=MAX_BYTES)
        except StateError as error:
            raise DamagedStateError(self.uri, error, etag=blob.etag) from error
        refuse_newer(self.uri, head.version, HEAD_VERSION)
        if head.publishing is not None and head.publishing.base != head.current:
            why = f"it claims manifest {head.publishing.base} as its base, and points to another"
            raise DamagedStateError(self.uri, why, etag=blob.etag)
        return head, blob.etag

    def move(self, head: Head, etag: str | None) -> str:
        """Replace the pointer if it still has this ETag (None: if there is no pointer).

        Returns:
            The id of this write, which is stored as `Head.writer`.

        Raises:
            PreconditionFailedError, AlreadyExistsError: Another process was faster.
        """
        writer = uuid.uuid4().hex
        data = seal_json(head.model_copy(update={"writer": writer}).model_dump_json().encode())
        if etag is None:
            self._storage.put_new(self.uri, data)
        else:
            self._storage.put_if(self.uri, data, etag)
        return writer
