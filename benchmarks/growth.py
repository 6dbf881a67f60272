"""Time of the log-prob pass and the update as a round grows: 1, 2, 4 and 8 times the rollouts."""

import statistics
import tempfile
from pathlib import Path
from typing import Any

import click

from benchmarks import ours
from benchmarks.measure import fresh, say
from benchmarks.results import finish, markdown, met, options, start
from benchmarks.shapes import SHAPES, make_model, shape_of

GOAL = 0.1
STAGES = ("reference", "update")


@click.command()
@click.option("--model", "name", default="hundred", show_default=True, type=click.Choice(list(SHAPES)))
@click.option("--times", default="1,2,4,8", show_default=True, help="Multiples of the rollouts of one step.")
@click.option("--repeats", default=3, show_default=True, help="Processes of each multiple, in turn.")
@click.option("--tokens-per-batch", default=16384, show_default=True, help="launch.yaml's key.")
@click.option("--dtype", default="float32", show_default=True, type=click.Choice(["float32", "bfloat16"]))
@options
def main(
    name: str, times: str, repeats: int, tokens_per_batch: int, dtype: str, threads: int, quick: bool, out: Path | None
) -> None:
    """Seconds of reference + update against those of the fewest rollouts; goal: linear within 10%."""
    repeats = 1 if quick else repeats
    multiples = [int(each) for each in times.split(",")]
    settings = start(
        threads, quick, model=name, times=multiples, repeats=repeats, tokens_per_batch=tokens_per_batch, dtype=dtype
    )
    shape = shape_of(name, quick)
    runs: dict[int, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as work:
        parameters = fresh(make_model, shape, Path(work))
        for turn in range(repeats):
            for multiple in multiples:
                run = fresh(ours.reference_and_update, Path(work), shape, multiple, dtype, tokens_per_batch)
                runs.setdefault(multiple, []).append(run)
                say(f"{turn + 1} of {repeats}: x {multiple}: " + ", ".join(f"{s} {run[s]:.3g} s" for s in STAGES))
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
    finish("growth", settings, {"parameters": parameters, "points": points}, table, out)


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
