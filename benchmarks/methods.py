"""What an optimizer step of each method costs against GRPO's: seconds and memory, with whole groups and cut ones."""

from pathlib import Path
from typing import Any

import click

from benchmarks import ours
from benchmarks.cases import Run, measured, model_of
from benchmarks.measure import fresh, pooled, say
from benchmarks.results import finish, markdown
from benchmarks.shapes import make_rollouts, shape_of
from gift.compare.presets import read_preset

PRESETS = Path(__file__).parents[1] / "presets" / "methods"
BASELINE = "grpo"
# One for each loss, and those whose shape or selection may cost.
NAMES = (
    *(BASELINE, "dr_grpo", "gspo", "cispo", "sapo", "gmpo", "vespo", "dppo-tv", "dro", "rloo-paper", "reinforce_pp"),
    *("gift", "gift-paper", "gvpo", "una-mse", "flowrl", "pair_regression", "f_grpo"),
    *("dpo", "dpo-all-pairs", "rpo", "amir", "gdpo", "grao", "f_hal", "maestro"),
)


def update_of(name: str) -> dict[str, Any]:
    """The keys of `update` of a method."""
    return read_preset(PRESETS / f"{name}.yaml")["update"]


@measured(quick={"repeats": 1, "steps": 1}, repeats=2, steps=4)
@click.option("--method", "names", multiple=True, help="A file of presets/methods; without it one for each loss.")
def main(run: Run, names: tuple[str, ...]) -> None:
    """An optimizer step of the hundred model, in micro-batches of whole groups, and where a group is cut in four."""
    shape = shape_of("hundred", run.quick)
    rollouts = make_rollouts(shape)
    rows = [len(prompt) + len(text) for prompt, text in zip(rollouts.prompt_ids, rollouts.completion_ids, strict=True)]
    budgets = {"whole": sum(rows), "cut": max(max(rows), sum(rows) // (4 * shape.groups))}
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    with model_of(shape) as (folder, _):
        for _ in range(run.repeats):
            for name in dict.fromkeys((BASELINE, *(names or NAMES))):
                method = update_of(name)
                for how, budget in budgets.items():
                    timed = (run.dtype, budget, 1, run.steps)
                    done = fresh(ours.update_steps, folder, rollouts, *timed, "auto", method)
                    runs.setdefault((name, how), []).append(done)
                    say(f"{name}, {how}: {min(done['seconds']):.3g} s, {done['peak_mib'] - done['rest_mib']:,.0f} MiB")
    content: dict[str, dict[str, Any]] = {}
    for (name, how), each in runs.items():
        content.setdefault(name, {})[how] = {"runs": each}
    finish("methods", {**run.settings, **budgets}, {"methods": content}, table, run.out, with_runs)


def with_runs(now: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """A method that is measured again under the same conditions keeps the runs that it has."""
    earlier, found = before["methods"], before["methods"] | now["methods"]
    for name in earlier.keys() & now["methods"].keys():
        found[name] = {
            how: {"runs": [*earlier[name][how]["runs"], *each["runs"]]} for how, each in now["methods"][name].items()
        }
    return {**now, "methods": found}


def table(result: dict[str, Any]) -> str:
    """A row a method: seconds of its fastest step and MiB at its peak above rest, and both against GRPO's."""
    found = {name: {how: pooled(one["runs"]) for how, one in each.items()} for name, each in result["methods"].items()}
    rows = []
    for name, each in sorted(found.items(), key=lambda one: NAMES.index(one[0]) if one[0] in NAMES else len(NAMES)):
        row = [name]
        for how in ("whole", "cut"):
            seconds, base = each[how]["fastest"], found[BASELINE][how]["fastest"]
            above, theirs = (one[how]["peak_mib"] - one[how]["rest_mib"] for one in (each, found[BASELINE]))
            row += [f"{seconds:.3g}", f"{seconds / base:.2f}", f"{above:,.0f}", f"{above / theirs:.2f}"]
        rows.append(row)
    head = [f"{text}{how}" for how in ("", ", cut") for text in ("s a step", "x GRPO", "MiB above rest", "x GRPO's")]
    return markdown(["method", *head], rows)


if __name__ == "__main__":
    main()
