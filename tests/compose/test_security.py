"""Who is let in, what can be reached, and where secrets are."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
from collections.abc import Callable
from contextlib import closing
from typing import Any

import psutil
import pytest
from botocore.exceptions import ClientError

from tests.compose.cluster import Cluster
from tests.compose.engine import wait_until

# Runs in a driver's container: how far does a caller get with these certificates? A refusal may
# come with the first answer only, since a TLS 1.3 client is done before the server has looked.
KNOCK = """
import socket, ssl, sys
host, port, ca, cert, key = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
context.check_hostname = False
if cert != "-":
    context.load_cert_chain(cert, key)
try:
    with context.wrap_socket(socket.create_connection((host, int(port)), timeout=10)) as one:
        one.settimeout(10)
        print("answered" if one.recv(1) else "closed")
except ssl.SSLError as error:
    print("refused", error.reason)
"""
REACH = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], 4200), timeout=3)
    print("reached")
except OSError:
    print("no way")
"""
TLS = "/etc/chunkmap/tls"
WORKER = re.compile(r"tls://([\d.]+):(\d+)")


def knock(cluster: Cluster, port: int, ca: str, cert: str, key: str, host: str) -> str:
    return cluster.inside(
        "prefect-worker", "python", "-c", KNOCK, host, str(port), ca, cert, key
    ).strip()


def worker_address(cluster: Cluster) -> tuple[str, int]:
    # One that has just been started is known to the scheduler a moment after it is healthy.
    cluster.await_healthy("dask-worker")
    seen = [""]

    def known() -> bool:
        seen.append(cluster.chunkmap("cluster", "status", "--json"))
        return WORKER.search(seen[-1]) is not None

    assert wait_until(known, 120), seen[-1]
    found = WORKER.search(seen[-1])
    assert found is not None
    return found[1], int(found[2])


@pytest.mark.parametrize("who", ["scheduler", "worker"])
def test_dask_asks_for_a_certificate_of_its_authority(cluster: Cluster, who: str) -> None:
    at = ("dask-scheduler", 8786) if who == "scheduler" else worker_address(cluster)
    host, port = at
    own = (f"{TLS}/ca.pem", f"{TLS}/cert.pem", f"{TLS}/key.pem")
    assert knock(cluster, port, *own, host=host) == "answered"
    assert knock(cluster, port, own[0], "-", "-", host=host).startswith("refused")
    cluster.inside("prefect-worker", "chunkmap", "tls", "init", "--directory", "/tmp/other")
    other = ("/tmp/other/client.pem", "/tmp/other/client-key.pem")
    assert knock(cluster, port, own[0], *other, host=host).startswith("refused")


def test_seaweedfs_asks_for_a_certificate_of_its_own(cluster: Cluster) -> None:
    """At the port of S3's internal calls, through which identities could be changed."""
    own = (f"{TLS}/ca.pem", f"{TLS}/cert.pem", f"{TLS}/key.pem")
    said = knock(cluster, 18333, *own, host="s3")
    assert said.startswith("refused"), said


def test_only_s3_itself_can_be_reached_of_seaweedfs(cluster: Cluster) -> None:
    """Its filer and volumes serve whoever asks, so nobody else must be able to."""
    (s3,) = cluster.containers("s3")
    # As /proc shows them: 0A is listening; addresses that start with 7F are the loopback.
    table = cluster.engine("exec", s3.id, "cat", "/proc/net/tcp", "/proc/net/tcp6")
    listening = {
        int(line.split()[1].rpartition(":")[2], 16)
        for line in table.splitlines()
        if line.split()[3] == "0A" and not line.split()[1].endswith("7F", 6, 8)
    }
    dns = {port for port in listening if port >= 32768}  # Docker's resolver, at 127.0.0.11
    assert listening - dns == {8333, 9327, 18333}


def prefect(cluster: Cluster, method: str, path: str, **headers: str) -> tuple[int, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", cluster.ports["PREFECT_PORT"], timeout=30)
    with closing(connection):
        connection.request(method, path, headers=headers, body="{}" if method == "POST" else None)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}


