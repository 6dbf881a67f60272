"""An optimizer step by how its completions lie in a forward, as their prompt grows: shared, packed, padded."""

from dataclasses import replace
from typing import Any

import click

from benchmarks import ours
from benchmarks.cases import Run, measured, model_of
from benchmarks.measure import fresh, pooled, say
from benchmarks.results import finish, markdown
from benchmarks.shapes import Shape, make_rollouts, shape_of

LAYOUTS = ("shared", "packed", "padded")
BODY = Shape(384, 6, 6, 1024, 8192, 2, 8, 0, 10, 100)  # 14M parameters; lengths 10:1


@measured(quick={"repeats": 1, "steps": 1}, repeats=2, steps=2, tokens_per_batch=32768)
@click.option("--prompts", default="64,256,1024,2048", show_default=True, help="Tokens of a prompt.")
def main(run: Run, prompts: str) -> None:
    """Seconds and peak memory of a step by layout, 2 groups of 8 completions of 10 to 100 tokens."""
    lengths = [int(each) for each in ("6,40" if run.quick else prompts).split(",")]
    runs: dict[tuple[int, str], list[dict[str, Any]]] = {}
    body = replace(shape_of("wide", quick=True), longest=12) if run.quick else BODY
    common = (run.dtype, run.tokens_per_batch, 1, run.steps)
    with model_of(body) as (folder, parameters):
        for _ in range(run.repeats):
            for prompt in lengths:
                rollouts = make_rollouts(replace(body, prompt=prompt))
                for layout in LAYOUTS:
                    done = fresh(ours.update_steps, folder, rollouts, *common, layout)
                    runs.setdefault((prompt, layout), []).append(done)
                    say(f"prompt {prompt}, {layout}: {pooled([done])['seconds']:.3g} s, {done['peak_mib']:,.0f} MiB")
    points = [
        {"prompt": prompt, "layout": layout, **pooled(each), "runs": each} for (prompt, layout), each in runs.items()
    ]
    finish("layouts", run.settings, {"parameters": parameters, "points": points}, table, run.out)


def table(result: dict[str, Any]) -> str:
    """A row a prompt length and layout: seconds and peak above rest, and how many times less the shared one takes."""
    found = {(point["prompt"], point["layout"]): point for point in result["points"]}
    rows = []
    for (prompt, layout), point in found.items():
        shared = found[prompt, "shared"]
        above, least = (each["peak_mib"] - each["rest_mib"] for each in (point, shared))
        rows.append(
            [
                prompt,
                layout,
                f"{point['seconds']:.3g}",
                f"{point['seconds'] / shared['seconds']:.2f}x",
                f"{above:,.0f}",
                f"{above / least:.2f}x",
            ]
        )
    header = ["prompt, tokens", "layout", "a step, s", "against shared", "peak above rest, MiB", "against shared"]
    return markdown(header, rows)


if __name__ == "__main__":
    main()
