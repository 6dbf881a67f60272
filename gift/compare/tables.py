"""The table of a comparison: a row a method, as records, as Markdown, and what of it is called a difference."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gift.compare.numbers import CONFIDENCE, ENOUGH, Choice, Difference, Run, difference, mean_and_error

Runs = Mapping[str, Sequence[Run]]
SHOWN = {
    "kl": "nats a completion, from the base",
    "spread": "nats",
    "entropy": "nats a token",
    "eval/mean_length": "tokens",
}
"""Numbers of the last policy beside the one that is compared."""


def rows_of(runs: Runs, choices: Mapping[str, Choice], baseline: str, metric: str) -> list[dict[str, Any]]:
    """A record for each method, with means over its seeds; numbers that are not known are None."""
    return [_row(name, runs, choices[name], baseline, metric) for name in runs]


def _row(name: str, runs: Runs, choice: Choice, baseline: str, metric: str) -> dict[str, Any]:
    own, rounds = runs[name], runs[name][0].rounds
    last, area = (mean_and_error(values) for values in (_last(own, metric), [run.area(metric) for run in own]))
    row: dict[str, Any] = {
        "method": name,
        "seeds": len(own),
        "stopped": sum(run.stopped is not None for run in own),
        "lr": choice.lr,
        "lr_at_the_edge": choice.at_the_edge,
        "sensitivity": choice.sensitivity,
        "first": mean_and_error([run.at(1, metric) for run in own])[0],
        "last": last[0],
        "last_se": last[1],
        "area": area[0],
        "area_se": area[1],
        "gap": mean_and_error([run.at(rounds, "reward") - run.at(rounds, "eval/reward") for run in own])[0],
        **{key: mean_and_error(_last(own, key))[0] for key in SHOWN},
    }
    for kind in ("last", "area"):
        gap = gap_of(own, runs[baseline], metric, kind)
        row |= {f"{kind}_{key}": getattr(gap, key) for key in ("mean", "low", "high", "is_one")}
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}


def gap_of(ours: Sequence[Run], theirs: Sequence[Run], metric: str, kind: str) -> Difference:
    """`last`: of the last policies; `area`: of the means over all rounds."""

    def by_seed(runs: Sequence[Run]) -> dict[int, float]:
        return {run.seed: run.at(run.rounds, metric) if kind == "last" else run.area(metric) for run in runs}

    return difference(by_seed(ours), by_seed(theirs))


def _last(runs: Sequence[Run], metric: str) -> list[float]:
    return [run.at(run.rounds, metric) for run in runs]


def markdown(rows: Sequence[dict[str, Any]], baseline: str, metric: str, rounds: int) -> str:
    """The records as a table, best area first, with what its columns mean."""
    head = ["method", "seeds", "lr", "sens.", "round 1", f"round {rounds}", "all rounds"]
    head += [f"all rounds - {baseline}'s", f"round {rounds} - {baseline}'s", "KL", "spread", "entropy", "length", "gap"]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for row in sorted(rows, key=lambda row: -row["area"]):
        stopped = f" ({row['stopped']} stopped)" if row["stopped"] else ""
        cells = [
            row["method"],
            f"{row['seeds']}{stopped}",
            f"{row['lr']:g}{' (edge)' if row['lr_at_the_edge'] else ''}",
            _number(row["sensitivity"]),
            _number(row["first"]),
            _with_error(row, "last"),
            _with_error(row, "area"),
            *(("", "") if row["method"] == baseline else (_interval(row, "area"), _interval(row, "last"))),
            *(_number(row[key]) for key in SHOWN),
            _number(row["gap"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    notes = (
        f"\n{metric} on the test split: mean over seeds and its standard error; `all rounds` is the mean over the "
        f"policies after round 1 to {rounds}. A difference is over pairs of one seed, with the {CONFIDENCE:.0%} "
        f"interval of a bootstrap (BCa); **bold** where it is without 0 and of {ENOUGH} seeds or more, the only ones "
        "that are called differences. `sens.`: what the dev split loses at the worse neighbour of the best learning "
        "rate. KL and spread of the log-ratio inside groups (nats a completion, from the base), entropy (nats a token) "
        "and length (tokens) are of the last policy; `gap` is its reward on training prompts less that on test prompts."
        "\n"
    )
    return "\n".join([*lines, notes])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _with_error(row: dict[str, Any], kind: str) -> str:
    error = row[f"{kind}_se"]
    return _number(row[kind]) + ("" if error is None else f" ± {error:.3f}")


def _interval(row: dict[str, Any], kind: str) -> str:
    if row[f"{kind}_mean"] is None:
        return ""
    between = "" if row[f"{kind}_low"] is None else f" [{row[f'{kind}_low']:+.3f}, {row[f'{kind}_high']:+.3f}]"
    text = f"{row[f'{kind}_mean']:+.3f}{between}"
    return f"**{text}**" if row[f"{kind}_is_one"] else text
