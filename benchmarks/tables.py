"""Writes the tables of benchmarks/README.md and docs/study, and the figures: `python -m benchmarks.tables`."""

import re
from pathlib import Path
from typing import Any

from benchmarks import (
    activations,
    bookkeeping,
    closed_form,
    closed_form_figures,
    growth,
    head_noise,
    join,
    kills,
    layouts,
    limit,
    memory,
    methods,
    overfit,
    overhead,
    real_model,
    reference,
    report,
    results,
    rewards,
    rows,
    sampler,
    study,
    update,
    workers,
)

README = Path(__file__).parent / "README.md"
STUDY = Path(__file__).parents[1] / "docs" / "study"
TABLES = {
    "update": update.table,
    "limit": limit.table,
    "layouts": layouts.table,
    "reference": reference.table,
    "memory": memory.table,
    "activations": activations.table,
    "head_noise": head_noise.table,
    "methods": methods.table,
    "growth": growth.table,
    "join": join.table,
    "sampler": sampler.table,
    "rewards": rewards.table,
    "rows": rows.table,
    "report": report.table,
    "bookkeeping": bookkeeping.table,
    "kills": kills.table,
    "kills_by": kills.table,
    "workers": workers.table,
    "overhead": overhead.table,
    "real_model": real_model.table,
    "closed_form": closed_form.table,
    "overfit": overfit.table,
}
PAGES = {
    README: [name for name in TABLES if name not in ("closed_form", "overfit")],
    STUDY / "closed_form.md": ["closed_form"],
    STUDY / "methods.md": ["ranking", "borne", "overfit"],
}
"""Which tables stand on which page."""


def filled(text: str, page: Path = README) -> str:
    """A page with each part between `<!-- name -->` and `<!-- /name -->` made from the results of that name."""
    ready = study.parts() if "ranking" in PAGES[page] else {}
    for name in PAGES[page]:
        marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        assert len(marked.findall(text)) == 1, f"{page}: needs one part between <!-- {name} --> and <!-- /{name} -->"
        part = (
            ready.get(name)
            or "\n\n".join(section(name, result) for result in results.read_results(name))
            or "Not measured yet."
        )
        text = marked.sub(lambda match, part=part: f"{match[1]}{part}\n{match[2]}", text)
    return text


def section(name: str, result: dict[str, Any]) -> str:
    """One result: the machine and versions in a line, then its table."""
    machine, settings = result["machine"], result["settings"]
    where = ", ".join(machine["gpus"]) or f"{machine['cpu']}, {machine['cores']} cores"
    versions = ", ".join(f"{package} {version}" for package, version in result["versions"].items())
    how = ", ".join(f"{key} {value}" for key, value in settings.items() if key != "quick")
    lines = f"{where}, {machine['memory_gib']:g} GiB; {versions}. {how}.\n\n{TABLES[name](result)}"
    if name == "memory":
        lines += f"\n\n![Peak memory of a step](results/{figure_name(result)})"
    return lines


def figure_name(result: dict[str, Any]) -> str:
    return f"memory-{result['machine']['device']}.svg"


def study_figures(result: dict[str, Any]) -> dict[str, str]:
    """The figures of docs/study/closed_form.md by name, as SVG."""
    setting = result["settings"]
    of_round, kinds = setting["prompts"] * setting["group_size"], closed_form.KINDS
    chosen, last = setting["rounds"] * of_round, closed_form.AFTER * setting["rounds"] * of_round
    found = {kind: result[kind] for kind in kinds if kind in result}
    what = f"KL to the optimum, {next(iter(found))} rewards, mean over seeds ± standard error"
    return {
        "closed_form-curves.svg": closed_form_figures.curves(
            next(iter(found.values())), chosen, f"{what} (dashed: the rollouts that the rate was chosen for)"
        ),
        "closed_form-ends.svg": closed_form_figures.ends(found, f"KL after {last:,} rollouts"),
    }


def main() -> None:
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8"), page), encoding="utf-8")
    for result in results.read_results("closed_form"):
        for name, figure in study_figures(result).items():
            (STUDY / name).write_text(figure, encoding="utf-8")
    if drawn := study.robustness_figure():
        (STUDY / "methods-robustness.svg").write_text(drawn, encoding="utf-8")
    for result in results.read_results("real_model"):
        (results.FOLDER / "real_model-cpu.svg").write_text(real_model.figure(result), encoding="utf-8")
    for result in results.read_results("memory"):
        (results.FOLDER / figure_name(result)).write_text(memory.figure(result), encoding="utf-8")


if __name__ == "__main__":
    main()