def test_prefect_asks_for_the_password(cluster: Cluster) -> None:
    assert prefect(cluster, "GET", "/api/health")[0] == 200
    assert prefect(cluster, "GET", "/api/admin/version")[0] == 401
    # What changes something is asked for its CSRF token first, which only the password gives.
    assert prefect(cluster, "POST", "/api/flow_runs/filter")[0] == 403
    assert prefect(cluster, "GET", "/api/csrf-token?client=x")[0] == 401
    wrong = "Basic " + "Y2h1bmttYXA6d3Jvbmc="
    assert prefect(cluster, "GET", "/api/admin/version", Authorization=wrong)[0] == 401


def test_prefect_asks_for_a_csrf_token(cluster: Cluster) -> None:
    basic = cluster.inside(
        "prefect-worker",
        *("sh", "-c", 'printf %s "$PREFECT_API_AUTH_STRING" | base64 --wrap=0'),
    ).strip()
    known = {"Authorization": f"Basic {basic}", "Content-Type": "application/json"}
    assert prefect(cluster, "GET", "/api/admin/version", **known)[0] == 200
    assert prefect(cluster, "POST", "/api/flow_runs/", **known)[0] == 403


def test_prefect_lets_no_other_page_call_it(cluster: Cluster) -> None:
    port = cluster.ports["PREFECT_PORT"]
    for origin, allowed in ((f"http://127.0.0.1:{port}", True), ("http://evil.invalid", False)):
        headers = prefect(cluster, "GET", "/api/health", Origin=origin)[1]
        assert (headers.get("access-control-allow-origin") == origin) is allowed


def test_only_loopback_ports_are_published(cluster: Cluster) -> None:
    published = set()
    for container in cluster.all_containers():
        for bindings in (container.details["HostConfig"]["PortBindings"] or {}).values():
            published |= {(binding["HostIp"], int(binding["HostPort"])) for binding in bindings}
    wanted = {name: cluster.ports[name] for name in ("PREFECT_PORT", "DASHBOARD_PORT", "S3_PORT")}
    assert published == {("127.0.0.1", port) for port in wanted.values()}
    for connection in psutil.net_connections("tcp"):
        ip, port = connection.laddr or ("", 0)
        assert connection.status != "LISTEN" or port not in wanted.values() or ip == "127.0.0.1"


def test_containers_may_do_nothing_special(cluster: Cluster) -> None:
    for container in cluster.all_containers():
        service = container.details["Config"]["Labels"]["com.docker.compose.service"]
        host = container.details["HostConfig"]
        assert host["ReadonlyRootfs"], service
        assert host["CapDrop"] == ["ALL"], service
        assert "no-new-privileges:true" in host["SecurityOpt"], service
        assert host["Memory"] and host["PidsLimit"], service
        assert not host["Privileged"], service
        if service == "secrets":
            assert container.details["HostConfig"]["NetworkMode"] == "none"
        else:
            assert not host["CapAdd"], service
            assert container.details["Config"]["User"].partition(":")[0] not in ("", "0"), service


def secrets_of(cluster: Cluster) -> dict[str, str]:
    """Every secret there is, by where it is kept."""
    names = ("prefect", "postgres", "redis", "s3-admin", "s3-driver", "s3-worker", "s3-server")
    certificates = ("authority", "tls-scheduler", "tls-worker", "tls-client")
    volumes = [f"secret-{name}" for name in names] + list(certificates)
    mounts = [f"--volume={cluster.project}_{name}:/all/{name}:ro" for name in volumes]
    said = cluster.engine(
        *("run", "--rm", "--user", "0", "--network", "none", "--entrypoint", "python"),
        *mounts,
        "chunkmap:local",
        "-c",
        "import json, pathlib\n"
        "print(json.dumps({str(p): p.read_text() for p in pathlib.Path('/all').rglob('*')"
        " if p.is_file()}))",
    )
    found = {}
    for path, text in json.loads(said).items():
        if "key.pem" in path:
            found[path] = text.splitlines()[1]
        elif path.endswith(("auth", "password")):
            found[path] = text.rpartition(":")[2]
        elif path.endswith("credentials"):
            found[path] = text.rpartition(" = ")[2].strip()
    assert len(found) == 18, sorted(found)
    return found


@pytest.fixture(scope="module")
def secrets(cluster: Cluster) -> dict[str, str]:
    return secrets_of(cluster)


def _inspected(cluster: Cluster) -> str:
    return json.dumps([container.details for container in cluster.all_containers()])


