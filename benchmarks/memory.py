"""Peak memory of the update as completions and vocabulary grow, in numbers and as a figure."""

import json
from dataclasses import replace
from typing import Any

import click

from benchmarks import ours
from benchmarks.cases import Run, measured, model_of
from benchmarks.measure import fresh, pooled, say
from benchmarks.results import finish, markdown
from benchmarks.shapes import Shape, make_rollouts, shape_of


@measured(quick={"repeats": 1, "tokens_per_batch": 128}, repeats=2, steps=1, tokens_per_batch=1024)
@click.option("--completions", default="16,32,64,128", show_default=True, help="Of one optimizer step.")
@click.option("--vocabularies", default="8192,32768,131072,262144", show_default=True)
def main(run: Run, completions: str, vocabularies: str) -> None:
    """The peak above the model and its optimizer; goal: flat in completions, and in vocabulary beyond the budget.

    Both series have the wide model's body. Completions grow at a vocabulary of 32,768, vocabulary at 16 completions.
    """
    counts, sizes = ([int(each) for each in text.split(",")] for text in (completions, vocabularies))
    wide = shape_of("wide", run.quick)
    points = {
        "completions": [replace(wide, groups=n // wide.group_size, vocab=32_768) for n in counts],
        "vocabulary": [replace(wide, vocab=size) for size in sizes],
    }
    runs: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for _ in range(run.repeats):
        for series, shapes in points.items():
            for index, shape in enumerate(shapes):
                done = one_point(shape, run)
                runs.setdefault((series, index), []).append(done)
                say(f"{series}: {value(series, shape):,}: {done['rest_mib']:,.0f} to {done['peak_mib']:,.0f} MiB")
    content = {
        series: [
            {"value": value(series, shape), **pooled(runs[series, index]), "runs": runs[series, index]}
            for index, shape in enumerate(shapes)
        ]
        for series, shapes in points.items()
    }
    finish("memory", run.settings, {"series": content}, table, run.out)


def value(series: str, shape: Shape) -> int:
    """What grows in a series."""
    return shape.vocab if series == "vocabulary" else shape.groups * shape.group_size


def one_point(shape: Shape, run: Run) -> dict[str, Any]:
    with model_of(shape) as (folder, parameters):
        done = fresh(ours.update_steps, folder, make_rollouts(shape), run.dtype, run.tokens_per_batch, 1, run.steps)
        # A step has a gradient as large as the weights, whatever it computes.
        return {**done, "gradient_mib": 4 * parameters / 2**20}


def table(result: dict[str, Any]) -> str:
    """A row a point: MiB at rest, at the peak, between them, and what of that is not the gradient of the weights."""
    rows = []
    for series, points in result["series"].items():
        for point in points:
            above = point["peak_mib"] - point["rest_mib"]
            gradient = point["runs"][0]["gradient_mib"]
            numbers = (point["rest_mib"], point["peak_mib"], above, gradient, above - gradient)
            rows.append([series, f"{point['value']:,}", *(f"{number:,.0f}" for number in numbers)])
    ratios = []
    for series, points in result["series"].items():
        above = [point["peak_mib"] - point["rest_mib"] - point["runs"][0]["gradient_mib"] for point in points]
        ratios.append(f"{series} {max(above) / min(above):.2f}")
    lines = markdown(["grows", "to", "at rest", "peak", "peak - rest", "gradient", "the rest of it"], rows)
    return f"{lines}\n\nThe rest of it, largest over smallest: {', '.join(ratios)} (flat is 1)."


def figure(result: dict[str, Any]) -> str:
    """The peak above rest, and without the gradient, in each series, as SVG."""
    import vl_convert

    rows = [
        {"series": series, "value": f"{point['value']:,}", "order": index, "MiB": number, "what": what}
        for series, points in result["series"].items()
        for index, point in enumerate(points)
        for what, number in (
            ("peak above rest", point["peak_mib"] - point["rest_mib"]),
            ("without the gradient", point["peak_mib"] - point["rest_mib"] - point["runs"][0]["gradient_mib"]),
        )
    ]
    axis = {"field": "value", "type": "ordinal", "sort": {"field": "order"}, "title": None, "axis": {"labelAngle": 0}}
    chart = {
        "mark": {"type": "line", "point": True},
        "width": 260,
        "height": 180,
        "encoding": {
            "x": axis,
            "y": {"field": "MiB", "type": "quantitative", "scale": {"zero": True}},
            "color": {"field": "what", "type": "nominal", "title": None, "legend": {"orient": "bottom"}},
        },
    }
    panels = [
        {**chart, "title": f"one step, by {series}", "transform": [{"filter": f"datum.series == '{series}'"}]}
        for series in result["series"]
    ]
    spec = {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "data": {"values": rows},
        "hconcat": panels,
        "background": "white",
    }
    return vl_convert.vegalite_to_svg(json.dumps(spec))


if __name__ == "__main__":
    main()
