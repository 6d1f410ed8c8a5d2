"""What tests have worker processes of this machine do; the last argument is the worker's name."""

import os
import sys
import time
from pathlib import Path


def modules(names: list[str], worker: str) -> list[str]:
    """Which of these modules the worker has imported."""
    return [name for name in names if name in sys.modules]


def name_and_process(worker: str) -> tuple[str, int]:
    return worker, os.getpid()


def die(worker: str) -> None:
    os._exit(7)


def fail(text: str, worker: str) -> None:
    raise ValueError(text)


def raise_odd(worker: str) -> None:
    class Odd(Exception):
        """Cannot be pickled, as its class is nowhere by name."""

    raise Odd("an odd error")


def print_line(text: str, worker: str) -> None:
    print(text)


def wait_until_gone(path: str, worker: str) -> str:
    """Say that it began, and go on until the file is removed."""
    Path(path).write_text(worker)
    while Path(path).exists():
        time.sleep(0.01)
    return worker


def touch_and_wait(path: str, worker: str) -> None:
    """Say that it began, and go on for longer than a test."""
    Path(path).write_text(str(os.getpid()))
    time.sleep(600)
