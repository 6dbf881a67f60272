"""The figures of a comparison, as SVG: curves over the rollouts, differences with intervals, and learning rates."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gift.compare.numbers import CONFIDENCE, ENOUGH, Choice, Run, mean_and_error

CURVES = {
    "accuracy": ("eval/accuracy_greedy", "held-out accuracy (greedy)"),
    "reward": ("eval/reward", "held-out reward"),
    "kl": ("kl", "KL to the base (nats a completion)"),
    "spread": ("spread", "spread of the log-ratio (nats)"),
    "length": ("eval/mean_length", "tokens of an answer"),
    "gap": ("gap", "reward on training prompts less held-out"),
}
COLUMNS = 4
OURS, THEIRS = "#1f6fb4", "#9a9a9a"


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


def curves(runs: Mapping[str, Sequence[Run]], others: Mapping[str, str], name: str) -> str:
    """A panel for each method of `others`: its curve in colour, and in grey that of the one it is compared with."""
    import altair as alt

    metric, title = CURVES[name]
    panels = {method: _titled(method, others) for method in others}
    records: list[dict[str, Any]] = []
    for method, other in others.items():
        for who in dict.fromkeys((other, method)):
            line = "other" if who == other else "method"
            records += [{"panel": panels[method], "line": line, **point} for point in curve(runs[who], metric)]
    x = alt.X("rollouts:Q", title="rollouts", axis=alt.Axis(tickCount=4, format="~s"))
    colour = _colour(others)
    chart = alt.Chart(_frame(records))
    band = chart.mark_area(opacity=0.2).encode(
        x=x, y=alt.Y("low:Q", title=None, scale=alt.Scale(zero=False)), y2="high:Q", color=colour
    )
    line = chart.mark_line(strokeWidth=2).encode(
        x=x, y=alt.Y("mean:Q", title=None, scale=alt.Scale(zero=False)), color=colour
    )
    return _panels(alt.layer(band, line), list(panels.values()), f"{title}: mean over seeds ± standard error")


def rates(choices: Mapping[str, Choice], baseline: str) -> str:
    """A panel for each method that was swept: what each rate reached on the dev split, in grey for the baseline."""
    import altair as alt

    records = [
        {"panel": method, "line": "other" if who == baseline else "method", "lr": lr, "reached": reached}
        for method in choices
        for who in dict.fromkeys((baseline, method))
        for lr, reached in choices[who].reached.items()
    ]
    axis = alt.Axis(values=sorted(choices[baseline].reached), format=".0e")
    line = (
        alt.Chart(_frame(records))
        .mark_line(strokeWidth=2, point=True)
        .encode(
            x=alt.X("lr:Q", title="learning rate", scale=alt.Scale(type="log", nice=False), axis=axis),
            y=alt.Y("reached:Q", title=None),
            color=_colour(dict.fromkeys(choices, baseline)),
        )
    )
    metric = choices[baseline].metric
    return _panels(line, list(choices), f"{metric} on the dev split, mean over all rounds, by learning rate")


def differences(rows: Sequence[dict[str, Any]], metric: str, rounds: int) -> str:
    """A row for each record of `tables.rows_of`: its difference to the one it is compared with, and the interval."""
    import altair as alt

    others = {row["method"]: row["against"] for row in rows if row["method"] != row["against"]}
    kinds = {"area": "mean over all rounds", "last": f"round {rounds}"}
    drawn = sorted((row for row in rows if row["method"] in others), key=lambda row: -(row["area_mean"] or 0.0))
    names = [_titled(row["method"], others) for row in drawn]
    columns: list[Any] = []
    for kind, title in kinds.items():
        records = [
            {
                "method": name,
                "called": "a difference" if row[f"{kind}_is_one"] else "none is called",
                **{key: row[f"{kind}_{key}"] for key in ("mean", "low", "high")},
            }
            for name, row in zip(names, drawn, strict=True)
            if row[f"{kind}_mean"] is not None
        ]
        axis = None if columns else alt.Axis(labelLimit=300)
        y = alt.Y("method:N", title=None, sort=names, axis=axis)
        domain = {"domain": ["a difference", "none is called"], "range": [OURS, THEIRS]}
        colour = alt.Color(
            "called:N", scale=alt.Scale(**domain), legend=alt.Legend(title=None, orient="top", symbolOpacity=1)
        )
        chart = alt.Chart(_frame(records))
        zero = chart.mark_rule(color="#444444").encode(x=alt.datum(0))
        bar = chart.mark_rule(strokeWidth=2).encode(y=y, x=alt.X("low:Q", title=title), x2="high:Q", color=colour)
        dot = chart.mark_circle(size=60, opacity=1).encode(y=y, x=alt.X("mean:Q", title=title), color=colour)
        columns.append(alt.layer(zero, bar, dot).properties(width=300))
    whom = next(iter(set(others.values()))) if len(set(others.values())) == 1 else "the one in brackets"
    text = f"{metric} less that of {whom}: pairs of one seed, {CONFIDENCE:.0%} intervals; called from {ENOUGH} seeds on"
    return _svg(alt.hconcat(*columns).properties(title=text))


def _titled(method: str, others: Mapping[str, str]) -> str:
    """A method's name, with that of the other one where they are not all compared with the same."""
    return method if len(set(others.values())) == 1 else f"{method} ({others[method]})"


def _colour(others: Mapping[str, str]) -> Any:
    import altair as alt

    whom = next(iter(others.values())) if len(set(others.values())) == 1 else "the one in brackets"
    scale = alt.Scale(domain=["other", "method"], range=[THEIRS, OURS])
    words = f"datum.label == 'other' ? '{whom}' : 'the method of the panel'"
    legend = alt.Legend(title=None, orient="top", labelExpr=words, labelLimit=400, symbolOpacity=1)
    return alt.Color("line:N", scale=scale, legend=legend)


def _panels(chart: Any, names: Sequence[str], title: str) -> str:
    import altair as alt

    facet = alt.Facet("panel:N", title=None, sort=list(names))
    return _svg(chart.properties(width=170, height=120).facet(facet=facet, columns=COLUMNS).properties(title=title))


def _frame(records: Sequence[dict[str, Any]]) -> Any:
    import pandas as pd

    return pd.DataFrame(list(records))


def _svg(chart: Any) -> str:
    import vl_convert

    drawn = chart.configure(background="white").configure_axis(grid=True, gridColor="#eeeeee")
    return str(vl_convert.vegalite_to_svg(json.dumps(drawn.to_dict()), vl_version="6.4"))
