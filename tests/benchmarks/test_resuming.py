"""`bench run --resume`: what a session has measured is not measured again. Subjects are made up."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from benchmarks import commands
from benchmarks.peers.protocol import Spec
from benchmarks.suite import session as sessions
from benchmarks.suite.session import MAX_ATTEMPTS, Request, Session
from benchmarks.suite.settings import TRANSFORMS
from benchmarks.suite.subjects import Answer
from pipeline.config.sections import TransformSettings
from pipeline.config.settings import Settings
from pipeline.errors import UsageError
from tests.support.benchmark_records import EXPECTED, MadeUp, card, contender


class Interrupted(MadeUp):
    """Is interrupted on its n-th call."""

    at = 0

    def run(self, spec: Spec, variables: Mapping[str, str]) -> Answer:
        if self.at and len(self.calls) + 1 == self.at:
            raise KeyboardInterrupt
        return super().run(spec, variables)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sessions, "ensure", lambda storage, root, name, scale, echo: card(name))
    monkeypatch.setattr(sessions, "expect", lambda *arguments: EXPECTED)
    allowed = TransformSettings(allow=(TRANSFORMS,))
    return Settings(state_dir=tmp_path / "state", transforms=allowed)


def of(settings: Settings, request: Request, ours: MadeUp, theirs: MadeUp) -> Session:
    made = Session(settings, request)
    made._contenders = {"chunkmap": contender(ours), "polars": contender(theirs)}
    return made


def asked(tmp_path: Path, **changes: object) -> Request:
    names = ("row-map", "few-rows", "strings")
    given = {"names": names, "against": ("polars",), "repeat": 3, "root": tmp_path.as_uri()}
    return Request(**{**given, **changes})  # type: ignore[arg-type]


def test_an_interrupted_session_goes_on_where_it_stopped(
    settings: Settings, tmp_path: Path
) -> None:
    first = Interrupted("chunkmap")
    # The A/A run takes six; then three for the first workload; the second is interrupted.
    first.at = 6 + 3 + 2
    begun = of(settings, asked(tmp_path), first, MadeUp("polars"))
    with pytest.raises(KeyboardInterrupt):
        begun.run()
    stored = json.loads(begun.path.read_text("utf-8"))
    assert (stored["complete"], stored["noise"] is not None) == (False, True)
    assert {result["workload"] for result in stored["results"]} == {"row-map"}

    ours, theirs = MadeUp("chunkmap"), MadeUp("polars")
    resumed = of(settings, Request(resume=begun.record.id[:-2]), ours, theirs)
    record = resumed.run()
    assert record.id == begun.record.id
    assert record.complete
    assert (record.repeat, resumed.request.root) == (3, tmp_path.as_uri())
    assert [call.workload for call in ours.calls] == ["few-rows"] * 3 + ["strings"] * 3
    assert len(theirs.calls) == 6
    assert record.noise is not None
    assert [
        iteration["work_seconds"]
        for iteration in stored["results"][0]["processes"][0]["iterations"]
    ] == [
        iteration.work_seconds
        for iteration in record.of("row-map", "chunkmap")[0].processes[0].iterations
    ]


def test_what_was_timed_in_a_workload_is_kept(settings: Settings, tmp_path: Path) -> None:
    """Whichever of the two comes second is interrupted: the first one's times are stored."""
    request = asked(tmp_path, names=("row-map",), repeat=1)
    ours, theirs = Interrupted("chunkmap"), Interrupted("polars")
    begun = of(settings, request, ours, theirs)
    calls: list[str] = []
    for subject in (ours, theirs):
        run = subject.run

        def once(spec: Spec, variables: Mapping[str, str], run: Any = run) -> Answer:
            calls.append(spec.workload)
            if len(calls) == 4 + 2:  # The A/A run takes four.
                raise KeyboardInterrupt
            answer: Answer = run(spec, variables)
            return answer

        subject.run = once  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        begun.run()
    stored = json.loads(begun.path.read_text("utf-8"))
    assert [len(result["processes"]) for result in stored["results"]] == [1]
    again = Request(resume=begun.record.id)
    record = of(settings, again, MadeUp("chunkmap"), MadeUp("polars")).run()
    assert record.complete
    assert len(record.results) == 2


