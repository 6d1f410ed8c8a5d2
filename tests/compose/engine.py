"""A container engine: the one that answers, or Debian's own, started for the tests alone."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_SECONDS = 60.0
APT = ("apt-get", "-qq", "--yes", "--no-install-recommends")
CLONE_NEWNET = 0x40000000
BUILDING = ("--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false")
"""Of a daemon that only builds, on this machine's network: it changes nothing there."""
RUNNING = ("--bip=172.29.0.1/24", "--default-address-pool=base=172.30.0.0/16,size=24")
"""Of a daemon that runs containers, in a network namespace of its own, with its usual firewall."""
# Bookworm's Compose is of another generation; the newest is a single static program.
SUITES_WITH_COMPOSE = ("sid", "unstable", "trixie")


class NoEngineError(Exception):
    """Says why no engine can be had here; the tests are skipped with it."""


@dataclass(frozen=True, slots=True)
class Engine:
    """How to talk to an engine.

    Attributes:
        program: The client, `docker`.
        variables: Its environment.
        is_ours: Whether it was started for these tests; then no image can be pulled.
        folder: For what the tests make.
    """

    program: str
    variables: Mapping[str, str]
    is_ours: bool
    folder: Path

    def __call__(
        self, *arguments: str, check: bool = True, seconds: float = 600, text: str | None = None
    ) -> str:
        """Run `docker …`; returns its standard output."""
        done = subprocess.run(
            [self.program, *arguments],
            env=dict(self.variables),
            capture_output=True,
            text=True,
            timeout=seconds,
            input=text,
            check=False,
        )
        if check and done.returncode:
            said = f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
            raise AssertionError(f"docker {' '.join(arguments)}: {done.returncode}\n{said}")
        return done.stdout if check else done.stdout + done.stderr


@contextmanager
def building_engine(folder: Path) -> Iterator[Engine]:
    """The engine that DOCKER_HOST or the usual socket leads to, else one that is started here.

    One that is started here builds images, but runs no containers with a network.

    Raises:
        NoEngineError: none answers, and none can be started.
    """
    found = shutil.which("docker")
    if found and _answers(found, dict(os.environ)) and _has_compose(found, dict(os.environ)):
        yield Engine(found, dict(os.environ), is_ours=False, folder=folder)
        return
    _install()
    config = folder / "config"
    _add_compose(config / "cli-plugins", folder)
    with _daemon(folder, BUILDING) as socket:
        variables = {
            **os.environ,
            "DOCKER_HOST": f"unix://{socket}",
            "DOCKER_CONFIG": str(config),
            "DOCKER_BUILDKIT": "1",
        }
        yield Engine("/usr/bin/docker", variables, is_ours=True, folder=folder)


@contextmanager
def running_engine(builder: Engine) -> Iterator[Engine]:
    """An engine with the images of one that has built them, which is stopped if it is ours.

    For one of ours, this process leaves the machine's network for good: containers, their bridges
    and the firewall are in a namespace that ends with it, and the machine's own stays as it was.
    """
    if builder.is_ours:
        _enter_own_network()
        with _daemon(builder.folder, RUNNING):
            yield builder
    else:
        yield builder


def _enter_own_network() -> None:
    # Of this thread and all that it starts; those that run already stay where they are.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        raise NoEngineError(f"no network namespace: {os.strerror(ctypes.get_errno())}")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def _answers(program: str, variables: Mapping[str, str]) -> bool:
    return _succeeds([program, "info", "--format", "{{.ID}}"], variables)


def _has_compose(program: str, variables: Mapping[str, str]) -> bool:
    return _succeeds([program, "compose", "version"], variables)


def _succeeds(command: list[str], variables: Mapping[str, str]) -> bool:
    done = subprocess.run(
        command, env=dict(variables), capture_output=True, check=False, timeout=30
    )
    return done.returncode == 0


def _install() -> None:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise NoEngineError("no Docker engine answers; only root on Debian can start one here")
    wanted = {
        **{"docker.io": "dockerd", "debootstrap": "debootstrap"},
        **{"iptables": "iptables", "iproute2": "ip"},
    }
    missing = [package for package, program in wanted.items() if shutil.which(program) is None]
    if missing:
        print(f"installing {', '.join(missing)}", flush=True)
        _apt(["apt-get", "-qq", "update"])
        _apt([*APT, "install", *missing])


