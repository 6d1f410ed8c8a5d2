"""Random faults, drawn from a seed: what happens when, to whom."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from pipeline.errors import ChunkmapError
from pipeline.runs.admin.vacuum import vacuum
from pipeline.table.log import TableLog
from pipeline.table.publish import rollback
from pipeline.table.repair import repair
from tests.faults.cluster import Cluster
from tests.faults.points import POINTS, WRITES
from tests.faults.rules import Act, Rule
from tests.faults.world import Command, Ended, Scenario
from tests.support.runs_by_hand import Run, shifted

ACTS: tuple[Act, ...] = ("refuse", "reset", "500", "503", "truncate", "lose", "late")
Kill = Callable[[], object]


@dataclass
class Schedule:
    """What goes wrong in one run."""

    seed: int
    scenario: Scenario
    cluster: Cluster | None
    """Without one, the serial driver runs."""

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.rules: list[Rule] = []
        self.said: list[str] = []
        self.restarts: list[tuple[Rule, Kill]] = []
        self.driver: Command | None = None
        self.pointers: list[bytes] = []
        """HEAD.json, each time that it was about to be written."""
        self.is_tampered = False
        """HEAD.json was deleted or put back."""

    def draw(self) -> None:
        """Choose one to four faults."""
        for _ in range(self.random.randint(1, 4)):
            fault = self.random.choice([self._request, self._noise, self._death, self._meddle])
            fault()

    def _request(self) -> None:
        act: Act = self.random.choice(ACTS)
        point = self.random.choice(WRITES if act in ("lose", "late") else POINTS)
        nth, times = self.random.randint(1, 8), self.random.randint(1, 3)
        seconds = self.random.choice([0.1, 1.0, 10.0])
        self._add(point.rule(act, nth=nth, times=times, seconds=seconds))

    def _noise(self) -> None:
        act: Act = self.random.choice(ACTS)
        if act == "late":
            act = "lose"  # Reads come late, too, and nobody is any the wiser.
        share = self.random.choice([0.01, 0.05, 0.2])
        self._add(Rule(act, times=None, share=share).seeded(self.random.randrange(1 << 30)))

    def _death(self) -> None:
        point = self.random.choice(POINTS)
        act: Act = self.random.choice(["refuse", "lose", "pass"])
        rule = point.rule(act, nth=self.random.randint(1, 8))
        victims = ["driver", "s3"]
        if self.cluster is not None:
            victims += ["w0", "all workers", "scheduler", "prefect"]
        victim = self.random.choice(victims)
        if victim == "driver":
            rule.call = self._kill_driver
        elif victim == "s3":
            rule.call = self._restart_s3
        else:
            assert self.cluster is not None
            kills: dict[str, Kill] = {
                "w0": self.cluster.workers["w0"].kill,
                "all workers": self.cluster.kill_workers,
                "scheduler": self.cluster.scheduler.kill,
                "prefect": self.cluster.prefect.kill,
            }
            kill = kills[victim]
            rule.call = lambda _: kill()
            self.restarts.append((rule, self.cluster.repair))
        self._add(rule, f"kill {victim}, ")

    def _meddle(self) -> None:
        """Somebody else works on the output in the middle of it, or on its state."""
        deeds: dict[str, Callable[[], object]] = {
            "vacuum": lambda: vacuum(self.scenario.storage, self.scenario.output, older_than=0.0),
            "repair": lambda: repair(self._table_log()),
            "roll back and forth": self._roll_back_and_forth,
            "lose the pointer": lambda: self._set_pointer(None),
            "restore an old pointer": lambda: self._set_pointer(self.random.choice(self.pointers)),
            "a worker lies": self._lie,
        }
        name = self.random.choice(sorted(deeds))
        point = self.random.choice(POINTS)
        rule = point.rule("pass", nth=self.random.randint(1, 4))

        def meddle(_: object) -> None:
            with suppress(ChunkmapError, IndexError):  # There is nothing yet, or it is refused.
                deeds[name]()

        rule.call = meddle
        self._add(rule, f"{name}, ")

    def _table_log(self) -> TableLog:
        return TableLog(self.scenario.storage, self.scenario.output)

    def _roll_back_and_forth(self) -> None:
        number = self._table_log().head()[0].current
        rollback(self._table_log(), number - 1)
        rollback(self._table_log(), number)

    def _set_pointer(self, data: bytes | None) -> None:
        """Delete HEAD.json, or put back what it was once: by hand, or from a backup."""
        storage, uri = self.scenario.storage, self._table_log().head_file.uri
        self.is_tampered = True
        if data is None:
            storage.delete(uri)
        else:
            storage.put(uri, data)

    def _note_pointer(self, _: object) -> None:
        blob = self.scenario.storage.get_or_none(self._table_log().head_file.uri)
        self.pointers += [] if blob is None else [blob.data]

    def _lie(self) -> None:
        """A completion names an input as what is to be moved into the output."""
        ledger = self.scenario.ledger
        run = Run(self.scenario.storage, ledger, ledger.plan())
        honest = run.completion(self.random.randrange(len(run.plan)))
        source = run.plan.chunk(honest.index).fragments[0].uri
        run.store(shifted(honest, upload=source), shifted(honest, uri=source))

    def _kill_driver(self, _: object) -> None:
        assert self.driver is not None, "it sent the request"
        self.driver.kill()

    def _restart_s3(self, _: object) -> None:
        self.scenario.world.weed.kill()
        self.scenario.world.restart_s3()

    def _add(self, rule: Rule, what: str = "") -> None:
        self.rules.append(rule)
        self.said.append(
            f"{what}{rule.act} {rule.kind} {rule.path} nth={rule.nth} times={rule.times} "
            f"share={rule.share}"
        )

    def play(self) -> Ended:
        """Run the job with all of it going wrong."""
        print(f"seed {self.seed}: " + "; ".join(self.said))
        # Where another rule strikes too, that one counts: this one only looks.
        noting = Rule("pass", "PutObject", "HEAD.json", times=None, call=self._note_pointer)
        self.scenario.inject(*self.rules, noting)
        if self.cluster is None:
            self.driver = self.scenario.start_serially()
        else:
            self.driver = self.cluster.start(self.scenario)
        for rule, restart in self.restarts:
            while not rule.happened.wait(0.5):
                if self.driver.has_ended:
                    break
            else:
                restart()
        return self.driver.wait(240)
