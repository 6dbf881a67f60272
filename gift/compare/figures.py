"""The figures of a comparison: each method's curve over the rollouts, beside that of the baseline, as SVG."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gift.compare.numbers import Run, mean_and_error

CURVES = {
    "accuracy": ("eval/accuracy_greedy", "held-out accuracy (greedy)"),
    "reward": ("eval/reward", "held-out reward"),
    "kl": ("kl", "KL to the base (nats a completion)"),
    "spread": ("spread", "spread of the log-ratio (nats)"),
    "length": ("eval/mean_length", "tokens of an answer"),
    "gap": ("gap", "reward on training prompts less held-out"),
}
COLUMNS = 4


def curve(runs: Sequence[Run], metric: str) -> list[dict[str, float]]:
    """Points over the completions that were sampled so far: the mean over seeds, and one standard error around it."""
    points = []
    for number in range(runs[0].rounds + 1):
        values = [run.gap(number) if metric == "gap" else run.at(number, metric) for run in runs]
        spent = sum(runs[0].at(before, "completions") for before in range(number))
        mean, error = mean_and_error(values)
        error = 0.0 if len(values) < 2 else error
        points.append({"rollouts": spent, "mean": mean, "low": mean - error, "high": mean + error})
    return points


def figure(runs: Mapping[str, Sequence[Run]], baseline: str, name: str) -> str:
    """A panel for each method: its curve in colour, the baseline's in grey; the same axes in all."""
    import altair as alt
    import pandas as pd
    import vl_convert

    metric, title = CURVES[name]
    records: list[dict[str, Any]] = []
    for method in runs:
        for who in dict.fromkeys((baseline, method)):
            shown = "baseline" if who == baseline else "method"
            records += [{"panel": method, "line": shown, **point} for point in curve(runs[who], metric)]
    colours = alt.Scale(domain=["baseline", "method"], range=["#9a9a9a", "#1f6fb4"])
    colour = alt.Color(
        "line:N", scale=colours, legend=alt.Legend(title=None, orient="top", labelExpr=_legend(baseline))
    )
    x = alt.X("rollouts:Q", title="rollouts", axis=alt.Axis(tickCount=4, format="~s"))
    chart = alt.Chart(pd.DataFrame(records))
    band = chart.mark_area(opacity=0.2).encode(
        x=x, y=alt.Y("low:Q", title=None, scale=alt.Scale(zero=False)), y2="high:Q", color=colour
    )
    line = chart.mark_line(strokeWidth=2).encode(
        x=x, y=alt.Y("mean:Q", title=None, scale=alt.Scale(zero=False)), color=colour
    )
    panels = (
        alt.layer(band, line)
        .properties(width=170, height=120)
        .facet(facet=alt.Facet("panel:N", title=None, sort=list(runs)), columns=COLUMNS)
        .properties(title=f"{title}: mean over seeds ± standard error")
        .configure_axis(grid=True, gridColor="#eeeeee")
    )
    return str(vl_convert.vegalite_to_svg(json.dumps(panels.to_dict()), vl_version="6.4"))


def _legend(baseline: str) -> str:
    return f"datum.label == 'baseline' ? '{baseline}' : 'the method of the panel'"
