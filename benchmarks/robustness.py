"""The figure of what methods bear: other scales of rewards, group sizes and wrong rewards, from `gift compare`."""

from collections.abc import Sequence
from typing import Any

from benchmarks.closed_form_figures import to_svg

KINDS = {
    "scale": "rewards x",
    "group": "completions a group",
    "noise": "share of wrong rewards",
}


def points(plan: dict[str, Any], rows: Sequence[dict[str, Any]], group_size: int) -> list[dict[str, Any]]:
    """A record for each method of `fixed` with one reward, by what its entry changes, and for what it stands beside.

    plan: the content of compare.yaml. rows: those of table.json. group_size: that of compare/params.yaml.
    """
    known = {row["method"]: row for row in rows}
    made = []
    for name in plan["fixed"]["run"]:
        entry = plan["methods"][name]
        rewards = entry.get("score", {}).get("rewards", {})
        if "noisy" in rewards:
            kind, value, plain = "noise", rewards["noisy"]["settings"]["share"], 0.0
        elif len(rewards) > 1:
            continue
        elif rewards:
            kind, value, plain = "scale", rewards["answer"]["weight"], 1.0
        else:
            kind, value, plain = "group", entry["generate"]["group_size"], group_size
        for which, place in ((name, value), (entry["preset"], plain)):
            row = known[which]
            error = row["area_se"] or 0.0
            bounds = {"mean": row["area"], "low": row["area"] - error, "high": row["area"] + error}
            made.append({"kind": kind, "method": entry["preset"], "value": float(place), **bounds})
    return [dict(each) for each in dict.fromkeys(tuple(record.items()) for record in made)]


def figure(records: Sequence[dict[str, Any]], metric: str) -> str:
    """A panel a kind: the mean over all rounds and seeds, a line a method; bars are standard errors."""
    import altair as alt
    import pandas as pd

    methods = list(dict.fromkeys(record["method"] for record in records))
    panels = []
    for kind, title in KINDS.items():
        own = [record for record in records if record["kind"] == kind]
        values = sorted({record["value"] for record in own})
        scale = alt.Scale(type="linear" if kind == "noise" else "log", nice=False)
        x = alt.X("value:Q", title=title, scale=scale, axis=alt.Axis(values=values, format="~g"))
        colour = alt.Color("method:N", scale=alt.Scale(domain=methods), legend=alt.Legend(title=None, orient="top"))
        y = alt.Y("mean:Q", title=None, scale=alt.Scale(domainMin=0))
        chart = alt.Chart(pd.DataFrame(own))
        line = chart.mark_line(strokeWidth=2, point=True).encode(x=x, y=y, color=colour)
        bar = chart.mark_rule().encode(x=x, y=alt.Y("low:Q", title=None), y2="high:Q", color=colour)
        panels.append(alt.layer(line, bar).properties(width=220, height=200))
    chart = (
        alt.hconcat(*panels)
        .resolve_scale(y="shared")
        .properties(title=f"{metric}, mean over all rounds and seeds ± standard error")
        .configure(background="white")
        .configure_axis(grid=True, gridColor="#eeeeee")
    )
    return to_svg(chart)
