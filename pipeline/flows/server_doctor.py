"""Diagnose the Prefect server: version, services, limits that are stuck, runs that are late."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
import prefect
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateName,
    FlowRunFilterStateType,
    TaskRunFilter,
    TaskRunFilterId,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import PrefectException
from pydantic import ValidationError

from pipeline.flows.finding import Finding, Level
from pipeline.flows.server import talking_to
from pipeline.report.humanize import duration, plural

RETRIES = 1
"""Retries of a request: whoever asks is waiting."""
PAGE = 200
"""Maximum number of objects in one answer of the server."""
MAX_READ = 5_000
"""Maximum number of objects of a kind that are read."""
MAX_NAMED = 3
"""Maximum number of names in a finding."""
DEPLOYMENT_PREFIX = "deployment:"
"""Start of the names of limits that Prefect makes for deployments; the rest is an id."""
HOLDING = (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING, StateType.PAUSED)
"""States in which a flow run may hold a slot of its deployment."""
SERVICES = {
    "scheduler": "schedules make no runs",
    "late_runs": "runs that nobody takes are not marked as late",
    "triggers": "automations do nothing: no watchdog, no notifications",
}
"""Services of the server that deployments need, with what is missing without them."""
ONLINE = "ONLINE"


@dataclass(frozen=True, slots=True)
class LimitView:
    """A global concurrency limit."""

    name: str
    limit: int
    active_slots: int


@dataclass(frozen=True, slots=True)
class LateRun:
    """A run that should have started."""

    name: str
    pool: str | None
    seconds: float


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What the checks look at.

    Attributes:
        version: Version of Prefect on the server.
        settings: Its settings, as nested mappings.
        limits: Its global concurrency limits.
        deployments: Names of all deployments, by their ids.
        holding: Number of flow runs that may hold a slot, by the ids of their deployments.
        running: Number of all flow runs that may hold a slot.
        ended_holders: Slots of tags' limits that task runs hold which have ended, by tag.
        late: Late runs, the oldest first.
        late_count: Number of late runs.
        online: Number of workers that are online, by the names of the pools of late runs.
    """

    version: str
    settings: Mapping[str, Any]
    limits: tuple[LimitView, ...]
    deployments: Mapping[str, str]
    holding: Mapping[str, int]
    running: int
    ended_holders: Mapping[str, int]
    late: tuple[LateRun, ...]
    late_count: int
    online: Mapping[str, int]


def examine_server(api_url: str, batch_limit: str | None = None) -> Iterator[Finding]:
    """Check a Prefect server that answers.

    Args:
        api_url: Address of its API.
        batch_limit: Name of the limit that batches take slots of (`batches.concurrency_limit`).
    """
    try:
        with talking_to(api_url, RETRIES), get_client(sync_client=True) as client:
            facts = read_facts(client)
    except (PrefectException, httpx.HTTPError, OSError, ValidationError) as error:
        yield Finding(
            "warning",
            "Prefect server",
            f"cannot be examined: {type(error).__name__}: {error}",
            "give it the same version of Prefect as this command",
        )
        return
    yield version_finding(prefect.__version__, facts.version)
    yield settings_finding(facts.settings)
    yield from limit_findings(facts, batch_limit)
    yield late_finding(facts)


def read_facts(client: SyncPrefectClient) -> ServerFacts:
    """Read what the checks look at."""
    before = _holding(client)
    limits = [
        LimitView(each.name, each.limit, each.active_slots)
        for each in _pages(lambda offset: client.read_global_concurrency_limits(PAGE, offset))
    ]
    deployments = _pages(lambda offset: client.read_deployments(limit=PAGE, offset=offset))
    flows: dict[Any, str] = {}
    for each in deployments:
        if each.flow_id not in flows:
            flows[each.flow_id] = client.read_flow(each.flow_id).name
    # Of two readings the higher counts: a run that ends in between has left its slot.
    after = _holding(client)
    late = _runs(client, FlowRunFilterState(name=FlowRunFilterStateName(any_=["Late"])))
    views = tuple(_late_view(each) for each in late)
    pools = {each.pool for each in views if each.pool is not None}
    return ServerFacts(
        version=str(_get(client, "/admin/version")),
        settings=_get(client, "/admin/settings"),
        limits=tuple(limits),
        deployments={str(each.id): f"{flows[each.flow_id]}/{each.name}" for each in deployments},
        holding=before | after,
        running=max(before.total(), after.total()),
        ended_holders=_ended_holders(client),
        late=views,
        late_count=len(late),
        online={pool: _online(client, pool) for pool in sorted(pools)},
    )