def _apt(command: list[str]) -> None:
    variables = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(
        command, env=variables, capture_output=True, text=True, check=False, timeout=600
    )
    if done.returncode:
        raise NoEngineError(f"{' '.join(command)}: {done.stderr.strip()[-500:]}")


def mirror() -> str:
    """Where this machine has its Debian packages from."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE) $(LABEL) $(ORIGIN)"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    sites = [line.split()[0] for line in listed.splitlines() if "Debian" in line]
    plain = [site for site in sites if not site.endswith("-security")]
    if not plain:
        raise NoEngineError("apt knows no mirror of Debian")
    return plain[0].rstrip("/")


def _add_compose(plugins: Path, folder: Path) -> None:
    plugins.mkdir(parents=True, exist_ok=True)
    own = Path("/usr/libexec/docker/cli-plugins/docker-compose")
    if own.exists():
        shutil.copy2(own, plugins)
        return
    apt = folder / "apt"
    for part in ("lists/partial", "cache/archives/partial"):
        (apt / part).mkdir(parents=True, exist_ok=True)
    keys = "/usr/share/keyrings/debian-archive-keyring.gpg"
    for suite in SUITES_WITH_COMPOSE:
        (apt / "list").write_text(f"deb [signed-by={keys}] {mirror()} {suite} main\n", "utf-8")
        options = {
            "Dir::Etc::sourcelist": apt / "list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::State::lists": apt / "lists",
            "Dir::Cache": apt / "cache",
            "APT::Sandbox::User": "root",
        }
        flags = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        try:
            _apt(["apt-get", "-qq", *flags, "update"])
            # Unpacked, not installed: it is of another release than this machine.
            subprocess.run(
                ["apt-get", "-qq", *flags, "download", "docker-compose"],
                cwd=apt,
                check=True,
                capture_output=True,
                timeout=300,
            )
        except (NoEngineError, subprocess.CalledProcessError):
            continue
        (package,) = apt.glob("docker-compose_*.deb")
        subprocess.run(["dpkg-deb", "-x", package, apt / "unpacked"], check=True)
        shutil.copy2(apt / "unpacked/usr/libexec/docker/cli-plugins/docker-compose", plugins)
        return
    raise NoEngineError("no Debian suite at hand has Compose of the second generation")


@contextmanager
def _daemon(folder: Path, network: tuple[str, ...]) -> Iterator[Path]:
    """dockerd on a socket and with data of its own; stopped afterwards."""
    socket, log = folder / "docker.sock", folder / "dockerd.log"
    command = [
        "dockerd",
        "--storage-driver=overlay2",
        *network,
        f"--host=unix://{socket}",
        # Where it is kept from one call to the next, base images need not be made again.
        f"--data-root={os.environ.get('COMPOSE_ENGINE_DATA', folder / 'data')}",
        f"--exec-root={folder / 'exec'}",
        f"--pidfile={folder / 'docker.pid'}",
    ]
    with log.open("wb") as output:
        daemon = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        variables = {**os.environ, "DOCKER_HOST": f"unix://{socket}"}
        ready: Callable[[], bool] = lambda: _answers("/usr/bin/docker", variables)  # noqa: E731
        if not wait_until(ready, START_SECONDS, lambda: daemon.poll() is not None):
            raise NoEngineError(f"dockerd does not start here: {_last_error(log)}")
        yield socket
    finally:
        daemon.terminate()
        try:
            daemon.wait(60)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


def _last_error(log: Path) -> str:
    lines = log.read_text("utf-8", "replace").splitlines()
    return next((line for line in reversed(lines) if "failed" in line or "rror" in line), "")


def wait_until(
    condition: Callable[[], bool], seconds: float, over: Callable[[], bool] = lambda: False
) -> bool:
    """Whether a condition came true in time. For what engines tell nobody of by themselves."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not over():
        if condition():
            return True
        time.sleep(0.2)
    return condition()
