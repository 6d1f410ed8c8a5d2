"""Read Parquet files with chunkmap and other readers, and compare: `make differential FOLDER=…`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from tests.fuzz.parent import Result, done

SECONDS: Final = 120.0
"""Of each stage of one file."""
_SHOWN: Final = 20
_FINE: Final = ("equal", "refused in planning", "refused in reading", "refused by others")
_EXTENSIONS: Final = (".parquet", ".parq", ".pq")


@dataclass(frozen=True, slots=True)
class Compared:
    """What became of one file."""

    path: str
    outcome: str
    detail: str
    broke: tuple[str, ...]
    """Other readers that it ended or hung."""

    @property
    def is_failure(self) -> bool:
        """Whether chunkmap is wrong: rows that no reader has, or a process that ended."""
        return self.outcome not in _FINE


def compare(files: Iterable[Path], seconds: float = SECONDS) -> Iterator[Compared]:
    """Yield what became of each file, in their order."""
    jobs = ((path, _job(path)) for path in files)
    for path, result in done(jobs, seconds):
        yield _compared(path, result)


def _job(path: Path) -> dict[str, Any]:
    # The footer is a part of the file.
    return {"path": str(path.absolute()), "footer": path.stat().st_size}


def _compared(path: Path, result: Result) -> Compared:
    return Compared(str(path), result.outcome, result.detail, result.broke)


def find(folder: Path) -> list[Path]:
    """Return all Parquet files below a folder."""
    return sorted(p for p in folder.rglob("*") if p.suffix in _EXTENSIONS and p.is_file())


def table(found: list[Compared]) -> str:
    """Return outcomes with their counts, then the files that are not equal."""
    kinds: dict[str, list[Compared]] = {}
    for finding in found:
        kinds.setdefault(finding.outcome, []).append(finding)
    ordered = sorted(kinds.items(), key=lambda kind: -len(kind[1]))
    lines = [f"{len(ones):8,}  {outcome}" for outcome, ones in ordered]
    for outcome, ones in ordered:
        if outcome == "equal":
            continue
        lines.append(f"\n{outcome}:")
        # What fails is told of in full; what is refused, by examples.
        shown = ones if ones[0].is_failure else ones[:_SHOWN]
        lines += [f"  {finding.path}: {finding.detail}{_broken(finding)}" for finding in shown]
        if len(shown) < len(ones):
            lines.append(f"  … and {len(ones) - len(shown):,} more (--json lists all)")
    return "\n".join(lines)


def _broken(one: Compared) -> str:
    return f" (ended: {', '.join(one.broke)})" if one.broke else ""


def main() -> int:
    """Compare the files of a folder; return 1 if chunkmap is wrong about one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", action="store_true", help="print a line per file instead")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="limit of each stage")
    options = parser.parse_args()
    found = []
    for finding in compare(find(options.folder), options.seconds):
        found.append(finding)
        if options.json:
            print(json.dumps(asdict(finding)), flush=True)
    if not options.json:
        print(table(found) if found else f"no Parquet file below {options.folder}")
    return any(finding.is_failure for finding in found) or not found


if __name__ == "__main__":
    sys.exit(main())
