"""Versions of an output: what a manifest replaced is kept beside the output for a while.

replaced/<n>/<key>   left the output when manifest n became current
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from pipeline.catalog import Catalog
from pipeline.errors import ObjectMissingError, UsageError
from pipeline.folding import may_meet
from pipeline.manifest import Manifest

MOVERS = 16
"""Files copied or deleted at a time."""
NARROW = 64
"""Folders that are listed one by one; of more, the whole output is listed at once."""


def tidy(catalog: Catalog, manifest: Manifest) -> int:
    """Move what the manifest replaced out of the output; returns the number of files.

    Each file is copied beside the output first. A driver that died in the middle left the rest:
    whoever comes next moves it.
    """
    replaced = _replaced(catalog, manifest)
    if not replaced:
        catalog.tidied = manifest.number
        return 0
    there = _there(catalog, {key.rpartition("/")[0] for key in replaced})
    keys = [key for key in replaced if catalog.output + key in there]
    keep = manifest.commits[-1].keep_versions if manifest.commits else 1

    def move(key: str) -> None:
        source = catalog.output + key
        with suppress(ObjectMissingError):  # Another driver tidies too, and was faster.
            if keep:
                catalog.storage.copy(source, f"{catalog.state}replaced/{manifest.number}/{key}")
            if catalog.head()[0].current == manifest.number:
                catalog.storage.delete(source)

    _each(move, keys)
    prune(catalog, manifest.number - keep)
    catalog.tidied = manifest.number
    return len(keys)


def _there(catalog: Catalog, folders: set[str]) -> set[str]:
    """What is in these folders now; of many, or of the top one, in the whole output."""
    whole = "" in folders or len(folders) > NARROW
    prefixes = [""] if whole else [f"{folder}/" for folder in folders]
    with ThreadPoolExecutor(MOVERS) as pool:
        found = pool.map(lambda p: catalog.storage.objects(catalog.output + p), prefixes)
        return {info.uri for one in found for info in one}


def _replaced(catalog: Catalog, manifest: Manifest) -> list[str]:
    """Keys of the files that this manifest dropped from the one before."""
    if manifest.number == 0:
        return []
    before, after = catalog.manifest(manifest.number - 1).commits, manifest.commits
    added = after[len(before) :]
    if after[: len(before)] == before:
        if all(entry.mode in ("error", "append") for entry in added):
            return []
        # The others are as they were: their records need not even be read.
        before = tuple(one for one in before if any(may_meet(one, entry) for entry in added))
        after = (*before, *added)
    stays = set(catalog.keys(after))
    return [key for key in catalog.keys(before) if key not in stays]


def prune(catalog: Catalog, newest: int, *, dry_run: bool = False) -> int:
    """Delete what was replaced by manifests up to this number; returns the number of files."""
    kept = catalog.storage.objects(catalog.state + "replaced/")
    old = [info.uri for info in kept if _number(catalog, info.uri) <= newest]
    _each(catalog.storage.delete, [] if dry_run else old)
    return len(old)


def _number(catalog: Catalog, uri: str) -> int:
    return int(uri.removeprefix(catalog.state + "replaced/").partition("/")[0])


def locate(catalog: Catalog, manifest: Manifest) -> dict[str, str]:
    """Where each file of a manifest is: in the output, or beside it.

    Returns:
        URI by key.

    Raises:
        UsageError: some of its files are no longer kept.
    """
    keys = catalog.keys(manifest.commits)
    found = {
        info.uri.removeprefix(catalog.output): info.uri
        for info in catalog.storage.objects(catalog.output)
    }
    missing = [key for key in keys if key not in found]
    if missing:
        aside = sorted(
            (_number(catalog, info.uri), info.uri)
            for info in catalog.storage.objects(catalog.state + "replaced/")
        )
        for number, uri in aside:
            if number > manifest.number:
                found.setdefault(uri.removeprefix(f"{catalog.state}replaced/{number}/"), uri)
    gone = [key for key in keys if key not in found]
    if gone:
        raise UsageError(
            f"{len(gone)} of the {len(keys)} files of manifest {manifest.number} of "
            f"{catalog.output} are no longer kept, such as {gone[0]}",
            hint="output.keep_versions says how many replaced versions are kept",
        )
    return {key: found[key] for key in keys}


def restore(catalog: Catalog, manifest: Manifest) -> None:
    """Bring the files of an older manifest back into the output."""
    places = locate(catalog, manifest)

    def bring(key: str) -> None:
        if places[key] != catalog.output + key:
            catalog.storage.copy(places[key], catalog.output + key)

    _each(bring, places)


def _each(call: Callable[[str], object], items: Iterable[str]) -> None:
    with ThreadPoolExecutor(MOVERS) as pool:
        for _ in pool.map(call, items):
            pass
