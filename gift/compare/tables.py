"""The table of a comparison: a row a method, as records, as Markdown, and what of it is called a difference."""

import math
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

from gift.compare.numbers import CONFIDENCE, ENOUGH, Choice, Difference, Run, difference, mean_and_error

Runs = Mapping[str, Sequence[Run]]
SHOWN = {"kl": "nats", "spread": "nats", "entropy": "nats a token", "eval/mean_length": "tokens"}
"""Numbers of a policy beside the one that is compared, and their units; kl and spread from the base, a completion."""


def rows_of(
    runs: Runs,
    choices: Mapping[str, Choice],
    baseline: str,
    metric: str,
    against: Mapping[str, str] | None = None,
    own_rewards: Set[str] = frozenset(),
) -> list[dict[str, Any]]:
    """A record for each method, with means over its seeds; numbers that are not known are None.

    choices: of those that were swept. against: with whom a method is compared in place of the baseline. own_rewards:
    those with rewards of their own, whose gap is in other units.
    """
    rows = []
    for name, own in runs.items():
        choice, rounds, other = choices.get(name), own[0].rounds, (against or {}).get(name, baseline)
        row: dict[str, Any] = {
            "method": name,
            "seeds": len(own),
            "stopped": sum(run.stopped is not None for run in own),
            "against": other,
            "lr": own[0].lr,
            "lr_at_the_edge": choice is not None and choice.at_the_edge,
            "sensitivity": math.nan if choice is None else choice.sensitivity,
            "first": mean_and_error([run.at(1, metric) for run in own])[0],
            **{key: mean_and_error([run.at(rounds, key) for run in own])[0] for key in SHOWN},
        }
        values: dict[str, Callable[[Run], float]] = {
            "last": lambda run: run.at(run.rounds, metric),
            "area": lambda run: run.area(metric),
            "gap": lambda run: math.nan if run.method in own_rewards else run.gap(run.rounds),
        }
        for kind, value in values.items():
            row |= _compared(kind, own, runs[other], value)
        rows.append(_known(row))
    return rows


def frozen_rows(runs: Runs, baseline: str, metric: str) -> list[dict[str, Any]]:
    """Of each method the policy after one round: one update on rollouts that are the baseline's, byte for byte.

    Methods that sample another first round (another group size, other prompts) are left out.
    """
    theirs = {run.seed: run.rollouts["r1"] for run in runs[baseline]}
    rows = []
    for name, every in runs.items():
        own = [run for run in every if theirs.get(run.seed) == run.rollouts["r1"]]
        if not own:
            continue
        row: dict[str, Any] = {"method": name, "seeds": len(own), "steps": own[0].at(0, "update/num_steps")}
        row |= _compared("first", own, runs[baseline], lambda run: run.at(1, metric))
        row |= {key: mean_and_error([run.at(1, key) - run.at(0, key) for run in own])[0] for key in SHOWN}
        rows.append(_known(row))
    return rows


def _compared(
    kind: str, ours: Sequence[Run], theirs: Sequence[Run], value: Callable[[Run], float]
) -> dict[str, float | bool]:
    """A number of runs: its mean over seeds, the error of that, and the difference to the baseline's runs."""
    mean, error = mean_and_error([value(run) for run in ours])
    by_seed = [{run.seed: value(run) for run in runs} for runs in (ours, theirs)]
    gap: Difference = difference(by_seed[0], by_seed[1])
    found = {f"{kind}_{key}": getattr(gap, key) for key in ("mean", "low", "high", "is_one")}
    return {kind: mean, f"{kind}_se": error, **found}


