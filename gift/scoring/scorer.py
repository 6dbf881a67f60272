"""Who scores the parts of a table: this process, with its pool of reward functions, or workers with one each."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gift.project import console
from gift.project.console import Progress
from gift.project.errors import UserError
from gift.project.params import settings_of
from gift.rewards.total import totals
from gift.scoring.cache import RewardCache, row_keys
from gift.scoring.looks import calls_again, changed, is_change
from gift.scoring.metrics import FAILED, Failures
from gift.scoring.plan import USER_FOLDER, load_plan
from gift.scoring.pool import RewardPool
from gift.scoring.process import Call
from gift.scoring.rows import NOT_ASKED, Asked, PartRows
from gift.scoring.settings import Reward, Score
from gift.scoring.worker import MOST, Outcome
from gift.tables.parquet import part_name, part_paths
from gift.tables.parts import read_part, write_part
from gift.tables.prompts import read_prompts
from gift.tables.rollouts import ROLLOUTS, check_rollouts
from gift.tables.scores import check_scores, everything
from gift.workers.link import Job, Part
from gift.workers.settings import Workers
from gift.workers.start import alone, open_pool
from gift.workers.worker import Work


@dataclass(frozen=True)
class Ways:
    """How the parts of a stage are scored, and where they go; num_asked: of all its completions, by reward."""

    label: str
    folder: Path
    num_asked: dict[str, int]
    workers: int
    judge_endpoint: str | None
    cache: Path | None


@dataclass
class Found:
    """What is said of the calls: how many values were kept from before, and which call took longest."""

    num_reused: int = 0
    slowest: str = "none called"
    slowest_seconds: float = 0.0

    def add(self, other: "Found") -> None:
        self.num_reused += other.num_reused
        if other.slowest_seconds > self.slowest_seconds:
            self.slowest, self.slowest_seconds = other.slowest, other.slowest_seconds


class PartScorer:
    """Scores one part after another: `with PartScorer(...) as scorer: scorer.score(index, rows)`."""

    def __init__(
        self, ways: Ways, score: Score, asked: Asked, failures: Failures, advance: Callable[..., None]
    ) -> None:
        """advance: is told how many completions are scored."""
        self.plan, self.asked, self.failures, self.advance = load_plan(score, asked), asked, failures, advance
        self.pool = RewardPool(self.plan, ways.workers, score.timeout_seconds, score.memory_gib, ways.judge_endpoint)
        self.cache = RewardCache(ways.cache, ways.label, self.plan, USER_FOLDER) if ways.cache else None
        self.found, self.has_looked = Found(), False

    def __enter__(self) -> "PartScorer":
        self.pool.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        self.pool.__exit__(*raised)

    def score(self, index: int, rows: PartRows) -> pa.Table:
        """The scores of a part's rows; what has ended before the stage fails is kept for the next run."""
        everyone = range(len(rows.prompt_ids))
        own = {name: self.asked.rows(name, rows.prompt_ids) for name in self.asked.score.rewards}
        others = {name: sorted(set(everyone).difference(each)) for name, each in own.items()}
        outcomes: dict[str, dict[int, Outcome]] = {name: {} for name in own}
        keys: dict[str, list[bytes]] = {}
        calls: list[Call] = []
        digests = rows.digests() if self.cache else []
        for reward in self.plan:
            name, spans = reward.name, rows.spans(reward.batch, own[reward.name])
            if self.cache:  # what is kept of rows that are not asked for now is kept on
                keys[name] = row_keys(digests, [*spans, *rows.spans(reward.batch, others[name])])
                outcomes[name] = self.cache.read(name, index, keys[name])
            missing = [[row for row in span if row not in outcomes[name]] for span in spans]
            new = [span if reward.batch == "group" else left for span, left in zip(spans, missing, strict=True) if left]
            calls += [(name, each) for each in new]
            self.found.num_reused += len(own[name]) - sum(map(len, new))
        calls.sort(key=lambda call: call[1][0])  # functions of the same rows stand together
        try:
            self._call(rows, calls, outcomes)
            self._look_again(rows, calls, outcomes)
        finally:
            if self.cache:
                for name in {name for name, _ in calls}:
                    self.cache.write(name, index, keys[name], outcomes[name])
        for name, each in others.items():
            outcomes[name] |= dict.fromkeys(each, NOT_ASKED)
        rewards, counting = self.asked.score.rewards, self.asked.score.counting
        by_name = {name: [outcomes[name][row] for row in everyone] for name in rewards}
        totals = total_rewards(counting, {name: by_name[name] for name in counting})
        for row, total in enumerate(totals):
            if total is not None and abs(total) > MOST:
                raise UserError(
                    f"score.rewards: {rows.name(row)}: the weighted sum is {total:g}; it must lie between -{MOST:g} "
                    f"and {MOST:g}, as the update squares and adds rewards in float32: lower the weights"
                )
        columns: dict[str, list[Any]] = {"prompt_id": rows.prompt_ids, "sample": rows.samples, "reward": totals}
        for name, made in by_name.items():
            columns[name] = [outcome.value for outcome in made]
            columns[f"{name}_status"] = [outcome.status for outcome in made]
            columns[f"{name}_message"] = [outcome.message for outcome in made]
        return pa.table(columns, schema=everything(rewards))

    def _look_again(self, rows: PartRows, calls: list[Call], outcomes: dict[str, dict[int, Outcome]]) -> None:
        """Once, on the first part that is not kept: a value that is kept must be what the function says every time."""
        if self.has_looked or not calls:
            return
        self.has_looked = True
        for name, row, second in self.pool.run(calls_again(self.plan, calls, outcomes), rows.arguments):
            first = outcomes[name][row]
            if is_change(first, second):
                outcomes[name].clear()  # or the next run would take them for granted
                function = self.asked.score.rewards[name].function
                raise UserError(f"score.rewards.{name} ({function}): {rows.name(row)}: {changed(first, second)}")

    def _call(self, rows: PartRows, calls: list[Call], outcomes: dict[str, dict[int, Outcome]]) -> None:
        """Make the calls; add their outcomes as they come."""
        num_open = Counter(row for _, each in calls for row in each)
        self.advance(len(rows.prompt_ids) - len(num_open))
        for name, row, outcome in self.pool.run(calls, rows.arguments):
            outcomes[name][row] = outcome
            if outcome.seconds > self.found.slowest_seconds:
                called = f"{outcome.seconds:.2g} s ({name} of {rows.name(row)})"
                self.found.add(Found(0, called, outcome.seconds))
            if outcome.status in FAILED:
                self.failures.add(name, rows.prompt_ids[row], rows.samples[row], outcome.status, outcome.message)
            num_open[row] -= 1
            if not num_open[row]:
                self.advance()


