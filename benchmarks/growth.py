"""Time of the log-prob pass and the update as a round grows: 1, 2, 4 and 8 times the rollouts."""

import statistics
from typing import Any

import click

from benchmarks import ours
from benchmarks.cases import Run, measured, model_of
from benchmarks.measure import fresh, say
from benchmarks.results import finish, markdown, met
from benchmarks.shapes import SHAPES, shape_of

GOAL = 0.1
STAGES = ("reference", "update")


@measured(quick={"repeats": 1}, repeats=3, tokens_per_batch=16384)
@click.option("--model", "name", default="hundred", show_default=True, type=click.Choice(list(SHAPES)))
@click.option("--times", "multiples", default="1,2,4,8", show_default=True, help="Multiples of a step's rollouts.")
def main(run: Run, name: str, multiples: str) -> None:
    """Seconds of reference + update against those of the fewest rollouts; goal: linear within 10%."""
    shape = shape_of(name, run.quick)
    runs: dict[int, list[dict[str, float]]] = {}
    with model_of(shape) as (folder, parameters):
        for turn in range(run.repeats):
            for multiple in (int(each) for each in multiples.split(",")):
                done = fresh(ours.reference_and_update, folder, shape, multiple, run.dtype, run.tokens_per_batch)
                runs.setdefault(multiple, []).append(done)
                shown = ", ".join(f"{stage} {done[stage]:.3g} s" for stage in STAGES)
                say(f"{turn + 1} of {run.repeats}: x {multiple}: {shown}")
    points = [
        {
            "times": multiple,
            "completions": shape.groups * shape.group_size * multiple,
            "completion_tokens": each[0]["num_tokens"],
            **{stage: statistics.median(run[stage] for run in each) for stage in STAGES},
            "runs": each,
        }
        for multiple, each in runs.items()
    ]
    settings = {**run.settings, "model": name, "times": list(runs)}
    finish("growth", settings, {"parameters": parameters, "points": points}, table, run.out)


def table(result: dict[str, Any]) -> str:
    """A row a multiple: seconds, and how much more a completion token costs than at the first one."""
    rows, first, worst = [], result["points"][0], 0.0

    def cost(point: dict[str, Any]) -> float:
        return sum(point[stage] for stage in STAGES) / point["completion_tokens"]

    for point in result["points"]:
        more = cost(point) / cost(first) - 1
        worst = max(worst, abs(more))
        seconds = [f"{point[stage]:.3g}" for stage in STAGES]
        total = sum(point[stage] for stage in STAGES)
        rows.append(
            [point["times"], point["completions"], point["completion_tokens"], *seconds, f"{total:.3g}", f"{more:+.1%}"]
        )
    header = [
        "rollouts x",
        "completions",
        "tokens",
        "reference, s",
        "update, s",
        "both, s",
        "a token, against the first",
    ]
    share = f"\nModel `{result['settings']['model']}`. Goal: within {GOAL:.0%} of linear: {worst:.1%}, "
    return markdown(header, rows) + "\n" + share + met(worst, GOAL, at_most=True) + "."


if __name__ == "__main__":
    main()
