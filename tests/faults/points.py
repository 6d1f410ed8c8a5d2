"""The steps of a run, as the S3 requests that show them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.faults.rules import Act, Rule


@dataclass(frozen=True, slots=True)
class Point:
    """A step of planning, mapping or publishing."""

    name: str
    kind: str
    path: str = ""
    nth: int = 1
    """Which of its requests: one in the middle, where there are many."""

    @property
    def writes(self) -> bool:
        """Whether something is different once it is done."""
        return self.kind.startswith(
            ("Put", "Create", "Upload", "Complete", "Copy", "Delete", "Abort")
        )

    def rule(self, act: Act, **more: Any) -> Rule:
        """Something that goes wrong there."""
        return Rule(act, self.kind, self.path, **{"nth": self.nth, **more})


PLANNING = (
    Point("list the input", "ListObjectsV2", "/in/"),
    Point("read a footer", "GetObject", "/in/", 5),
    Point("read the pointer", "GetObject", "HEAD.json"),
    Point("store the plan", "PutObject", "plan.arrow"),
    Point("store the job", "PutObject", "job.yaml"),
    Point("store the run", "PutObject", "run.json"),
    Point("say who drives", "PutObject", "driver.json"),
)
MAPPING = (
    Point("list the completions", "ListObjectsV2", "completions/"),
    Point("read a chunk", "GetObject", "/in/", 20),
    Point("begin an upload", "CreateMultipartUpload", nth=5),
    Point("upload a part", "UploadPart", nth=6),
    Point("stage an object", "PutObject", "/staged/", 5),
    Point("store completions", "PutObject", "completions/", 3),
    Point("read completions", "GetObject", "completions/", 2),
)
PUBLISHING = (
    Point("confirm an upload", "ListParts", nth=5),
    Point("confirm an object", "HeadObject", "/staged/", 5),
    Point("freeze the commit", "PutObject", "commits/"),
    Point("claim the output", "PutObject", "HEAD.json"),
    Point("look for amendments", "GetObject", "commits/"),
    Point("complete an upload", "CompleteMultipartUpload", nth=7),
    Point("copy an object", "CopyObject", nth=7),
    Point("remove what was copied", "DeleteObjects"),
    Point("write the manifest", "PutObject", "manifests/"),
    Point("move the pointer", "PutObject", "HEAD.json", 2),
    Point("note the publication", "PutObject", "published.json"),
    Point("store the report", "PutObject", "report.html"),
)
CHECKING = (
    Point("store rows in quarantine", "PutObject", ".rejected.parquet", 3),
    Point("store a completion of checked rows", "PutObject", "completions/", 3),
    Point("store columns for checks", "PutObject", "/checks/", 4),
    Point("list what is stored for checks", "ListObjectsV2", "/checks/"),
    Point("read columns", "GetObject", "/checks/", 3),
    Point("store what checks have found", "PutObject", "check_results"),
    Point("copy rows in quarantine", "CopyObject", "quarantine/rows/", 3),
    Point("drop what checks needed", "DeleteObject", "/checks/", 2),
)
"""Steps of a run with checks, beside the others."""
POINTS = (*PLANNING, *MAPPING, *PUBLISHING)
WRITES = tuple(point for point in POINTS if point.writes)
