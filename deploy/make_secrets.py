"""Make passwords, S3 identities and certificates of the cluster, each in a separate volume.

Runs before all other services, at each start, and keeps existing secrets. A file in deploy/secrets
is used instead of a generated secret. Each volume is mounted only where its secret is needed, and
that with the authority's key (`authority`) only here.

    make_secrets.py [--renew tls|s3]
"""

import argparse
import configparser
import json
import os
import re
import secrets
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from pipeline.cluster.certificates import make
from pipeline.cluster.local.seaweedfs import certificates as certificates_of_s3
from pipeline.cluster.local.seaweedfs import security_toml

MADE = Path(os.environ.get("SECRETS", "/secrets"))
GIVEN = Path(os.environ.get("GIVEN", "/given"))
POLICIES = Path(__file__).parent / "policies"
US = int(os.environ.get("CHUNKMAP_UID", "10001"))
SERVERS = int(os.environ.get("SERVERS_GID", "999"))
"""Id of the group of PostgreSQL and Redis in their images."""
ROLES = ("admin", "driver", "worker")
PASSWORD = re.compile(r"[A-Za-z0-9._~-]{12,}\n?")
"""Pattern of passwords that need no quoting in an address or a configuration file."""
S3_FOLDER = "/etc/seaweedfs"
"""Path of the volume `s3-server` in SeaweedFS's container."""


@dataclass(frozen=True, slots=True)
class Reach:
    """Buckets, and prefixes (as `bucket/prefix`) that policies grant access to."""

    buckets: tuple[str, ...]
    inputs: tuple[str, ...]
    """Prefixes of inputs, which workers never write to; if empty, all of the buckets."""
    outputs: tuple[str, ...]
    """Outputs; one that ends with a slash stands for all outputs below it."""
    tables: tuple[str, ...] = ()
    """Prefixes of tables that transforms read."""

    def names(self, *, denied: bool) -> dict[str, tuple[str, ...]]:
        """Return the values of each placeholder of a template; longer placeholders come first."""
        anywhere = tuple(f"{bucket}/" for bucket in self.buckets)
        outputs = tuple(
            f"{name}*" if name.endswith("/") else name for name in self.outputs or anywhere
        )
        inputs = self.inputs or (() if denied else anywhere)
        return {
            "OUTPUT_KEY": keys(outputs),
            "TABLE_KEY": keys(self.tables),
            "BUCKET": self.buckets,
            "INPUT": inputs,
            "OUTPUT": outputs,
            "TABLE": self.tables,
        }


def main() -> None:
    """Make missing secrets."""
    parser = argparse.ArgumentParser(description="Make missing secrets of the cluster.")
    parser.add_argument("--renew", choices=("tls", "s3"), action="append", default=[])
    renew = parser.parse_args().renew
    certificates(force="tls" in renew)
    password("prefect", "auth", "prefect-auth", prefix="chunkmap:")
    password("postgres", "password", "postgres-password", readers=SERVERS)
    redis_password = password("redis", "password", "redis-password", readers=SERVERS)
    write(MADE / "redis/redis.conf", f"requirepass {redis_password}\n", readers=SERVERS)
    own_s3 = os.environ.get("S3_REPLICAS") == "0"
    for role in ROLES:
        credentials(role, own_s3=own_s3, renew="s3" in renew)
    if not own_s3:
        identities()
        internal_certificates()


def certificates(*, force: bool) -> None:
    """Make one certificate per role; the authority's key stays in its volume."""
    authority = MADE / "authority"
    made = make(authority, ("dask-scheduler", "dask-worker"), force=force)
    for part in ("scheduler", "worker", "client"):
        for name, source in (("ca", "ca"), ("cert", part), ("key", f"{part}-key")):
            text = (authority / f"{source}.pem").read_text("ascii")
            write(MADE / f"tls-{part}/{name}.pem", text)
    say("tls", f"{len(made.written)} files made, {len(made.kept)} kept")


def password(volume: str, name: str, given: str, *, prefix: str = "", readers: int = US) -> str:
    """Take a password from deploy/secrets, keep an existing one, or make one; returns it."""
    path = MADE / volume / name
    if (GIVEN / given).exists():
        text = (GIVEN / given).read_text("utf-8")
        if not PASSWORD.fullmatch(text.removeprefix(prefix)):
            sys.exit(f"{given}: at least 12 letters, digits and ._~-, after {prefix!r}")
        found = text.rstrip("\n")
    elif path.exists():
        found = path.read_text("utf-8")
    else:
        found = prefix + secrets.token_hex(24)
        say(volume, "made")
    write(path, found, readers=readers)
    return found


