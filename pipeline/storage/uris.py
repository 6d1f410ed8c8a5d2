"""URIs of objects: see `pipeline.uris`, which is lower so that the job file is read by it too."""

from pipeline.uris import (
    STATE_SUFFIX,
    Location,
    as_prefix,
    join,
    parse,
    redacted,
    same_place,
    staged_area,
    state_prefix,
)

__all__ = [
    "STATE_SUFFIX",
    "Location",
    "as_prefix",
    "join",
    "parse",
    "redacted",
    "same_place",
    "staged_area",
    "state_prefix",
]
