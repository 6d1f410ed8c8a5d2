"""What every test starts from: an environment that holds nothing of the machine's own."""

import os
import shutil
import tempfile

_FOREIGN = ("AWS_", "CHUNKMAP_", "PREFECT_", "DASK_")
_PREFECT_HOME = tempfile.mkdtemp(prefix="chunkmap-tests-prefect-")


def pytest_configure() -> None:
    """Clears settings and credentials of this machine, before anything reads them at import.

    Once a process, not once a test: a fixture of a module or a session may then set what it needs.
    """
    for name in [name for name in os.environ if name.startswith(_FOREIGN)]:
        del os.environ[name]
    os.environ |= {
        # A test must never find the credentials of whoever runs it, nor ask a cloud for some.
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "DO_NOT_TRACK": "1",
        "PREFECT_HOME": _PREFECT_HOME,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }


def pytest_unconfigure() -> None:
    """Removes what Prefect kept for this process."""
    shutil.rmtree(_PREFECT_HOME, ignore_errors=True)