def credentials(role: str, *, own_s3: bool, renew: bool) -> None:
    """Write the AWS credentials file of a role; with another S3, only one from deploy/secrets."""
    path = MADE / f"s3-{role}/credentials"
    given = GIVEN / f"s3-{role}-credentials"
    if given.exists():
        write(path, given.read_text("utf-8"))
    elif own_s3:
        path.unlink(missing_ok=True)
    elif renew or not path.exists():
        key = "CHUNKMAP" + secrets.token_hex(6).upper()
        secret = secrets.token_urlsafe(30)
        text = f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n"
        write(path, text)
        say(f"s3-{role}", "made")


def identities() -> None:
    """Write SeaweedFS's identities with their policies from deploy/policies."""
    reach = Reach(
        listed("S3_BUCKETS", "demo"),
        listed("S3_INPUTS", "demo/tpch/"),
        listed("S3_OUTPUTS", ""),
        listed("S3_TABLES", ""),
    )
    entries, policies = [], []
    for role in ROLES:
        file = configparser.ConfigParser()
        file.read_string((MADE / f"s3-{role}/credentials").read_text("utf-8"))
        profile = file["default"]
        entry: dict[str, object] = {
            "name": role,
            "credentials": [
                {
                    "accessKey": profile["aws_access_key_id"],
                    "secretKey": profile["aws_secret_access_key"],
                }
            ],
        }
        if role == "admin":
            entry["actions"] = ["Admin", "Read", "Write", "List", "Tagging"]
        else:
            template = json.loads((POLICIES / f"{role}.json").read_text("utf-8"))
            policies.append({"name": role, "content": json.dumps(policy(template, reach))})
            entry["policyNames"] = [role]
        entries.append(entry)
    text = json.dumps({"identities": entries, "policies": policies}, indent=1)
    write(MADE / "s3-server/s3.json", text)


def policy(template: dict[str, object], reach: Reach) -> dict[str, object]:
    """Fill a template with buckets and prefixes.

    `BUCKET` stands for each bucket, `INPUT`, `OUTPUT` and `TABLE` for each prefix, and with `_KEY`
    for the prefix without its bucket; without named outputs, they may be anywhere in the buckets. A
    statement without resources is left out.
    """
    statements = []
    for statement in template["Statement"]:  # type: ignore[attr-defined]
        names = reach.names(denied=statement["Effect"] == "Deny")
        filled = {**statement, "Resource": expand(statement["Resource"], names)}
        if "Condition" in statement:
            prefixes = expand(statement["Condition"]["StringLike"]["s3:prefix"], names)
            filled["Condition"] = {"StringLike": {"s3:prefix": prefixes}}
        if filled["Resource"]:
            statements.append(filled)
    return {**template, "Statement": statements}


def expand(texts: list[str], names: dict[str, tuple[str, ...]]) -> list[str]:
    """Repeat each text for every value of its placeholder."""
    filled = []
    for text in texts:
        word = next((word for word in names if word in text), None)
        filled += [text] if word is None else [text.replace(word, name) for name in names[word]]
    return list(dict.fromkeys(filled))


def keys(names: tuple[str, ...]) -> tuple[str, ...]:
    """Strip the bucket from prefixes."""
    return tuple(dict.fromkeys(name.partition("/")[2] for name in names))


def internal_certificates() -> None:
    """Make certificates for SeaweedFS's internal calls, whose S3 port is open to the network.

    They have a separate authority, so that the cluster's workers have no access.
    """
    folder = MADE / "s3-server"
    for name, text in certificates_of_s3(MADE / "authority/s3").items():
        write(folder / name, text)
    # No tokens: the ports that would require them listen inside the server's container only.
    write(folder / "security.toml", security_toml(S3_FOLDER, {}))


def listed(name: str, default: str) -> tuple[str, ...]:
    """Read a variable that holds names separated by commas."""
    return tuple(filter(None, (part.strip() for part in os.environ.get(name, default).split(","))))


def write(path: Path, text: str, *, readers: int = US) -> None:
    """Replace a file, readable by its reader only; its folder is the volume's root."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    own(draft, readers)
    draft.replace(path)


def own(path: Path, group: int) -> None:
    """Give a file to the user of the images, and to a group that may read it."""
    if os.geteuid() == 0:
        shutil.chown(path, US, group)
    path.chmod(0o400 if group == US else 0o440)


def say(what: str, how: str) -> None:
    """Print a line for the log; never a secret."""
    print(f"{what}: {how}", flush=True)


if __name__ == "__main__":
    main()
