"""Writes the tables of benchmarks/README.md and the figures from the result files: `python -m benchmarks.tables`."""

import re
from pathlib import Path
from typing import Any

from benchmarks import (
    growth,
    join,
    layouts,
    limit,
    memory,
    methods,
    overhead,
    real_model,
    reference,
    results,
    rewards,
    sampler,
    update,
)

README = Path(__file__).parent / "README.md"
TABLES = {
    "update": update.table,
    "limit": limit.table,
    "layouts": layouts.table,
    "reference": reference.table,
    "memory": memory.table,
    "methods": methods.table,
    "growth": growth.table,
    "join": join.table,
    "sampler": sampler.table,
    "rewards": rewards.table,
    "overhead": overhead.table,
    "real_model": real_model.table,
}


def filled(text: str) -> str:
    """The README with the part between `<!-- name -->` and `<!-- /name -->` made from the results of that name."""
    for name in TABLES:
        marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        assert len(marked.findall(text)) == 1, f"README.md: needs one part between <!-- {name} --> and <!-- /{name} -->"
        part = "\n\n".join(section(name, result) for result in results.read_results(name)) or "Not measured yet."
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


def main() -> None:
    README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")
    for result in results.read_results("memory"):
        (results.FOLDER / figure_name(result)).write_text(memory.figure(result), encoding="utf-8")


if __name__ == "__main__":
    main()