def _histories(cluster: Cluster) -> str:
    tags = ("chunkmap:local", "chunkmap-s3:local")
    shown = [cluster.engine("history", "--no-trunc", tag) for tag in tags]
    return "\n".join([*shown, *(cluster.engine("image", "inspect", tag) for tag in tags)])


def _logs(cluster: Cluster) -> str:
    return cluster("--profile", "*", "logs", "--no-color")


def _processes(cluster: Cluster) -> str:
    return subprocess.run(
        ["ps", "-eo", "args", "-ww"], capture_output=True, text=True, check=True
    ).stdout


def _composed(cluster: Cluster) -> str:
    return cluster("--profile", "*", "config")


@pytest.mark.parametrize("place", [_inspected, _histories, _logs, _processes, _composed])
def test_no_secret_is_in(
    cluster: Cluster, secrets: dict[str, str], place: Callable[[Cluster], str]
) -> None:
    text = place(cluster)
    assert len(text) > 500
    assert not [path for path, secret in secrets.items() if secret in text]


def test_workers_do_not_have_what_they_need_not(cluster: Cluster) -> None:
    for worker in cluster.containers("dask-worker"):
        mounts = worker.details["Mounts"]
        volumes = {mount["Name"] for mount in mounts if mount["Type"] == "volume"}
        held = {name.removeprefix(f"{cluster.project}_") for name in volumes}
        assert held == {"secret-s3-worker", "tls-worker"}
        folders = [mount["Destination"] for mount in mounts if mount["Type"] != "volume"]
        assert folders == ["/app/cluster_transforms.py"], "the transforms of these tests"


@pytest.mark.parametrize("who", ["dask-worker", "dask-scheduler"])
def test_what_runs_code_that_it_is_sent_does_not_reach_prefect(cluster: Cluster, who: str) -> None:
    """Whoever may use its API can have any command run where flows run."""
    variables = cluster.inside(who, "env")
    assert not re.search(r"^PREFECT_\w*(AUTH|KEY|URL)\w*=", variables, re.MULTILINE)
    (server,) = cluster.containers("prefect-server")
    networks = server.details["NetworkSettings"]["Networks"].values()
    # Neither by name nor by address, which is what the engine's firewall is for.
    for host in ("prefect-server", *(network["IPAddress"] for network in networks)):
        said = cluster.inside(who, "python", "-c", REACH, host)
        assert said.strip() == "no way", host
    assert cluster.inside("prefect-worker", "python", "-c", REACH, "prefect-server") == "reached\n"


REFUSED: dict[str, Callable[[Any], Any]] = {
    "delete": lambda s3: s3.delete_object(Bucket="demo", Key="demo.txt"),
    "write the pointer": lambda s3: s3.put_object(
        Bucket="demo", Key="out/x.chunkmap/HEAD.json", Body=b"{}"
    ),
    "write a manifest": lambda s3: s3.put_object(
        Bucket="demo", Key="out/x.chunkmap/manifests/1.json", Body=b"{}"
    ),
    "write a commit record": lambda s3: s3.put_object(
        Bucket="demo", Key="out/x.chunkmap/commits/r.arrow", Body=b""
    ),
    "write its input": lambda s3: s3.put_object(Bucket="demo", Key="tpch/x.parquet", Body=b""),
    "make a bucket": lambda s3: s3.create_bucket(Bucket="other"),
    "change rights": lambda s3: s3.put_bucket_policy(Bucket="demo", Policy="{}"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_workers_may_not(cluster: Cluster, what: str) -> None:
    with pytest.raises(ClientError, match="AccessDenied"):
        REFUSED[what](cluster.s3("worker").client())


def test_workers_may_stage_and_record(cluster: Cluster) -> None:
    s3 = cluster.s3("worker").client()
    key = "out/x.chunkmap/runs/r/completions/1.jsonl.zst"
    s3.put_object(Bucket="demo", Key=key, Body=b"x")
    upload = s3.create_multipart_upload(Bucket="demo", Key="out/x/a.parquet")["UploadId"]
    s3.upload_part(Bucket="demo", Key="out/x/a.parquet", UploadId=upload, PartNumber=1, Body=b"x")
    cluster.s3().client().delete_object(Bucket="demo", Key=key)
