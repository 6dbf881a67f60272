"""Distance to the aligned optimum against rollouts, for every method, where that optimum is known in closed form."""

import math
import os
from dataclasses import asdict, dataclass
from typing import Any, get_args

import click
import torch

from benchmarks.cases import Run, measured
from benchmarks.closed_form_methods import BASELINE, LIMITS, Method, methods_of
from benchmarks.measure import say
from benchmarks.results import finish, markdown
from benchmarks.tabular import Measured, Problem, Rewards, measure, problem_of, train
from gift.compare.numbers import CONFIDENCE, difference, mean_and_error
from gift.project.errors import UserError

RATES = (0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
SWEEP_SEEDS = tuple(range(1000, 1005))
AFTER = 4
"""A run goes on for so many times the rounds that its learning rate was chosen for."""
KINDS: tuple[Rewards, ...] = get_args(Rewards)
COMPARED = ("to_optimum", "to_aligned")
SWEPT = (BASELINE, "gvpo-reference", "rloo", "gift-paper", "gift-reference", "gift")
"""Of these the table shows what the learning rate does."""
DIGITS = 5


@dataclass(frozen=True)
class Setting:
    """The problem and the rounds of a run: groups of each prompt, optimizer steps a round, and how many rounds."""

    beta: float
    prompts: int
    completions: int
    group_size: int
    epochs: int
    rounds: int

    @property
    def rollouts(self) -> int:
        """Completions of a round, of one seed."""
        return self.prompts * self.group_size


@measured(dtypes=False)
@click.option("--method", "names", multiple=True, help="One of them; without it all. The baseline always runs.")
@click.option("--rewards", "kinds", multiple=True, type=click.Choice(KINDS), help="Without it both.")
@click.option("--beta", default=0.5, show_default=True, help="The coefficient of the KL, in reward a nat.")
@click.option("--prompts", default=64, show_default=True, help="Of each seed.")
@click.option("--completions", default=16, show_default=True, help="That a prompt has.")
@click.option("--group-size", default=8, show_default=True, help="Completions that are drawn of a prompt in a round.")
@click.option("--epochs", default=4, show_default=True, help="Optimizer steps of a round, each on all of its groups.")
@click.option(
    "--rounds", default=128, show_default=True, help=f"That the rate is chosen for; {AFTER} x as many follow."
)
@click.option("--seeds", default=10, show_default=True, help="Problems that are reported, each with its own draws.")
def main(run: Run, names: tuple[str, ...], kinds: tuple[Rewards, ...], seeds: int, **numbers: Any) -> None:
    """Methods from their presets, their rates chosen on other seeds, and their KL to the optimum as rollouts grow."""
    if run.quick:
        numbers |= {"prompts": 4, "rounds": 4}
        seeds = 3
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    setting = Setting(**numbers)
    content: dict[str, dict[str, Any]] = {}
    for kind in kinds or KINDS:
        known = methods_of(setting.beta, setting.group_size, kind)
        if unknown := set(names) - known.keys():
            raise UserError(f"--method: {min(unknown)}: no such method here; one of {', '.join(known)}")
        found: dict[str, Any] = {}
        for name in dict.fromkeys((BASELINE, *(names or known))):
            found[name] = one_method(known[name], setting, kind, seeds, RATES[::3] if run.quick else RATES)
            ends = [found[name][when]["to_optimum"]["mean"] for when in ("chosen", "end")]
            say(f"{kind}, {name}: rate {found[name]['lr']:g}, {ends[0]} nats from the optimum, then {ends[1]}")
        for each in found.values():
            for when in ("chosen", "end"):
                compare(each[when], found[BASELINE][when])
        content[kind] = found
    finish("closed_form", {**run.settings, "seeds": seeds, **asdict(setting)}, content, table, run.out)


def one_method(method: Method, setting: Setting, kind: Rewards, seeds: int, rates: tuple[float, ...]) -> dict[str, Any]:
    """The rate with the least distance after `rounds` rounds, on its own seeds; then the reported seeds with it."""
    sweep = []
    for lr in rates:
        (last,) = measured_at(method, lr, setting, kind, SWEEP_SEEDS, [setting.rounds])
        means = {name: rounded(float(values.mean())) for name, values in vars(last).items()}
        sweep.append({"lr": lr, **means})
    known = [each for each in sweep if each["to_optimum"] is not None]
    lr = min(known, key=lambda each: each["to_optimum"])["lr"]
    points = points_of(AFTER * setting.rounds)
    curve = measured_at(method, lr, setting, kind, range(seeds), points)
    by_name = {name: [getattr(each, name).tolist() for each in curve] for name in vars(curve[0])}
    return {
        "limit": method.limit,
        "why": method.why,
        "settings": method.settings,
        "lr": lr,
        "lr_at_the_edge": lr in (rates[0], rates[-1]),
        "sweep": sweep,
        "rollouts": [point * setting.rollouts for point in points],
        "curves": {name: series(by_name[name]) for name in COMPARED},
        "chosen": at({name: each[points.index(setting.rounds)] for name, each in by_name.items()}),
        "end": at({name: each[-1] for name, each in by_name.items()}),
    }


def measured_at(
    method: Method, lr: float, setting: Setting, kind: Rewards, seeds: Any, points: list[int]
) -> list[Measured]:
    """The numbers of the policy after each of `points` rounds."""
    problem: Problem = problem_of(seeds, setting.prompts, setting.completions, kind)
    update = method.update(lr, setting.epochs, setting.prompts)
    policies = train(problem, update, max(points), setting.group_size, seeds)
    return [measure(problem, each, setting.beta) for number, each in enumerate(policies) if number in points]


def points_of(rounds: int) -> list[int]:
    """Rounds after which a policy is measured: 0, 1, 2, and then two between a number and its double."""
    points = {0, rounds}
    for power in range(rounds.bit_length()):
        points |= {2**power, 3 * 2**power // 2}
    return sorted(point for point in points if point <= rounds)


def rounded(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def summary(values: list[float]) -> dict[str, float | None]:
    """The mean over seeds and its standard error; None where it is not a number (b of the reference is infinite)."""
    if not all(map(math.isfinite, values)):
        return {"mean": None, "error": None}
    mean, error = mean_and_error(values)
    return {"mean": rounded(mean), "error": rounded(error)}


def series(points: list[list[float]]) -> dict[str, list[float | None]]:
    """Of each point, values by seed, the mean and its standard error."""
    summaries = [summary(values) for values in points]
    return {key: [each[key] for each in summaries] for key in ("mean", "error")}


def at(by_name: dict[str, list[float]]) -> dict[str, Any]:
    """The numbers of the policies of one round: mean, error, and all of them, by seed."""
    return {
        name: {**summary(values), "seeds": [rounded(value) for value in values]} for name, values in by_name.items()
    }


def compare(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Put the difference to the baseline of the same seeds beside each distance."""
    for name in COMPARED:
        pair = [dict(enumerate(each[name]["seeds"])) for each in (ours, theirs)]
        gap = difference(*pair)
        numbers = {key: rounded(getattr(gap, key)) for key in ("mean", "low", "high")}
        ours[name]["difference"] = {**numbers, "is_one": gap.is_one}


def table(result: dict[str, Any]) -> str:
    """A table of each kind of rewards, a row a method; then what each method is."""
    parts, setting = [], result["settings"]
    chosen, end = (
        f"{factor * setting['rounds'] * setting['prompts'] * setting['group_size']:,}" for factor in (1, AFTER)
    )
    head = ["method", "rate", f"to π*, {chosen}", "less GRPO's", f"to π*, {end}", "less GRPO's"]
    head += [f"to π*_b, {chosen}", end, "less GRPO's", f"b, {chosen}", end, f"E[r], {end}", f"KL to π_ref, {end}"]
    kinds = {kind: result[kind] for kind in KINDS if kind in result}
    for kind, found in kinds.items():
        rows = []
        for limit, words in LIMITS.items():
            own = [name for name in sorted_methods(found) if found[name]["limit"] == limit]
            rows += [[f"*{words}*", *[""] * (len(head) - 1)]] if own else []
            rows += [row(name, found[name]) for name in own]
        parts.append(f"Rewards: {kind}.\n\n{markdown(head, rows)}")
    parts.append(
        f"KL in nats, mean over prompts, then over {setting['seeds']} seeds with its standard error, after so many "
        f"rollouts of a seed; the rate is chosen for the first number of them. π* is π_ref exp(r/b)/Z at b = "
        f"{setting['beta']:g}, π*_b that at the b nearest to the policy, prompt by prompt; b is its median. A "
        f"difference to {BASELINE} is over pairs of one seed, with the {CONFIDENCE:.0%} interval of a bootstrap (BCa); "
        "**bold** where it is without 0 and of ten seeds or more."
    )
    first = next(iter(kinds.values()))
    rates = [f"{each['lr']:g}" for each in first[BASELINE]["sweep"]]
    rows = [
        [name, *(f"{number(each['nearest_b'])} ({number(each['to_aligned'])})" for each in first[name]["sweep"])]
        for name in SWEPT
        if name in first
    ]
    parts.append(
        f"b of the nearest aligned optimum (and KL to it) by learning rate, {next(iter(kinds))} rewards, {chosen} "
        f"rollouts: mean over the {len(SWEEP_SEEDS)} seeds of the sweep."
    )
    parts.append(markdown(["method", *rates], rows))
    rows = [[name, first[name]["settings"], first[name]["why"]] for name in sorted_methods(first)]
    parts.append(markdown(["method", "preset; its changes", "the optimum of its formula"], rows))
    return "\n\n".join(parts)


def sorted_methods(found: dict[str, Any]) -> list[str]:
    """Names by the kind of their limit, then by the last distance to the optimum; a policy that broke comes last."""
    limits = list(LIMITS)

    def place(name: str) -> tuple[int, float]:
        last = found[name]["end"]["to_optimum"]["mean"]
        return limits.index(found[name]["limit"]), math.inf if last is None else last

    return sorted(found, key=place)


def row(name: str, found: dict[str, Any]) -> list[str]:
    chosen, end = found["chosen"], found["end"]
    theirs = name != BASELINE
    return [
        name,
        f"{found['lr']:g}{' (edge)' if found['lr_at_the_edge'] else ''}",
        with_error(chosen["to_optimum"]),
        interval(chosen["to_optimum"]) if theirs else "",
        with_error(end["to_optimum"]),
        interval(end["to_optimum"]) if theirs else "",
        with_error(chosen["to_aligned"]),
        with_error(end["to_aligned"]),
        interval(end["to_aligned"]) if theirs else "",
        number(chosen["nearest_b"]["mean"]),
        number(end["nearest_b"]["mean"]),
        number(end["reward"]["mean"]),
        number(end["to_reference"]["mean"]),
    ]


def number(value: float | None, sign: str = "") -> str:
    if value is None:
        return ""
    return f"{value:{sign}.0e}" if 0 < abs(value) < 5e-4 else f"{value:{sign}.3f}"


def with_error(found: dict[str, Any]) -> str:
    return number(found["mean"]) + ("" if found["error"] is None else f" ± {number(found['error'])}")


def interval(found: dict[str, Any]) -> str:
    gap = found["difference"]
    mean, low, high = (number(gap[key], "+") for key in ("mean", "low", "high"))
    text = f"{mean} [{low}, {high}]"
    return f"**{text}**" if gap["is_one"] else text


if __name__ == "__main__":
    main()
