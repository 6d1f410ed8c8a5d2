"""Uploads are found by listings that begin at their keys, as Amazon pages them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from typing_extensions import override

from pipeline.storage import StagedObject
from pipeline.storage.s3_uploads import Uploads
from pipeline.uris import Location

KEYS = [f"out/{number:04d}.parquet" for number in range(2000)]
PAGE = 100


class Listed(Uploads):
    """Uploads of a bucket that is listed by key, some at a time."""

    def __init__(self) -> None:
        super().__init__(SimpleNamespace(wait=lambda page: page))  # type: ignore[arg-type]
        self.asked: list[Mapping[str, str]] = []

    @override
    def _page(self, at: Location, markers: Mapping[str, str]) -> Any:
        self.asked.append(dict(markers))
        after = [key for key in KEYS if key.startswith(at.key)]
        after = [key for key in after if key > markers.get("KeyMarker", "")]
        shown = after[:PAGE]
        initiated = datetime.now(UTC)
        return {
            "Uploads": [{"Key": key, "UploadId": key, "Initiated": initiated} for key in shown],
            "IsTruncated": len(after) > PAGE,
            "NextKeyMarker": shown[-1] if shown else "",
            "NextUploadIdMarker": shown[-1] if shown else "",
        }


def staged(*keys: str) -> list[StagedObject]:
    return [StagedObject(f"s3://b/{key}", key, ("p",), 1, "a") for key in keys]


def test_uploads_before_the_first_wanted_one_are_skipped() -> None:
    uploads, wanted = Listed(), staged(*KEYS[-300:])
    assert uploads.find(wanted) == {(item.uri, item.upload) for item in wanted}
    assert len(uploads.asked) == 4, "one page in vain, and three from the first wanted one on"


def test_all_uploads_are_listed_once() -> None:
    uploads = Listed()
    assert [item.upload for item in uploads.under("s3://b/out/")] == KEYS
    assert len(uploads.asked) == len(KEYS) / PAGE
