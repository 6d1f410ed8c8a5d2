"""What an account of this machine that holds no secret can do to the embedded stack: nothing."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import ssl
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest
from distributed import Client
from distributed.comm.registry import get_backend
from distributed.security import Security
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from pipeline.cluster.certificates import make
from pipeline.cluster.local import processes, seaweedfs
from pipeline.cluster.local.services import _weed
from pipeline.cluster.local.state import Service, StateFolder
from pipeline.cluster.tls import security_of
from pipeline.config.sections import TlsSettings
from tests.integration.world import World

pytestmark = pytest.mark.integration

SECRET = b"what only its owner may read"
KEY = "strangers/secret"
URI = f"s3://demo/{KEY}"
GRPC = (1, 3, 5, 7, 9)
"""Which of SeaweedFS's ports speak gRPC: of S3, master, volume, filer and admin."""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""With which a gRPC client begins."""
CONNECT = """
import os, socket, sys

os.setgroups([])
os.setgid(65534)
os.setuid(65534)
socket.socket(socket.AF_UNIX).connect(sys.argv[1])
"""
"""Connects as another account."""
REFUSED = (401, 403)
NONE: Mapping[str, str] = {}


@pytest.fixture(scope="module")
def services(world: World) -> dict[str, Service]:
    state = StateFolder(world.root / ".chunkmap").load()
    assert state is not None
    return {str(name): service for name, service in state.services.items()}


@pytest.fixture
def secret(world: World) -> Iterator[bytes]:
    """An object; it must be there, unchanged, and alone when the test has ended."""
    world.storage.put(URI, SECRET)
    yield SECRET
    assert world.storage.get(URI).data == SECRET
    assert world.objects("s3://demo/strangers/") == {(URI, world.storage.get(URI).etag)}


def listening(service: Service) -> set[int]:
    """Every port that a service's processes listen at."""
    leader = psutil.Process(service.pid)
    return {
        connection.laddr.port
        for process in (leader, *leader.children(recursive=True))
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }


