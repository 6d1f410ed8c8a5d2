"""A scheduler of its own says in a sentence why it cannot start."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cluster.serve import _with_host
from pipeline.errors import UsageError


def start(folder: Path, host: str, port: int) -> subprocess.CompletedProcess[str]:
    """Start a scheduler that cannot listen there, and return what it said."""
    command = (sys.executable, "-m", "pipeline.cluster.scheduler", "--host", host)
    return subprocess.run(
        [*command, "--port", str(port), "--dashboard-address", ":0"],
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_that_is_taken_is_named(tmp_path: Path, host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as taken:
        try:
            taken.bind((host, 0))
        except OSError:
            pytest.skip(f"this machine has no {host}")
        taken.listen()
        port = taken.getsockname()[1]
        said = start(tmp_path, host, port)
    shown = f"[{host}]" if ":" in host else host
    assert said.returncode == 2
    assert f"cannot listen on {shown}:{port}: " in said.stderr
    assert "Traceback" not in said.stderr[said.stderr.index("cannot listen") :]
    assert "--port" in said.stderr


def test_an_address_of_pages_takes_the_host_of_its_server() -> None:
    assert _with_host(":8787", "10.0.0.2") == "10.0.0.2:8787"
    assert _with_host(":8787", "::1") == ("::1", 8787)
    assert _with_host(":8787", None) == ":8787"
    assert _with_host("127.0.0.1:8787", "::1") == "127.0.0.1:8787"
    assert _with_host("[::1]:8787", "127.0.0.1") == ("::1", 8787)


@pytest.mark.parametrize(
    ("pages", "host"),
    [
        *(("[::1]", None), ("[::]", None), ("[::1]:", None), ("[::1]:x", None)),
        *(("[::1]:65536", None), ("[::1", None), (":x", "::1"), (":", "::1")),
    ],
)
def test_an_address_of_pages_without_a_port_is_refused(pages: str, host: str | None) -> None:
    with pytest.raises(UsageError) as caught:
        _with_host(pages, host)
    assert "--dashboard-address" in str(caught.value)
    assert caught.value.hint == "write [::1]:8787"


def test_an_address_of_another_machine_is_named(tmp_path: Path) -> None:
    said = start(tmp_path, "192.0.2.1", 0)
    assert said.returncode == 2
    assert "cannot listen on 192.0.2.1:0: " in said.stderr