def total_rewards(rewards: dict[str, Reward], outcomes: Mapping[str, Sequence[Outcome]]) -> list[float | None]:
    """The total of each row, from each component's outcomes row by row; None where one failed or none counts."""
    values = {name: np.array([outcome.value for outcome in each], np.float64) for name, each in outcomes.items()}
    failed = np.any([[outcome.status in FAILED for outcome in each] for each in outcomes.values()], axis=0)
    return totals(values, failed, rewards)


@dataclass(frozen=True)
class Shared:
    """Workers that score a stage's parts, each with reward functions, and models on a GPU, of its own."""

    prompts: Path
    processes: int | None
    workers: Workers

    def score(
        self, ways: Ways, score: Score, rollouts: Path, metadata: dict[str, Any], progress: Progress
    ) -> Found | None:
        """Have the missing parts made; None where this process is to make them itself."""
        opens_model = any(reward.function == "reward_model" for reward in score.rewards.values())
        if self.processes is None and not opens_model:
            return None
        own = {**asdict(ways), "folder": str(ways.folder), "cache": ways.cache and str(ways.cache)}
        setup = {"ways": own, "score": settings_of(score), "prompts": str(self.prompts)}
        stage = ways.label.partition("@")[0]
        job = Job(stage, ways.label, "score", setup, number=self.processes)
        if alone(job, self.workers):
            return None
        failures, found = Failures(score, ways.num_asked, ways.folder), Found()
        parts = []
        for index, path in enumerate(part_paths(rollouts)):
            place = ways.folder / part_name(index)
            if not place.exists():
                task = {"index": index, "rollouts": str(path), "metadata": metadata}
                parts.append(Part(index, partial(dict, task), place, pq.read_metadata(path).num_rows))
        if parts:
            with open_pool(job, self.workers) as pool:
                for part, facts in pool.run(parts, progress):
                    found.add(Found(**facts["found"]))
                    failures.add_table(read_part(part.path, everything(score.rewards), check_scores)[0])
        return found


def open_job(setup: dict[str, Any]) -> Work:
    """The rewards of a worker."""
    own = {name: setup["ways"][name] and Path(setup["ways"][name]) for name in ("folder", "cache")}
    ways, score = Ways(**{**setup["ways"], **own}), Score(**setup["score"])
    asked = Asked(score, read_prompts(Path(setup["prompts"]))[0])
    failures = Failures(score, ways.num_asked, ways.folder)
    share = _Share()
    scorer = PartScorer(ways, score, asked, failures, share.advance).__enter__()

    def make(task: dict[str, Any], folder: Path) -> dict[str, Any]:
        table, source = read_part(Path(task["rollouts"]), ROLLOUTS, check_rollouts)
        share.begin(table.num_rows)
        scorer.found = Found()
        scored = scorer.score(task["index"], PartRows(table, asked, source.get("generation_prompt", "")))
        write_part(folder, task["index"], scored, everything(score.rewards), check_scores, task["metadata"])
        return {"tokens": 0, "found": asdict(scorer.found)}

    return Work(make)


class _Share:
    """How much of a part is scored."""

    def begin(self, total: int) -> None:
        self.done, self.total = 0, total

    def advance(self, count: int = 1) -> None:
        self.done += count
        console.within(self.done / self.total)