def ask(
    method: str, address: str, body: bytes | None = None, headers: Mapping[str, str] = NONE
) -> tuple[int, bytes]:
    """An HTTP request's status and answer; 0 where nothing answers it."""
    request = urllib.request.Request(address, body, dict(headers), method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()
    except OSError:
        return 0, b""


# -- S3 -------------------------------------------------------------------------------------------


def test_no_port_of_s3_serves_or_changes_data(services: dict[str, Service], secret: bytes) -> None:
    ports = listening(services["s3"])
    assert ports == set(services["s3"].ports)
    reading = [
        f"/demo/{KEY}",  # as S3 has it
        f"/buckets/demo/{KEY}",  # as the filer has it
        "/buckets/demo/strangers/?pretty=y",
        "/1,01637037d6",  # as volumes have it
        "/dir/assign",  # which gives out the right to write, and the next the right to read
        "/dir/lookup?fileId=1,01637037d6&read=yes",
        "/vol/status",
    ]
    changing = [
        ("PUT", "/demo/strangers/made"),
        ("PUT", "/buckets/demo/strangers/made"),
        ("POST", "/buckets/demo/strangers/made"),
        ("DELETE", f"/demo/{KEY}"),
        ("DELETE", f"/buckets/demo/{KEY}"),
        ("DELETE", "/buckets/demo/strangers?recursive=true"),
        ("POST", "/1,01637037d6"),
        ("DELETE", "/1,01637037d6"),
        ("POST", "/submit"),
        ("POST", "/dir/assign"),
        ("POST", "/col/delete?collection=demo"),
        ("POST", "/vol/grow?count=1"),
    ]
    served = []
    for port in ports:
        for method, path in (*(("GET", path) for path in reading), *changing):
            body = None if method in ("GET", "DELETE") else b"made"
            code, answer = ask(method, f"http://127.0.0.1:{port}{path}", body)
            if 0 < code < 400 or secret in answer:
                served.append((services["s3"].ports.index(port), method, path, code))
    assert served == []


def test_its_own_services_talk_to_none_but_each_other(
    services: dict[str, Service], tmp_path: Path
) -> None:
    make(tmp_path)
    stranger = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    stranger.check_hostname, stranger.verify_mode = False, ssl.CERT_NONE
    stranger.set_alpn_protocols(["h2"])
    other = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    other.check_hostname, other.verify_mode = False, ssl.CERT_NONE
    other.load_cert_chain(tmp_path / "worker.pem", tmp_path / "worker-key.pem")
    other.set_alpn_protocols(["h2"])
    for port in (services["s3"].ports[index] for index in GRPC):
        assert not _is_spoken_to(port, None), port
        assert not _is_spoken_to(port, stranger), port
        assert not _is_spoken_to(port, other), port


def _is_spoken_to(port: int, context: ssl.SSLContext | None) -> bool:
    """Whether a gRPC server answers the beginning of a conversation, with its settings."""
    plain = socket.create_connection(("127.0.0.1", port), timeout=10)
    try:
        with plain if context is None else context.wrap_socket(plain) as talk:
            talk.sendall(PREFACE)
            answer = talk.recv(64)
    except OSError:
        return False
    finally:
        plain.close()
    return answer[3:4] == b"\x04"  # the type of a frame of settings


@pytest.mark.long
def test_seaweedfss_own_shell_needs_its_certificate(
    world: World, services: dict[str, Service], secret: bytes, tmp_path: Path
) -> None:
    assert secret.decode() in _shell(services["s3"], world.root / ".chunkmap/seaweedfs", tmp_path)
    assert secret.decode() not in _shell(services["s3"], tmp_path / "none", tmp_path)
    forged = tmp_path / "forged"
    forged.mkdir()
    for name, text in seaweedfs.certificates(tmp_path / "authority", 1).items():
        (forged / name).write_text(text)
    (forged / "security.toml").write_text(seaweedfs.security_toml(str(forged), {}))
    assert secret.decode() not in _shell(services["s3"], forged, tmp_path)


def _shell(service: Service, security: Path, home: Path) -> str:
    """What `weed shell` prints of the object, given some security.toml."""
    _, _, master, master_grpc, _, _, filer, filer_grpc, *_ = service.ports
    command = [_weed(), f"-config_dir={security}", "shell"]
    command += [f"-master=127.0.0.1:{master}.{master_grpc}"]
    command += [f"-filer=127.0.0.1:{filer}.{filer_grpc}"]
    script = f"fs.cat /buckets/demo/{KEY}\nexit\n"
    try:
        done = subprocess.run(
            command,
            input=script,
            capture_output=True,
            text=True,
            cwd=home,
            env={"HOME": str(home), "PATH": os.defpath},
            timeout=10,
            check=False,
        )
    except subprocess.TimeoutExpired as late:  # It tries again for ever.
        return (late.stdout or b"").decode()
    return done.stdout


def test_other_accounts_cannot_connect_to_its_sockets(services: dict[str, Service]) -> None:
    paths = {
        str(connection.laddr)
        for connection in psutil.Process(services["s3"].pid).net_connections("unix")
    } - {""}
    assert len([path for path in paths if path.startswith("/")]) == len(paths) >= 5
    for path in paths:
        assert not stat.S_IMODE(os.stat(path).st_mode) & 0o077, path
        if os.geteuid() == 0:
            assert not _connects(path), path


def _connects(path: str) -> bool:
    """Whether another account can connect to a socket."""
    tried = subprocess.run(
        [sys.executable, "-I", "-S", "-c", CONNECT, path], capture_output=True, check=False
    )
    assert b"PermissionError" in tried.stderr or not tried.returncode, tried.stderr
    return not tried.returncode


# -- Dask -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", [pytest.param("tcp", marks=pytest.mark.long), "tls"])
def test_no_process_of_dask_takes_a_strangers_message(
    services: dict[str, Service], tmp_path: Path, scheme: str
) -> None:
    """Who may send a message to the scheduler, a nanny or a worker may run code in it."""
    make(tmp_path)
    stranger = security_of(_tls(tmp_path)) if scheme == "tls" else None
    ports = listening(services["dask"])
    taken = asyncio.run(_those_that_answer(scheme, ports, stranger))
    assert taken == set()


def test_its_owner_can_submit_a_task(world: World, services: dict[str, Service]) -> None:
    security = security_of(world.settings.dask.tls)
    ports = listening(services["dask"])
    assert len(asyncio.run(_those_that_answer("tls", ports, security))) >= 1 + 2 * 2
    address = services["dask"].address
    with Client(address, security=security, set_as_default=False) as client:
        assert client.submit(sum, (40, 2)).result() == 42


def _tls(folder: Path) -> TlsSettings:
    files = {"ca": "ca.pem", "cert": "client.pem", "key": "client-key.pem"}
    return TlsSettings.model_validate({name: folder / file for name, file in files.items()})


async def _those_that_answer(scheme: str, ports: set[int], security: Security | None) -> set[int]:
    """The ports at which a process of Dask answers a message.

    Those of its pages are left out, which would wait for the rest of a request.
    """

    async def has_pages(port: int) -> bool:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        try:
            return await reader.read(4) == b"HTTP"
        except OSError:
            return False
        finally:
            writer.close()

    async def asked(port: int) -> bool:
        options = {} if security is None else security.get_connection_args("client")
        # Once: `distributed.comm.connect` would try a port that refuses again, for as long as told.
        comm = await get_backend(scheme).get_connector().connect(f"127.0.0.1:{port}", **options)
        try:
            await comm.write(comm.handshake_info())
            await comm.read()
            await comm.write({"op": "identity", "reply": True})
            return bool(await comm.read())
        finally:
            comm.abort()

    pages = await asyncio.gather(*(has_pages(port) for port in ports))
    left = [port for port, is_page in zip(ports, pages, strict=True) if not is_page]
    assert len(left) >= 1 + 2 * 2  # scheduler, then nanny and worker
    calls = [asyncio.wait_for(asked(port), 20) for port in left]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    return {port for port, answer in zip(left, answers, strict=True) if answer is True}


def test_dasks_pages_change_nothing(services: dict[str, Service]) -> None:
    page = services["dask"].page.removesuffix("/status")
    assert ask("GET", f"{page}/health")[0] == 200
    for path in ("/api/v1/retire_workers", "/api/v1/adaptive_target", "/health", "/info/workers"):
        assert ask("POST", page + path, b"{}")[0] >= 400


# -- Prefect --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def password(world: World) -> dict[str, str]:
    text = (world.root / ".chunkmap/prefect-password").read_text().strip()
    return {"Authorization": "Basic " + base64.b64encode(text.encode()).decode()}


def test_prefects_api_asks_for_the_password(services: dict[str, Service]) -> None:
    [port] = listening(services["prefect"])
    api = f"http://127.0.0.1:{port}/api"
    wrong = "Basic " + base64.b64encode(b"chunkmap:guessed").decode()
    for headers in ({}, {"Authorization": wrong}):
        assert ask("GET", f"{api}/admin/version", headers=headers)[0] == 401
        assert ask("GET", f"{api}/csrf-token?client=me", headers=headers)[0] == 401
        assert ask("POST", f"{api}/flow_runs/filter", b"{}", headers=headers)[0] in REFUSED
        assert ask("POST", f"{api}/variables/", b'{"name": "made"}', headers=headers)[0] in REFUSED
    # The processes that watch it have no password, and it tells them no more than that it lives.
    assert ask("GET", f"{api}/health") == (200, b"true")


@pytest.mark.parametrize("path", ["events/in", "events/out", "logs/out"])
def test_prefects_streams_ask_for_the_password(services: dict[str, Service], path: str) -> None:
    address = services["prefect"].address.replace("http://", "ws://")
    with (
        connect(f"{address}/{path}", subprotocols=["prefect"]) as stream,  # type: ignore[list-item]
        pytest.raises(ConnectionClosed),
    ):
        stream.send('{"type": "auth", "token": "guessed"}')
        while True:
            assert "auth_success" not in str(stream.recv(timeout=30))


def test_another_pages_requests_are_refused(
    services: dict[str, Service], password: dict[str, str]
) -> None:
    """A browser adds the origin to them, and asks first where they could change something."""
    api = services["prefect"].address
    asking = {"Access-Control-Request-Method": "POST"}
    for origin, allowed in (
        ("http://evil.example", False),
        ("null", False),
        ("http://127.0.0.1:1", False),
        (services["prefect"].page, True),
        (services["prefect"].page.replace("127.0.0.1", "localhost"), True),
    ):
        for method, more in (("OPTIONS", asking), ("GET", password)):
            request = urllib.request.Request(
                f"{api}/admin/version",
                method=method,
                headers={"Origin": origin, **more},
            )
            try:
                answer = urllib.request.urlopen(request, timeout=10)
            except urllib.error.HTTPError as error:
                answer = error
            with answer:
                found = answer.headers.get("Access-Control-Allow-Origin")
            assert found == (origin if allowed else None), (origin, method)


def test_a_request_without_its_token_changes_nothing(
    services: dict[str, Service], password: dict[str, str]
) -> None:
    api, body = services["prefect"].address, b'{"name": "made", "value": 1}'
    code, answer = ask("POST", f"{api}/variables/", body, headers=password)
    assert (code, b"Missing CSRF token" in answer) == (403, True)
    assert ask("GET", f"{api}/variables/name/made", headers=password)[0] == 404


def test_prefects_pages_ask_their_owner(world: World, services: dict[str, Service]) -> None:
    page = services["prefect"].page
    code, answer = ask("GET", f"{page}/ui-settings")
    assert code == 200
    assert b'"auth":"BASIC"' in answer
    assert b'"csrf_enabled":true' in answer
    said = world.chunkmap("up")
    file = world.root / ".chunkmap/prefect-password"
    assert f"page {page} (password in .chunkmap/prefect-password)" in said.out
    [told] = [
        service
        for service in world.chunkmap("up", "--json").data["services"]
        if service["page"] == page
    ]
    assert told["password_file"] == str(file)


def test_a_wrong_password_is_told_before_anything_runs(world: World) -> None:
    address = str(world.settings.prefect.api_url)
    job = world.job("unknown-here")
    for variables, problem in (
        ({"PREFECT_API_AUTH_STRING": "chunkmap:old"}, "refuses the password"),
        ({}, "requires a password"),
    ):
        refused = world.chunkmap("run", job, "--json", PREFECT_API_URL=address, **variables)
        assert refused.code == 2
        assert f"the Prefect server at {address} {problem} (prefect.auth_string)" in refused.err
    assert not world.objects("s3://demo/out/unknown-here")


def test_no_process_of_the_stack_is_unknown_to_these_tests(
    world: World, services: dict[str, Service]
) -> None:
    known = set()
    for service in services.values():
        leader = psutil.Process(service.pid)
        known |= {leader.pid, *(child.pid for child in leader.children(recursive=True))}
    marked = processes.marked(StateFolder(world.root / ".chunkmap").marker())
    assert {process.pid for process in marked} <= known
