"""The numbers of a scores table, under TRL's names, and its ledger; failed rows, against their limit over all of it."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gift.project.errors import UserError
from gift.rewards.total import counted
from gift.scoring.settings import Reward, Score
from gift.tables.places import Places
from gift.tables.rollouts import GIVEN
from gift.tables.scores import STATUSES

FAILED = ("timeout", "error", "invalid")
NUM_EXAMPLES = 5


@dataclass
class Failures:
    """How many rows each function failed for, and the first of them; `num_asked`: of how many, by function."""

    score: Score
    num_asked: dict[str, int]
    folder: Path
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reward: str, prompt_id: str, sample: int, status: str, message: str | None) -> None:
        """Count a failure; the stage stops as soon as no later row could bring the share back under the limit."""
        self.counts[reward] += 1
        line = f"prompt_id={prompt_id}, sample={sample}: {status}: {message}"
        self.examples[reward] = sorted([*self.examples.get(reward, []), line])[:NUM_EXAMPLES]
        limit, num_asked = self.score.max_failed_share, self.num_asked[reward]
        if self.counts[reward] <= limit * num_asked:
            return
        settings = self.score.rewards[reward]
        raise UserError(
            f"score.rewards.{reward} ({settings.function}) failed for {self.counts[reward]} of {num_asked} completions"
            f"{' of its prompts' if settings.where else ''}; score.max_failed_share allows {limit:g} of them:\n       "
            + "\n       ".join(self.examples[reward])
            + "\n       Nothing was published. Mend the function, raise score.max_failed_share or timeout_seconds, or "
            f"say which prompts are its own (score.rewards.{reward}.where). "
            f"The finished parts are in {self.folder}: remove it to try what failed in them again with nothing changed"
        )

    def add_table(self, scores: pa.Table) -> None:
        """Count the failures of a part that was scored before."""
        for name in self.score.rewards:
            failed = scores.filter(pc.is_in(scores[f"{name}_status"], value_set=pa.array(FAILED)))
            columns = ("prompt_id", "sample", f"{name}_status", f"{name}_message")
            for row in zip(*(failed[column].to_pylist() for column in columns), strict=True):
                self.add(name, *row)


def score_metrics(rows: pa.Table, scores: pa.Table, score: Score) -> dict[str, float | int | None]:
    """Rewards, their spread inside groups (n - 1, as TRL), lengths in tokens, and what became of every completion.

    Means are over what has a value. A group with fewer than two rewards has no spread: it counts in
    `frac_reward_zero_std` and not in `reward_std`. `rows` has num_tokens and finish_reason of each completion. All is
    of what was sampled; answers that were given have a ledger and a mean reward of their own.
    """
    given = pc.equal(rows["finish_reason"], GIVEN)
    if not pc.any(given).as_py():
        return _of_sampled(rows, scores, score)
    numbers = _of_sampled(rows.filter(pc.invert(given)), scores.filter(pc.invert(given)), score)
    answers = scores.filter(given)
    failed, scored = _failed(answers, score.counting), ~np.isnan(answers["reward"].to_numpy())
    numbers |= {"num_given": answers.num_rows, "num_given_scored": int(scored.sum())}
    numbers |= {"num_given_failed": int(failed.sum()), "num_given_abstained": int((~failed & ~scored).sum())}
    return numbers | {"given/reward": _mean(answers["reward"].to_numpy())}


def _of_sampled(rows: pa.Table, scores: pa.Table, score: Score) -> dict[str, float | int | None]:
    rewards = scores["reward"].to_numpy()  # NaN where there is none
    groups = Places.of(scores).spread(rewards, np.nan)
    scored = [group[~np.isnan(group)] for group in groups]
    spreads = [float(group.std(ddof=1)) if group.min() < group.max() else 0.0 for group in scored if len(group) > 1]
    lengths = rows["num_tokens"]
    numbers: dict[str, float | int | None] = {
        "reward": _mean(rewards),
        "reward_std": float(np.mean(spreads)) if spreads else None,
        "frac_reward_zero_std": 1 - sum(spread > 0 for spread in spreads) / len(groups),
        "completions/mean_length": pc.mean(lengths).as_py(),
        "completions/min_length": pc.min(lengths).as_py(),
        "completions/max_length": pc.max(lengths).as_py(),
        "completions/clipped_ratio": pc.mean(pc.equal(rows["finish_reason"], "length")).as_py(),
    }
    values = {name: scores[name].to_numpy() for name in score.rewards}
    for name, column in values.items():
        numbers[f"rewards/{name}/mean"] = _mean(column)
        numbers[f"rewards/{name}/std"] = float(np.nanstd(column, ddof=1)) if np.isfinite(column).sum() > 1 else None
        counts = Counter(scores[f"{name}_status"].to_pylist())
        for status in STATUSES:
            numbers[f"rewards/{name}/num_{status}"] = counts[status]
    # Every completion is scored, failed (a component failed), or abstained (no component counts).
    failed = _failed(scores, score.counting)
    abstained = ~np.any(list(counted(values, score.counting).values()), axis=0)
    num_failed, num_abstained = int(failed.sum()), int((abstained & ~failed).sum())
    num_scored, total = scores.num_rows - scores["reward"].null_count, scores.num_rows
    if num_scored + num_failed + num_abstained != total:
        raise RuntimeError(f"{num_scored} scored + {num_failed} failed + {num_abstained} abstained is not {total}")
    if not num_scored:
        raise UserError(f"no completion has a reward: of {total}, {num_failed} failed and {num_abstained} abstained")
    numbers |= {"num_rollouts": total, "num_scored": num_scored}
    return numbers | {"num_failed": num_failed, "num_abstained": num_abstained}


def _failed(scores: pa.Table, components: dict[str, Reward]) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    """The rows for which a component failed."""
    statuses = [scores[f"{name}_status"] for name in components]
    failed = np.any([pc.is_in(each, value_set=pa.array(FAILED)).to_numpy() for each in statuses], axis=0)
    return np.asarray(failed, np.bool_)


def _mean(values: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> float | None:
    return float(np.nanmean(values)) if np.isfinite(values).any() else None
