"""What the runs of a comparison say: means over seeds, and differences of pairs of runs with their intervals."""

import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gift.evaluation import estimates
from gift.project.errors import UserError

ENOUGH = 10
"""Seeds from which on an interval may call a difference one (arXiv 2504.07086: fewer call what is not there)."""
CONFIDENCE = 0.95
RESAMPLES = 9999


@dataclass(frozen=True)
class Run:
    """A chain of rounds: rows[r] are the numbers of the policy after r of them; all of `rounds`, or fewer if it broke.

    stopped: why the update of a round published nothing; None: all went well.
    """

    method: str
    lr: float
    seed: int
    rows: list[dict[str, float]]
    rounds: int
    rollouts: dict[str, str]
    stopped: str | None

    def at(self, number: int, metric: str) -> float:
        """A number of the policy after so many rounds: of one that broke before, that of its last policy."""
        row = self.rows[min(number, len(self.rows) - 1)]
        return row.get(metric, math.nan)

    def gap(self, number: int) -> float:
        """The reward on training prompts less that on held-out ones, of the policy after so many rounds."""
        return self.at(number, "reward") - self.at(number, "eval/reward")

    def area(self, metric: str) -> float:
        """The mean over the policies after round 1, 2, ...: high for what rises early and stays up."""
        return float(np.mean([self.at(number, metric) for number in range(1, self.rounds + 1)]))


def read_run(path: Path) -> Run:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Run(**{name: content[name] for name in Run.__dataclass_fields__})
    except (OSError, ValueError, KeyError):
        raise UserError(f"{path}: not readable as a run; delete it, and `gift compare` makes it again") from None


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean over seeds and its standard error (n - 1), nan for one."""
    mean, error = estimates.mean_and_error(values)
    return mean, error if len(values) > 1 else math.nan


@dataclass(frozen=True)
class Difference:
    """Of two methods, over the seeds that both ran: the mean, and the interval of a bootstrap of the pairs (BCa)."""

    mean: float
    low: float
    high: float
    num_seeds: int

    @property
    def is_one(self) -> bool:
        """Whether it is called a difference: the interval is without 0, and the seeds are enough for it to be true."""
        return self.num_seeds >= ENOUGH and (self.low > 0 or self.high < 0)


def difference(ours: dict[int, float], theirs: dict[int, float]) -> Difference:
    """ours - theirs by seed: runs of one seed saw the same prompts, and drew with the same random numbers."""
    from scipy.stats import bootstrap

    seeds = sorted(ours.keys() & theirs.keys())
    gaps = np.array([ours[seed] - theirs[seed] for seed in seeds])
    if len(gaps) < 3 or np.isnan(gaps).any():
        return Difference(float(gaps.mean()) if len(gaps) else math.nan, math.nan, math.nan, len(gaps))
    if np.ptp(gaps) == 0:
        return Difference(float(gaps[0]), float(gaps[0]), float(gaps[0]), len(gaps))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few values, whose interval may be nan: it is shown as such
        found = bootstrap(
            (gaps,), np.mean, n_resamples=RESAMPLES, confidence_level=CONFIDENCE, rng=np.random.default_rng(0)
        ).confidence_interval
    return Difference(float(gaps.mean()), float(found.low), float(found.high), len(gaps))


@dataclass(frozen=True)
class Choice:
    """The learning rate of a method, and the mean of `metric` on the dev split that each rate reached."""

    lr: float
    metric: str
    reached: dict[float, float]
    stopped: dict[float, int]

    @property
    def sensitivity(self) -> float:
        """How much worse than the best rate its worse neighbour in the sweep is; nan without a neighbour."""
        rates = sorted(self.reached)
        place = rates.index(self.lr)
        near = [self.reached[rate] for rate in rates[max(0, place - 1) : place + 2] if rate != self.lr]
        return self.reached[self.lr] - min(near) if near else math.nan

    @property
    def at_the_edge(self) -> bool:
        """Whether the sweep ends where the best rate is, so that a better one may lie beyond it."""
        return len(self.reached) > 1 and self.lr in (min(self.reached), max(self.reached))


def choose(runs: Sequence[Run], metric: str) -> Choice:
    """The rate with the largest mean over seeds of the area under `metric`; of equal ones the smallest."""
    by_rate: dict[float, list[Run]] = {}
    for run in runs:
        by_rate.setdefault(run.lr, []).append(run)
    reached = {lr: float(np.mean([run.area(metric) for run in each])) for lr, each in sorted(by_rate.items())}
    stopped = {lr: sum(run.stopped is not None for run in each) for lr, each in sorted(by_rate.items())}
    if any(math.isnan(value) for value in reached.values()):
        raise UserError(f"{metric}: no such number in the runs; metric must be one that stage evaluate makes")
    return Choice(max(reached, key=lambda lr: (reached[lr], -lr)), metric, reached, stopped)


def read_choice(path: Path) -> Choice:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    by_rate = {name: {float(lr): value for lr, value in content[name].items()} for name in ("reached", "stopped")}
    return Choice(content["lr"], content["metric"], **by_rate)
