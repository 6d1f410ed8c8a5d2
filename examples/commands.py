"""Give commands of chunkmap from the examples, as one does in a terminal."""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

COMMAND = Path(sys.executable).with_name("chunkmap")
"""The command of the environment that runs the example."""


def chunkmap(*words: str | Path) -> float:
    """Show a command and run it; a command that fails ends this program with its exit code.

    Args:
        words: What follows `chunkmap`.

    Returns:
        Seconds that it took.
    """
    line = shlex.join(map(str, words)).replace(f"{Path.cwd()}{os.sep}", "")
    print(f"\n$ chunkmap {line}", flush=True)
    clock = time.perf_counter()
    done = subprocess.run([COMMAND, *words], check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    return time.perf_counter() - clock
