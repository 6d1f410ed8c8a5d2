"""Gives many commands in one process: what Prefect and Dask take to import is paid once.

Reads a JSON list of command lines from stdin. Prints a line of JSON for each: exit code, stdout,
stderr, and what the command changed in S3.
"""

import contextlib
import io
import json
import sys

from pipeline.cli import main
from pipeline.config.settings import load_settings
from pipeline.storage import open_storage
from tests.integration.world import UNTOUCHED


def objects() -> dict[str, str]:
    """What is in S3, where no other test writes."""
    found = open_storage(load_settings()).objects("s3://demo/")
    return {info.uri: info.etag for info in found if info.uri.startswith(UNTOUCHED)}


def give(arguments: list[str]) -> dict[str, object]:
    """Give one command, as the installed script does."""
    before = objects()
    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["chunkmap", *arguments]
    code: object = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code
    changed = sorted(dict(objects().items() ^ before.items()))
    return {"code": code, "out": out.getvalue(), "err": err.getvalue(), "changed": changed}


if __name__ == "__main__":
    # This process has more commands to give.
    sys.modules["pipeline.cli.app"].exit_process = sys.exit  # type: ignore[attr-defined]
    for command in json.load(sys.stdin):
        print(json.dumps(give(command)), flush=True)