def test_a_complete_session_has_nothing_left(settings: Settings, tmp_path: Path) -> None:
    done = of(settings, asked(tmp_path), MadeUp("chunkmap"), MadeUp("polars")).run()
    ours = MadeUp("chunkmap")
    again = of(settings, Request(resume=done.id), ours, MadeUp("polars")).run()
    assert ours.calls == []
    assert again.results == done.results


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("noisy", "attempts", "quiet"), [(0, 1, True), (12, 3, True), (1000, MAX_ATTEMPTS, False)]
)
def test_the_a_a_run_is_repeated_until_it_is_quiet(
    settings: Settings, tmp_path: Path, noisy: int, attempts: int, quiet: bool
) -> None:
    """Each A/A run calls a subject six times; times are jumping in the first `noisy` calls."""

    def seconds(call: int) -> float:
        return (1.0, 2.0)[call % 2] if call <= noisy else 1.0

    ours = MadeUp("chunkmap", seconds=seconds)
    request = asked(tmp_path, names=("row-map",), max_noise=0.15)
    record = of(settings, request, ours, MadeUp("polars")).run()
    assert record.noise is not None
    assert (record.noise.attempts, record.noise.floor <= 0.15) == (attempts, quiet)
    assert len(ours.calls) == 6 * attempts + 3


@pytest.mark.parametrize(
    "change",
    [{"names": ("strings",)}, {"full": True}, {"scale": "m"}, {"root": "s3://b/x/"}],
    ids=str,
)
def test_a_session_goes_on_as_it_began(
    settings: Settings, tmp_path: Path, change: dict[str, Any]
) -> None:
    done = of(settings, asked(tmp_path), MadeUp("chunkmap"), MadeUp("polars")).run()
    with pytest.raises(UsageError, match="--resume continues a session as it began") as caught:
        Session(settings, Request(resume=done.id, **change))
    assert caught.value.hint == "drop the other options"


def test_a_report_goes_to_the_root_of_its_session(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = of(settings, asked(tmp_path), MadeUp("chunkmap"), MadeUp("polars")).run()
    monkeypatch.setattr(commands, "_stack", lambda environment: nullcontext(settings))
    monkeypatch.setattr(sessions, "contender", lambda name, *_: contender(MadeUp(name)))
    for resumes in (True, False):
        if resumes:
            commands.run(Request(resume=done.id), None, as_json=False)
        else:
            commands.report(done.id, None, None, None, as_json=False)
        report = tmp_path / "reports" / done.id
        assert (report / "report.html").exists()
        shutil.rmtree(report)


def test_sessions_are_objects_for_programs(
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = of(settings, asked(tmp_path), MadeUp("chunkmap"), MadeUp("polars")).run()
    monkeypatch.setattr(commands, "_stack", lambda environment: nullcontext(settings))
    monkeypatch.setattr(commands, "load_settings", lambda environment: settings)
    commands.report(done.id, None, None, None, as_json=True)
    compared = json.loads(capsys.readouterr().out)["comparisons"]
    assert [each["workload"] for each in compared] == ["row-map", "few-rows", "strings"]
    assert compared[0] == {
        **{"workload": "row-map", "peer": "polars", "ratio": 1.0, "low": 1.0, "high": 1.0},
        **{"verdict": "no difference", "aim": None, "met": None},
    }
    commands.history(None, as_json=True)
    [session] = json.loads(capsys.readouterr().out)["sessions"]
    assert (session["id"], session["complete"]) == (done.id, True)


def test_there_must_be_such_a_session(settings: Settings) -> None:
    with pytest.raises(UsageError, match="no session nope"):
        of(settings, Request(resume="nope"), MadeUp("chunkmap"), MadeUp("polars"))
