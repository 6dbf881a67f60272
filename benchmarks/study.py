"""Tables and a figure of docs/study/methods.md, from what `gift compare` made: the ranking, and what methods bear."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.closed_form_figures import to_svg
from benchmarks.results import markdown
from gift.compare.numbers import mean_and_error, read_run
from gift.compare.tables import interval, with_error
from gift.project.yaml import read_yaml

COMPARE = Path(__file__).parents[1] / "compare"
KINDS = {
    "scale": "rewards x",
    "group": "completions a group",
    "noise": "share of wrong rewards",
}


def made() -> dict[str, Any] | None:
    """The records of compare/data/report, or None where no comparison has been finished."""
    path = COMPARE / "data/report/table.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def ranking(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """A row a method that was swept, best first."""
    lines = [
        [
            row["method"],
            row["seeds"],
            f"{row['lr']:g}",
            f"{row['first']:.3f}",
            with_error(row, "area"),
            *_differences(row),
            f"{row['kl']:.2f}",
        ]
        for row in sorted(rows, key=lambda row: -row["area"])
        if row["method"] in names
    ]
    header = ["method", "seeds", "lr", "round 1", "all rounds", "less GRPO's", "last round, less GRPO's", "KL"]
    return markdown(header, lines)


def borne(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """A row a method that was not swept, in the order of the plan."""
    known = {row["method"]: row for row in rows}
    lines = [
        [
            name,
            known[name]["seeds"],
            with_error(known[name], "area"),
            known[name]["against"],
            *_differences(known[name]),
        ]
        for name in names
    ]
    return markdown(["method", "seeds", "all rounds", "beside", "less its", "last round, less its"], lines)


def _differences(row: dict[str, Any]) -> list[str]:
    return ["", ""] if row["method"] == row["against"] else [interval(row, kind) for kind in ("area", "last")]


def parts() -> dict[str, str]:
    """The tables by the names under which they stand on the page."""
    found = made()
    if found is None:
        return dict.fromkeys(("ranking", "borne"), "Not run yet.")
    plan = read_yaml(COMPARE / "compare.yaml")
    rows = found["rows"]
    return {"ranking": ranking(rows, plan["run"]), "borne": borne(rows, plan["fixed"]["run"])}


def robustness_figure() -> str | None:
    """What methods bear, over the seeds of `fixed` alone; None where no comparison has been finished."""
    found = made()
    if found is None:
        return None
    plan, params = (read_yaml(COMPARE / name) for name in ("compare.yaml", "params.yaml"))

    def areas(name: str) -> list[float]:
        runs = [read_run(COMPARE / f"data/runs/{name}/{seed}.json") for seed in plan["fixed"]["seeds"]]
        return [run.area(found["metric"]) for run in runs]

    return figure(points(plan, areas, params["generate"]["group_size"]), found["metric"])


def points(plan: dict[str, Any], areas: Callable[[str], list[float]], group_size: int) -> list[dict[str, Any]]:
    """A record for each method of `fixed` with one reward, by what its entry changes, and for what it stands beside.

    plan: the content of compare.yaml. areas: of a method's runs. group_size: that of compare/params.yaml.
    """
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
            values = areas(which)
            mean, error = mean_and_error(values)
            error = error if len(values) > 1 else 0.0
            bounds = {"mean": mean, "low": mean - error, "high": mean + error}
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
        x = alt.X("value:Q", title=title, scale=scale, axis=alt.Axis(values=values, format=".2~f"))
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
