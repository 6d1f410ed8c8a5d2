"""Describe versions of the small tables that transforms read in addition to their chunk."""

from __future__ import annotations

import hashlib

from pydantic import BaseModel, ConfigDict, NonNegativeInt

from pipeline.report.humanize import plural


class TableObject(BaseModel):
    """A version of an object of a table."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    uri: str
    etag: str
    size: NonNegativeInt
    """Size in bytes."""


class TableVersion(BaseModel):
    """A version of a table: its objects, in the order in which they are read."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    uri: str
    """URI of the table as the transform names it: an object or a prefix."""
    objects: tuple[TableObject, ...]

    @property
    def label(self) -> str:
        """The version in a few characters, for people."""
        if len(self.objects) == 1:
            return f"ETag {self.objects[0].etag}"
        text = "\n".join(f"{item.uri} {item.etag} {item.size}" for item in self.objects)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        return f"{plural(len(self.objects), 'object')}, digest {digest}"