def version_finding(ours: str, theirs: str) -> Finding:
    """Compare the versions of Prefect of this process and of the server."""
    what = "Prefect version"
    if ours == theirs:
        return Finding("ok", what, f"server and client have {ours}")
    said = f"the server has {theirs}, this client {ours}"
    client, server = _minor(ours), _minor(theirs)
    if client == server:
        return Finding("ok", what, said)
    # Prefect supports servers that are newer than their clients.
    level: Level = "error" if server < client else "warning"
    return Finding(level, what, said, "give both the same version; update the server first")


def settings_finding(settings: Mapping[str, Any]) -> Finding:
    """Say which services of the server are off that deployments need, or that keep it small."""
    what = "Prefect services"
    services = _section(settings, "server", "services")
    off = [
        f"{name} is off: {without}"
        for name, without in SERVICES.items()
        if _section(services, name).get("enabled") is False
    ]
    vacuum = _section(services, "db_vacuum")
    if vacuum.get("enabled") in (False, None, []):
        off.append("db_vacuum is off: the database of events and runs grows without end")
    if off:
        fix = "set PREFECT_SERVER_SERVICES_…_ENABLED where the server starts"
        return Finding("warning", what, "; ".join(off), fix)
    return Finding("ok", what, "scheduler, late runs, automations and vacuum are on")


def limit_findings(facts: ServerFacts, batch_limit: str | None) -> Iterator[Finding]:
    """Name limits that nothing uses any more, and slots that nothing holds any more."""
    what = "Prefect limits"
    findings = list(_limit_problems(facts, batch_limit))
    yield from (Finding("warning", what, said, fix) for said, fix in findings)
    if not findings:
        count = plural(len(facts.limits), "limit")
        yield Finding("ok", what, f"{count}, with no slot that nothing holds")


def _limit_problems(facts: ServerFacts, batch_limit: str | None) -> Iterator[tuple[str, str]]:
    names = {limit.name for limit in facts.limits}
    if batch_limit is not None and batch_limit not in names:
        yield (
            f"there is no limit {batch_limit} (batches.concurrency_limit): batches run without it",
            f"prefect gcl create {shlex.quote(batch_limit)} --limit N",
        )
    stale = [
        limit.name
        for limit in facts.limits
        if limit.name.startswith(DEPLOYMENT_PREFIX)
        and limit.name.removeprefix(DEPLOYMENT_PREFIX) not in facts.deployments
    ]
    if stale:
        yield (
            f"{plural(len(stale), 'limit')} of deleted deployments: {_few(stale)}",
            f"prefect gcl delete {stale[0]}",
        )
    for limit in facts.limits:
        if limit.name in stale or not limit.active_slots:
            continue
        deployment = limit.name.removeprefix(DEPLOYMENT_PREFIX)
        is_deployment = limit.name.startswith(DEPLOYMENT_PREFIX)
        holding = facts.holding.get(deployment, 0) if is_deployment else facts.running
        # Several slots may be held for one run, unless the limit is that of a deployment.
        lost = limit.active_slots - holding
        # A run may hold several slots of a limit, unless it is that of its deployment.
        if lost > 0 and (is_deployment or not holding):
            shown = facts.deployments.get(deployment, limit.name)
            yield (
                f"{plural(lost, 'slot')} of {limit.limit} of {shown} {_is(lost)} held by nothing",
                "leases end within minutes; if this stays: prefect gcl update "
                f"{shlex.quote(limit.name)} --active-slots {holding}",
            )
    for tag, count in facts.ended_holders.items():
        yield (
            f"{plural(count, 'slot')} of the tag {tag} {_is(count)} held by "
            "task runs that have ended",
            f"prefect concurrency-limit reset {shlex.quote(tag)}",
        )


