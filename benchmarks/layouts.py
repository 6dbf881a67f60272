"""An optimizer step by how its completions lie in a forward, as their prompt grows: shared, packed, padded."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from benchmarks import ours
from benchmarks.measure import fresh, pooled, say
from benchmarks.results import finish, markdown, options, start
from benchmarks.shapes import Shape, make_model, make_rollouts, shape_of

LAYOUTS = ("shared", "packed", "padded")
BODY = Shape(384, 6, 6, 1024, 8192, 2, 8, 0, 10, 100)  # 14M parameters; lengths 10:1


@click.command()
@click.option("--prompts", default="64,256,1024,2048", show_default=True, help="Tokens of a prompt.")
@click.option("--repeats", default=2, show_default=True, help="Processes of each point, in turn.")
@click.option("--steps", default=2, show_default=True, help="Timed steps of each process.")
@click.option("--tokens-per-batch", default=32768, show_default=True, help="launch.yaml's key: one batch a step.")
@click.option("--dtype", default="float32", show_default=True, type=click.Choice(["float32", "bfloat16"]))
@options
def main(
    prompts: str,
    repeats: int,
    steps: int,
    tokens_per_batch: int,
    dtype: str,
    threads: int,
    quick: bool,
    out: Path | None,
) -> None:
    """Seconds and peak memory of a step by layout, 2 groups of 8 completions of 10 to 100 tokens."""
    repeats, steps = (1, 1) if quick else (repeats, steps)
    lengths = [int(each) for each in ("6,40" if quick else prompts).split(",")]
    settings = start(threads, quick, repeats=repeats, steps=steps, tokens_per_batch=tokens_per_batch, dtype=dtype)
    runs: dict[tuple[int, str], list[dict[str, Any]]] = {}
    body = replace(shape_of("wide", quick=True), longest=12) if quick else BODY
    with tempfile.TemporaryDirectory() as work:
        parameters = fresh(make_model, body, Path(work))
        for _ in range(repeats):
            for prompt in lengths:
                rollouts = make_rollouts(replace(body, prompt=prompt))
                for layout in LAYOUTS:
                    run = fresh(ours.update_steps, Path(work), rollouts, dtype, tokens_per_batch, 1, steps, layout)
                    runs.setdefault((prompt, layout), []).append(run)
                    say(f"prompt {prompt}, {layout}: {pooled([run])['seconds']:.3g} s, {run['peak_mib']:,.0f} MiB")
    points = [
        {"prompt": prompt, "layout": layout, **pooled(each), "runs": each} for (prompt, layout), each in runs.items()
    ]
    finish("layouts", settings, {"parameters": parameters, "points": points}, table, out)


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
