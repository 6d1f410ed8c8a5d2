"""Worker processes of this machine: calls, errors, deaths, and their end with the driver."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from pipeline.config.settings import Settings, load_settings
from pipeline.errors import RunFailedError
from pipeline.local.workers import LocalWorkers, WorkerDiedError
from pipeline.runs.transforms.parcels import parcel_digest
from tests.support import local_calls

SECONDS = 60.0


def _settings(workers: int = 1) -> Settings:
    return load_settings(overrides={"dask": {"workers": workers}})


@pytest.fixture(scope="module")
def workers() -> Iterator[LocalWorkers]:
    with LocalWorkers(_settings()) as pool:
        yield pool


def test_a_call_has_the_name_of_its_worker(workers: LocalWorkers) -> None:
    name, process = workers.submit(local_calls.name_and_process).result(SECONDS)
    assert name == "local-0"
    assert process != os.getpid()


def test_workers_import_neither_prefect_nor_dask_nor_clients_of_s3(workers: LocalWorkers) -> None:
    names = ["prefect", "dask", "distributed", "prefect_dask", "botocore", "obstore", "polars"]
    assert workers.submit(local_calls.modules, names).result(SECONDS) == ["polars"]


def test_errors_of_a_call_are_raised_here(workers: LocalWorkers) -> None:
    with pytest.raises(ValueError, match="of the call"):
        workers.submit(local_calls.fail, "of the call").result(SECONDS)


def test_an_error_that_cannot_be_pickled_is_described(workers: LocalWorkers) -> None:
    with pytest.raises(RunFailedError, match="Odd: an odd error"):
        workers.submit(local_calls.raise_odd).result(SECONDS)


def test_a_worker_that_dies_fails_its_call_and_is_replaced(workers: LocalWorkers) -> None:
    with pytest.raises(WorkerDiedError, match=r"local-0 .* ended with exit code 7"):
        workers.submit(local_calls.die).result(SECONDS)
    assert workers.submit(local_calls.name_and_process).result(SECONDS)[0] == "local-0"


def test_a_worker_that_died_while_idle_fails_no_call(workers: LocalWorkers) -> None:
    _, process = workers.submit(local_calls.name_and_process).result(SECONDS)
    os.kill(process, signal.SIGKILL)
    _wait_until(lambda: not _is_running(process))
    assert workers.submit(local_calls.name_and_process).result(SECONDS)[1] != process


def test_what_a_transform_prints_is_a_log_line(
    workers: LocalWorkers, capfd: pytest.CaptureFixture[str]
) -> None:
    # Of a pool of its own, whose standard streams are those that the test has captured.
    with LocalWorkers(_settings()) as pool:
        pool.submit(local_calls.print_line, "from a transform").result(SECONDS)
    streams = capfd.readouterr()
    assert streams.out == ""
    assert "PRINTED" in streams.err and "from a transform" in streams.err


def test_a_worker_that_does_not_end_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.local.workers.STOP_SECONDS", 0.2)
    begun = tmp_path / "begun"
    with LocalWorkers(_settings()) as pool:
        call = pool.submit(local_calls.touch_and_wait, str(begun))
        process = _wait_for(begun)
    with pytest.raises(WorkerDiedError):
        call.result(SECONDS)
    assert not _is_running(process)


def test_a_call_for_the_first_workers_waits_for_them(tmp_path: Path) -> None:
    busy = tmp_path / "busy"
    with LocalWorkers(_settings(2)) as pool:
        first = pool.submit(local_calls.wait_until_gone, str(busy), among=1)
        _wait_until(busy.exists)
        waiting = pool.submit(local_calls.name_and_process, among=1)
        others = [pool.submit(local_calls.name_and_process).result(SECONDS) for _ in range(2)]
        assert {name for name, _ in others} == {"local-1"}
        assert not waiting.running() and not waiting.done()
        busy.unlink()
        assert first.result(SECONDS) == waiting.result(SECONDS)[0] == "local-0"


def test_a_function_is_sent_to_each_worker_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    send = Connection._send_bytes  # type: ignore[attr-defined]

    def count(connection: Connection, data: bytes) -> None:
        sent.append(len(data))
        send(connection, data)

    monkeypatch.setattr(Connection, "_send_bytes", count)
    parcel = os.urandom(200_000)
    functions = {parcel_digest(parcel): parcel}
    settings = load_settings(
        overrides={"dask": {"workers": 1}, "transforms": {"allow_by_value": True}}
    )
    with LocalWorkers(settings) as pool:
        for _ in range(50):
            pool.submit(local_calls.name_and_process, functions=functions).result(SECONDS)
        assert 200_000 < sum(sent) < 300_000
        with pytest.raises(WorkerDiedError):
            pool.submit(local_calls.die).result(SECONDS)
        pool.submit(local_calls.name_and_process, functions=functions).result(SECONDS)
    assert 400_000 < sum(sent) < 500_000


def test_workers_end_when_their_driver_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys; from pipeline.config.settings import Settings\n"
        "from pipeline.local.workers import LocalWorkers\n"
        "from tests.support import local_calls\n"
        "pool = LocalWorkers(Settings())\n"
        "print(pool.submit(local_calls.name_and_process).result()[1], flush=True)\n"
        "sys.stdin.read()"
    )
    driver = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert driver.stdin is not None and driver.stdout is not None
    with driver, driver.stdout, driver.stdin:
        worker = int(driver.stdout.readline())
        assert _is_running(worker)
        driver.kill()
    _wait_until(lambda: not _is_running(worker))


def _wait_for(path: Path) -> int:
    _wait_until(lambda: path.exists() and bool(path.read_text()))
    return int(path.read_text())


def _wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False