def late_finding(facts: ServerFacts) -> Finding:
    """Say which runs should have started, and whether their work pools have workers."""
    what = "late runs"
    if not facts.late:
        return Finding("ok", what, "none")
    oldest = max(facts.late, key=lambda each: each.seconds)
    said = (
        f"{plural(facts.late_count, 'run')} should have started; the oldest, {oldest.name}, "
        f"{duration(oldest.seconds)} ago"
    )
    idle = [pool for pool, count in facts.online.items() if not count]
    if idle:
        said += f"; no worker of {_few(idle)} is online"
        start = f"prefect worker start --pool {shlex.quote(idle[0])}"
        return Finding("warning", what, said, f'eval "$(chunkmap env --prefect)"; {start}')
    fix = "workers are busy or limits are reached: more workers, or higher concurrency limits"
    return Finding("warning", what, said, fix)


def _few(names: list[str]) -> str:
    rest = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {rest:,} more" if rest > 0 else "")


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def _minor(version: str) -> tuple[int, ...]:
    parts = version.partition("+")[0].split(".")[:2]
    return tuple(int(part) if part.isdigit() else 0 for part in parts)


def _section(settings: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """Return a section of settings; empty where this version of the server has none."""
    section: Any = settings
    for name in names:
        section = section.get(name) if isinstance(section, Mapping) else None
    return section if isinstance(section, Mapping) else {}


def _get(client: SyncPrefectClient, path: str) -> Any:
    route: Any = path
    return client.request("GET", route).json()


def _pages(read: Callable[[int], list[Any]]) -> list[Any]:
    found: list[Any] = []
    while len(found) < MAX_READ:
        page = read(len(found))
        found += page
        if len(page) < PAGE:
            break
    return found


def _runs(client: SyncPrefectClient, state: FlowRunFilterState) -> list[FlowRun]:
    wanted = FlowRunFilter(state=state)
    sort = FlowRunSort.EXPECTED_START_TIME_ASC
    return _pages(
        lambda offset: client.read_flow_runs(
            flow_run_filter=wanted, sort=sort, limit=PAGE, offset=offset
        )
    )


def _holding(client: SyncPrefectClient) -> Counter[str]:
    """Count the flow runs that may hold slots, by the ids of their deployments."""
    state = FlowRunFilterState(type=FlowRunFilterStateType(any_=list(HOLDING)))
    return Counter(str(each.deployment_id) for each in _runs(client, state))


def _ended_holders(client: SyncPrefectClient) -> dict[str, int]:
    """Count the slots of tags' limits whose task runs have ended."""
    ended = {}
    for limit in _pages(lambda offset: client.read_concurrency_limits(PAGE, offset)):
        held = list(limit.active_slots)[:PAGE]
        if not held:
            continue
        wanted = TaskRunFilter(id=TaskRunFilterId(any_=held))
        runs = client.read_task_runs(task_run_filter=wanted, limit=PAGE)
        alive = {each.id for each in runs if each.state is None or not each.state.is_final()}
        count = sum(each not in alive for each in held)
        if count:
            ended[limit.tag] = count
    return ended


def _late_view(run: FlowRun) -> LateRun:
    due = run.expected_start_time
    seconds = 0.0 if due is None else (datetime.now(UTC) - due).total_seconds()
    return LateRun(run.name, run.work_pool_name, max(0.0, seconds))


def _online(client: SyncPrefectClient, pool: str) -> int:
    workers = client.read_workers_for_work_pool(pool)
    return sum(str(getattr(each.status, "value", each.status)) == ONLINE for each in workers)
