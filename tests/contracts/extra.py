"""`python -m tests.contracts.extra NAME`: an extra's own requirements, for locking it apart."""

from __future__ import annotations

import sys
import tomllib

from tests.contracts.source import ROOT


def requirements_of(extra: str) -> list[str]:
    """The requirements of an extra in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    requirements: list[str] = project["optional-dependencies"][extra]
    return requirements


if __name__ == "__main__":
    print("\n".join(requirements_of(sys.argv[1])))
