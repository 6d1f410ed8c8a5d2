"""What every test starts from: an environment that holds nothing of the machine's own."""

import gc
import os
import re
import shutil
import signal
import sys
import tempfile
from collections import Counter
from itertools import count
from pathlib import Path
from zlib import crc32

import pytest

from tests.support import examples, scheduling

_FOREIGN = ("AWS_", "CHUNKMAP_", "PREFECT_", "DASK_")
CONTRACT_KEYS = pytest.StashKey[dict[str, str]]()
_PREFECT_HOME = tempfile.mkdtemp(prefix="chunkmap-tests-prefect-")
_folders = count()
_STATE = Path(__file__).parents[1] / ".chunkmap"
"""The state folder of whoever works in this checkout."""
_RENDERERS = (
    ("pipeline.runs.driver.report", "_estimate"),
    ("pipeline.runs.driver.report", "report_of"),
    ("pipeline.runs.driver.report", "render_html"),
    ("pipeline.runs.driver.report", "render_json"),
    ("pipeline.runs.driver.report", "render_markdown"),
    ("pipeline.runs.backfill.report", "render"),
)
"""Which functions compose and render the report of a run, and the page of a backfill."""


def pytest_configure(config: pytest.Config) -> None:
    """Clears settings and credentials of this machine, before anything reads them at import.

    Once a process, not once a test: a fixture of a module or a session may then set what it needs.
    """
    foreign = {name: os.environ[name] for name in os.environ if name.startswith(_FOREIGN)}
    if "CONTRACT_S3" in os.environ:
        # The one service of somebody else's that tests may use (tests/storage).
        config.stash[CONTRACT_KEYS] = {n: v for n, v in foreign.items() if n.startswith("AWS_")}
    for name in foreign:
        del os.environ[name]
    examples.load_profile()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # As in the background of a shell: Ctrl-C would do nothing to us, and to what we start.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Hundreds of processes are started, and each would compile our modules for itself.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ |= {
        # A test must never find the credentials of whoever runs it, nor ask a cloud for some.
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "DO_NOT_TRACK": "1",
        # Several processes of tests, and all that they start, share few cores.
        "POLARS_MAX_THREADS": "1",
        "PREFECT_HOME": _PREFECT_HOME,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    _guard_state_folder()
    gc.disable()  # Until all tests are collected: nearly all that is made until then stays.


def _guard_state_folder() -> None:
    """Have tests fail that keep state in the checkout, where it is its user's."""
    from pipeline import private

    make_folder = private.make_folder

    def make_folder_of_a_test(folder: Path) -> Path:
        assert _STATE not in (folder.absolute(), *folder.absolute().parents), (
            "a test keeps state in the checkout: give its settings a state_dir, or chdir to "
            "tmp_path before they are loaded"
        )
        return make_folder(folder)

    private.make_folder = make_folder_of_a_test


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves to `make test-long` what would take `make test` beyond twelve minutes."""
    left_out = [item for item in items if item.get_closest_marker("long")] + _not_sampled(items)
    if left_out and not os.environ.get("LONG"):
        config.hook.pytest_deselected(items=left_out)
        kept = set(items) - set(left_out)
        items[:] = [item for item in items if item in kept]
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: scheduling.rank(item.nodeid))


def _not_sampled(items: list[pytest.Item]) -> list[pytest.Item]:
    """Return the cases of tests marked `sampled(n)` but every n-th."""
    counts: Counter[str] = Counter()
    left_out: list[pytest.Item] = []
    for item in items:
        marker = item.get_closest_marker("sampled")
        if marker is None:
            continue
        test = item.nodeid.partition("[")[0]
        if counts[test] % marker.args[0]:
            left_out.append(item)
        counts[test] += 1
    return left_out


@pytest.fixture(autouse=True)
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the reports of runs and backfills empty: to render one takes as long as a small run.

    They are drawn where a test asks for `drawn`, and in every 200th test; in all tests with LONG
    set.
    """
    asks = "drawn" in request.fixturenames or "LONG" in os.environ
    if asks or crc32(request.node.nodeid.encode()) % 200 == 0:
        return
    for module, function in _RENDERERS:
        if module in sys.modules:
            monkeypatch.setattr(sys.modules[module], function, lambda *_, **__: "{}")


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the test. To number it, pytest's own fixture lists those of all tests before."""
    name = re.sub(r"\W", "_", request.node.name)[:30]
    path = tmp_path_factory.getbasetemp() / f"{name}-{next(_folders)}"
    path.mkdir(mode=0o700)
    return path


@pytest.fixture
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that are loaded in the checkout keep state elsewhere."""
    monkeypatch.setenv("CHUNKMAP_STATE_DIR", str(tmp_path / ".chunkmap"))


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test runs in a folder of its own, where default settings keep state."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def drawn() -> None:
    """A test that asks for it has the reports of its runs rendered."""


def pytest_collection_finish() -> None:
    """Spares the garbage collector what lives as long as the process: modules, and the tests."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Which process of tests runs what."""
    return scheduling.scheduler(config, log)


def pytest_unconfigure() -> None:
    """Removes what Prefect kept for this process."""
    shutil.rmtree(_PREFECT_HOME, ignore_errors=True)