def _known(row: dict[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}


def markdown(rows: Sequence[dict[str, Any]], baseline: str, metric: str, rounds: int) -> str:
    """The records as a table, best area first, with what its columns mean."""
    head = ["method", "seeds", "lr", "sens.", "round 1", f"round {rounds}", "all rounds"]
    head += [f"all rounds - {baseline}'s", f"round {rounds} - {baseline}'s", "gap", f"gap - {baseline}'s"]
    head += ["KL", "spread", "entropy", "length"]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for row in sorted(rows, key=lambda row: -row["area"]):
        stopped = f" ({row['stopped']} stopped)" if row["stopped"] else ""
        cells = [
            row["method"],
            f"{row['seeds']}{stopped}",
            f"{row['lr']:g}{' (edge)' if row['lr_at_the_edge'] else ''}",
            _number(row["sensitivity"]),
            _number(row["first"]),
            with_error(row, "last"),
            with_error(row, "area"),
            *_differences(row, baseline, "area", "last"),
            with_error(row, "gap"),
            *_differences(row, baseline, "gap"),
            *(_number(row[key]) for key in SHOWN),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    notes = (
        f"\n{metric} on the test split: mean over seeds and its standard error; `all rounds` is the mean over the "
        f"policies after round 1 to {rounds}. A difference is over pairs of one seed, with the {CONFIDENCE:.0%} "
        f"interval of a bootstrap (BCa); **bold** where it is without 0 and of {ENOUGH} seeds or more, the only ones "
        "that are called differences. `sens.`: what the dev split loses at the worse neighbour of the best learning "
        "rate. `gap`: the reward of the last policy on training prompts less that on test prompts, where a method has "
        "the rewards of params.yaml. These prompts are those of the round to come: what was learnt by heart shows "
        "where an earlier epoch had them. Of the last policy, too, are KL and spread of the log-ratio inside groups "
        "(nats a completion, from the base), entropy (nats a token) and length (tokens).\n"
    )
    return "\n".join([*lines, notes])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def with_error(row: dict[str, Any], kind: str) -> str:
    """A number of a record and its standard error."""
    error = row[f"{kind}_se"]
    return _number(row[kind]) + ("" if error is None else f" ± {error:.3f}")


def interval(row: dict[str, Any], kind: str) -> str:
    """The difference of a record and its interval, bold where it is called one."""
    if row[f"{kind}_mean"] is None:
        return ""
    between = "" if row[f"{kind}_low"] is None else f" [{row[f'{kind}_low']:+.3f}, {row[f'{kind}_high']:+.3f}]"
    text = f"{row[f'{kind}_mean']:+.3f}{between}"
    return f"**{text}**" if row[f"{kind}_is_one"] else text


def _differences(row: dict[str, Any], baseline: str, *kinds: str) -> list[str]:
    """The differences of a row; where it is compared with another one than the baseline, that is said."""
    if row["method"] == row["against"]:
        return [""] * len(kinds)
    behind = "" if row["against"] == baseline else f" to {row['against']}"
    return [text + behind if (text := interval(row, kind)) else "" for kind in kinds]


def sweep_markdown(choices: Mapping[str, Choice], metric: str, rounds: int) -> str:
    """What each learning rate reached on the dev split, a row a method, best first; the chosen one is bold."""
    rates = sorted({rate for choice in choices.values() for rate in choice.reached})
    lines = [f"| method | {' | '.join(f'{rate:g}' for rate in rates)} |", f"|{' --- |' * (1 + len(rates))}"]
    for name, choice in sorted(choices.items(), key=lambda each: -each[1].reached[each[1].lr]):
        cells = [name]
        for rate in rates:
            stopped = f" ({choice.stopped[rate]} stopped)" if choice.stopped.get(rate) else ""
            text = _number(choice.reached.get(rate)) + stopped
            cells.append(f"**{text}**" if rate == choice.lr else text)
        lines.append(f"| {' | '.join(cells)} |")
    notes = (
        f"\n{metric} on the dev split, the mean over the policies after round 1 to {rounds} and the seeds of "
        "the sweep, for each learning rate; with the best one, **bold**, a method is reported. `stopped`: runs whose "
        "policy drifted away, or in which no group could train; they count with the last policy that they published.\n"
    )
    return "\n".join([*lines, notes])


def frozen_markdown(rows: Sequence[dict[str, Any]], metric: str, left_out: Sequence[str] = ()) -> str:
    """The records of `frozen_rows`, best first; left_out: the methods that are not among them."""
    head = [
        "method",
        "seeds",
        "steps",
        metric,
        "less the baseline's",
        *(f"{key} ({unit})" for key, unit in SHOWN.items()),
    ]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for row in sorted(rows, key=lambda row: -row["first"]):
        cells = [row["method"], str(row["seeds"]), _number(row["steps"]), with_error(row, "first")]
        cells += [interval(row, "first"), *(_number(row[key]) for key in SHOWN)]
        lines.append(f"| {' | '.join(cells)} |")
    notes = (
        "\nThe policy after one round: one update of each method at its own learning rate, on rollouts of the base "
        "that are the same for all, byte for byte. The last columns are changes from the base.\n"
    )
    if left_out:
        notes += (
            f"\nNot among them, as their first round has other rollouts, or given answers: {', '.join(left_out)}.\n"
        )
    return "\n".join([*lines, notes])
