"""The figures of benchmarks/closed_form.py, as SVG: distances against rollouts, and both distances at the end."""

import json
from typing import Any

from benchmarks.closed_form import sorted_methods
from benchmarks.closed_form_methods import BASELINE, LIMITS

NAMES = {"to_optimum": "to π* at the given beta", "to_aligned": "to the nearest aligned optimum"}
GREY = f"{BASELINE}, to π*"
COLOURS = {"domain": [*NAMES.values(), GREY], "range": ["#1f6fb4", "#d9730d", "#9a9a9a"]}
COLUMNS = 7
TENS = [10.0**power for power in range(-6, 7)]
LEAST = 1e-5
"""What is less is drawn here, in nats: an axis of logarithms has no 0."""


def curves(found: dict[str, Any], chosen: int, title: str) -> str:
    """A panel a method: its two distances over the rollouts of a seed, and the baseline's in grey; the same axes.

    chosen: the number of rollouts that rates were chosen for, a dashed line.
    """
    import altair as alt
    import pandas as pd

    names = sorted_methods(found)
    records = []
    for name in names:
        lines = [(NAMES[metric], found[name], metric) for metric in NAMES] + [(GREY, found[BASELINE], "to_optimum")]
        for line, of, metric in lines:
            curve = of["curves"][metric]
            for rollouts, mean, error in zip(of["rollouts"], curve["mean"], curve["error"], strict=True):
                if rollouts and mean is not None:
                    values = {"mean": mean, "low": mean - (error or 0), "high": mean + (error or 0)}
                    shown = {key: max(LEAST, value) for key, value in values.items()}
                    records.append({"panel": name, "line": line, "rollouts": rollouts, "chosen": chosen, **shown})
    x = alt.X(
        "rollouts:Q", title="rollouts", scale=alt.Scale(type="log", nice=False), axis=alt.Axis(values=TENS, format="~s")
    )
    scale = alt.Scale(type="log", nice=False)
    axis = alt.Axis(values=TENS, format="~g")
    colour = alt.Color(
        "line:N",
        scale=alt.Scale(**COLOURS),
        legend=alt.Legend(title=None, orient="top", labelLimit=400, symbolOpacity=1),
    )
    chart = alt.Chart(pd.DataFrame(records))
    rule = chart.mark_rule(strokeDash=[3, 3], color="#888888").encode(x=alt.X("mean(chosen):Q", title="rollouts"))
    band = chart.mark_area(opacity=0.25).encode(
        x=x, y=alt.Y("low:Q", title="nats", scale=scale, axis=axis), y2="high:Q", color=colour
    )
    line = chart.mark_line(strokeWidth=2).encode(
        x=x, y=alt.Y("mean:Q", title="nats", scale=scale, axis=axis), color=colour
    )
    panels = (
        alt.layer(rule, band, line)
        .properties(width=125, height=95)
        .facet(facet=alt.Facet("panel:N", title=None, sort=names), columns=COLUMNS)
        .properties(title=title)
        .configure(background="white")
        .configure_axis(grid=True, gridColor="#eeeeee")
    )
    return to_svg(panels)


def ends(kinds: dict[str, dict[str, Any]], title: str) -> str:
    """A column a kind of rewards, a row a method: both distances of its last policy, joined by a line."""
    import altair as alt
    import pandas as pd

    names = sorted_methods(next(iter(kinds.values())))
    records = [
        {
            "rewards": kind,
            "method": name,
            "limit": LIMITS[found[name]["limit"]],
            "line": words,
            "nats": max(LEAST, found[name]["end"][metric]["mean"]),
        }
        for kind, found in kinds.items()
        for name in names
        for metric, words in NAMES.items()
        if found[name]["end"][metric]["mean"] is not None
    ]
    frame = pd.DataFrame(records)
    wide = frame.pivot_table(index=["rewards", "method", "limit"], columns="line", values="nats").reset_index()
    y = alt.Y("method:N", title=None, sort=names)
    scale = alt.Scale(type="log", nice=False)
    domain = {"domain": list(NAMES.values()), "range": COLOURS["range"][:2]}
    columns = []
    for index, kind in enumerate(kinds):
        rows = []
        for limit in LIMITS.values():
            own = y if index == 0 else alt.Y("method:N", title=None, sort=names, axis=None)
            one, both = (each[(each["rewards"] == kind) & (each["limit"] == limit)] for each in (frame, wide))
            first, second = NAMES.values()
            bar = (
                alt.Chart(both)
                .mark_rule(color="#cccccc", strokeWidth=2)
                .encode(y=own, x=alt.X(f"{second}:Q", scale=scale), x2=f"{first}:Q")
            )
            dots = (
                alt.Chart(one)
                .mark_circle(size=70, opacity=1)
                .encode(
                    y=own,
                    x=alt.X("nats:Q", scale=scale, title="KL, nats", axis=alt.Axis(values=TENS, format="~g")),
                    color=alt.Color(
                        "line:N",
                        scale=alt.Scale(**domain),
                        legend=alt.Legend(title=None, orient="top", labelLimit=400, symbolOpacity=1),
                    ),
                )
            )
            rows.append(alt.layer(bar, dots).properties(width=330, title=f"{kind} rewards: {limit}"))
        columns.append(alt.vconcat(*rows).resolve_scale(x="shared"))
    chart = (
        alt.hconcat(*columns)
        .resolve_scale(x="shared")
        .properties(title=title)
        .configure(background="white")
        .configure_axis(grid=True, gridColor="#eeeeee")
        .configure_title(fontSize=12)
    )
    return to_svg(chart)


def to_svg(chart: Any) -> str:
    import vl_convert

    return str(vl_convert.vegalite_to_svg(json.dumps(chart.to_dict()), vl_version="6.4"))
