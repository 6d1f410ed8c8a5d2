"""Versions of the small tables that transforms read beside their chunk."""

from __future__ import annotations

import hashlib

from pydantic import BaseModel, ConfigDict, NonNegativeInt


class TableObject(BaseModel):
    """One version of one object of a table."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    uri: str
    etag: str
    size: NonNegativeInt
    """Bytes."""


class TableVersion(BaseModel):
    """One version of a table: the objects that it is read from, in this order."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    uri: str
    """As the transform names it: an object, or a prefix."""
    objects: tuple[TableObject, ...]

    @property
    def label(self) -> str:
        """The version in a few characters, for people."""
        if len(self.objects) == 1:
            return f"ETag {self.objects[0].etag}"
        said = "\n".join(f"{one.uri} {one.etag} {one.size}" for one in self.objects)
        digest = hashlib.sha256(said.encode()).hexdigest()[:16]
        return f"{len(self.objects):,} objects, digest {digest}"
