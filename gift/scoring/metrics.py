"""The numbers of a scores table, under TRL's names, and its ledger."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gift.project.errors import UserError
from gift.rewards.total import counted
from gift.scoring.failures import FAILED
from gift.scoring.settings import Reward
from gift.tables.scores import STATUSES


def score_metrics(rows: pa.Table, scores: pa.Table, components: dict[str, Reward]) -> dict[str, float | int | None]:
    """Rewards, their spread inside groups (n - 1, as TRL), lengths in tokens, and what became of every completion.

    Means are over what has a value. A group with fewer than two rewards has no spread: it counts in
    `frac_reward_zero_std` and not in `reward_std`. `rows` has num_tokens and finish_reason of each completion.
    """
    rewards = _floats(scores["reward"])
    groups = rewards.reshape(len(set(scores["prompt_id"].to_pylist())), -1)
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
    for name in components:
        values = _floats(scores[name])
        numbers[f"rewards/{name}/mean"] = _mean(values)
        numbers[f"rewards/{name}/std"] = float(np.nanstd(values, ddof=1)) if np.isfinite(values).sum() > 1 else None
        counts = Counter(scores[f"{name}_status"].to_pylist())
        for status in STATUSES:
            numbers[f"rewards/{name}/num_{status}"] = counts[status]
    return numbers | _ledger(scores, components)


def _ledger(scores: pa.Table, components: dict[str, Reward]) -> dict[str, int]:
    """Every completion is scored, failed (a component failed), or abstained (no component counts)."""
    failed = np.zeros(scores.num_rows, dtype=bool)
    for name in components:
        failed |= pc.is_in(scores[f"{name}_status"], value_set=pa.array(FAILED)).to_numpy()
    counts = counted({name: scores[name].to_numpy() for name in components}, components)
    abstained = ~np.logical_or.reduce(list(counts.values()))
    num_failed, num_abstained = int(failed.sum()), int((abstained & ~failed).sum())
    num_scored = scores.num_rows - scores["reward"].null_count
    if num_scored + num_failed + num_abstained != scores.num_rows:
        raise RuntimeError(
            f"{num_scored} scored + {num_failed} failed + {num_abstained} abstained is not {scores.num_rows}"
        )
    if not num_scored:
        raise UserError(
            f"no completion has a reward: of {scores.num_rows}, {num_failed} failed and {num_abstained} abstained"
        )
    return {
        "num_rollouts": scores.num_rows,
        "num_scored": num_scored,
        "num_failed": num_failed,
        "num_abstained": num_abstained,
    }


def _floats(column: pa.ChunkedArray) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    return np.array([np.nan if value is None else value for value in column.to_pylist()], dtype=np.float64)


def _mean(values: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> float | None:
    return float(np.nanmean(values)) if np.isfinite(values).any() else None
