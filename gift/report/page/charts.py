"""Which numbers of the history a page draws, in which order, and in which words."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gift.report.runs import Line, columns_of, thinned


@dataclass(frozen=True)
class Chart:
    """`column` of the rows of rounds or, `by_step`, of the optimizer's steps; `more`: below the fold."""

    title: str
    unit: str
    column: str
    by_step: bool = False
    more: bool = False


FIRST = (
    Chart("Held-out accuracy", "greedy answers", "eval/accuracy_greedy"),
    Chart("Held-out reward", "mean of sampled answers", "eval/reward"),
    Chart("Reward of rollouts", "mean", "reward"),
    Chart("Groups without spread", "share with equal rewards", "frac_reward_zero_std"),
    Chart("Length of rollouts", "tokens, mean", "completions/mean_length"),
    Chart("Length of held-out answers", "tokens, mean", "eval/mean_length"),
    Chart("Truncated rollouts", "share", "completions/clipped_ratio"),
    Chart("Truncated held-out answers", "share", "eval/clipped_ratio"),
    Chart("KL to the reference", "nats a token (k3)", "kl", by_step=True),
    Chart("Log-ratio", "nats a token; update.max_drift stops on it", "log_ratio", by_step=True),
    Chart("Spread of the log-ratio", "within groups, nats", "log_ratio_std", by_step=True),
    Chart("Correlation", "implicit and explicit reward", "correlation", by_step=True),
    Chart("Entropy", "nats a token", "entropy", by_step=True),
    Chart("Gradient norm", "before clipping", "grad_norm", by_step=True),
    Chart("Loss", "by step", "loss", by_step=True),
    Chart("Learning rate", "by step", "learning_rate", by_step=True),
    # A comparison has these a round.
    Chart("KL to the reference", "nats a completion", "kl"),
    Chart("Spread of the log-ratio", "within groups, nats", "spread"),
    Chart("Entropy", "nats a token", "entropy"),
    Chart("Gradient norm", "before clipping", "update/grad_norm"),
    Chart("Tokens trained on", "a round", "num_tokens_trained"),
)
PATTERNS = (
    (r"eval/(avg@\d+|pass@\d+)", "Held-out {}", "sampled answers"),
    (r"rewards/(.+)/mean", "Reward: {}", "mean of a component"),
    (r"eval/(.+)/accuracy_greedy", "Accuracy: {}", "greedy answers of a domain"),
)
"""Columns whose names depend on the settings."""


def charts_of(lines: Sequence[Line]) -> list[Chart]:
    """The charts for which there are numbers: those of `FIRST`, those by pattern behind the rewards, then the rest."""
    rounds = columns_of([row for line in lines for row in line.rounds])
    steps = columns_of([row for line in lines for row in line.steps])
    found: list[Chart] = []
    for chart in FIRST:
        drawn = any(each.by_step and each.column == chart.column for each in found)
        if chart.column in (steps if chart.by_step else rounds) and not drawn:
            found.append(chart)
    named = [
        Chart(title.format(match[1]), unit, name)
        for pattern, title, unit in PATTERNS
        for name in rounds
        if (match := re.fullmatch(pattern, name))
    ]
    place = next((i for i, chart in enumerate(found) if chart.column == "frac_reward_zero_std"), len(found))
    found[place:place] = named
    known = {(chart.by_step, chart.column) for chart in found} | {(False, chart.column) for chart in found}
    for by_step, names in ((False, rounds), (True, steps)):
        rest = [name for name in names if (by_step, name) not in known]
        found += [Chart(name, "by step" if by_step else "by round", name, by_step, more=True) for name in rest]
    return found


def drawn(lines: Sequence[Line], charts: Sequence[Chart]) -> list[dict[str, Any]]:
    """The lines with the columns of these charts and their standard errors, as lists; null where a row has none."""
    rounds = [chart.column for chart in charts if not chart.by_step]
    steps = [chart.column for chart in charts if chart.by_step]
    errors = [f"{name}_se" for name in rounds if any(f"{name}_se" in row for line in lines for row in line.rounds)]
    return [
        {
            "name": line.name,
            "rounds": _columns(line.rounds, ["name", "round", "rollouts", *rounds, *errors]),
            "steps": _columns(thinned(line.steps), ["step", "round", *steps]),
        }
        for line in lines
    ]


def _columns(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, list[Any]]:
    return {name: [_short(row.get(name)) for row in rows] for name in dict.fromkeys(names)}


def _short(value: Any) -> Any:
    """Six digits are more than a chart shows."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


def as_dicts(charts: Sequence[Chart]) -> list[dict[str, Any]]:
    return [asdict(chart) for chart in charts]
