"""Random faults, drawn from a seed: what happens when, to whom."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from tests.faults.cluster import Cluster
from tests.faults.points import POINTS, WRITES
from tests.faults.rules import Act, Rule
from tests.faults.world import Command, Ended, Scenario

ACTS: tuple[Act, ...] = ("refuse", "reset", "500", "503", "truncate", "lose")
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

    def draw(self) -> None:
        """Choose one to four faults."""
        for _ in range(self.random.randint(1, 4)):
            fault = self.random.choice([self._request, self._noise, self._death])
            fault()

    def _request(self) -> None:
        act: Act = self.random.choice(ACTS)
        point = self.random.choice(WRITES if act == "lose" else POINTS)
        self._add(point.rule(act, nth=self.random.randint(1, 8), times=self.random.randint(1, 3)))

    def _noise(self) -> None:
        act: Act = self.random.choice(ACTS)
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
        self.scenario.inject(*self.rules)
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
