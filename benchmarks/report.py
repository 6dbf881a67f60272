"""Time and size of `gift report` where a round of this project is there a hundred times: at first, and one round on."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import click

from benchmarks.cases import Run, measured
from benchmarks.measure import fresh, say
from benchmarks.results import finish, markdown
from benchmarks.rewards import run_module

TABLES = ("rollouts", "scores", "notes", "reference", "answers", "answer_scores")
PAGE = "data/report/report.html"


@measured(quick={}, dtypes=False)
@click.option("--rounds", "counts", default="10,100", show_default=True, help="Numbers of rounds.")
@click.option("--name", default="r1", show_default=True, help="The finished round that they are copies of.")
def main(run: Run, counts: str, name: str) -> None:
    """In a project that has run: `make bench ARGS=report` there."""
    if not Path("data/rounds", name, "scores").is_dir():
        raise click.ClickException(f"data/rounds/{name}: no finished round; `make repro` first")
    found: dict[str, dict[str, Any]] = {}
    for number in (int(each) for each in counts.split(",")):
        with tempfile.TemporaryDirectory() as work:
            folder = Path(work, "project")
            fresh(write_project, Path.cwd(), folder, name, number)
            run_module(folder, "gift.cli", "plots-template", ".dvc/plots.html")  # as `make env` does
            first = run_module(folder, "gift.cli", "report")
            (folder / f"data/rounds/r{number}/scores/part-00000.parquet").touch()
            second = run_module(folder, "gift.cli", "report")
            found[str(number)] = {"first": first, "next": second, "bytes": (folder / PAGE).stat().st_size}
        say(f"{number} rounds: {found[str(number)]}")
    finish("report", {**run.settings, "name": name}, {"rounds": found}, table, run.out)


def write_project(source: Path, folder: Path, name: str, number: int) -> None:
    """A project whose rounds all have the tables of one, and its numbers."""
    folder.mkdir()
    for each in ("params.yaml", "data/prompts", "data/rounds/base/answers", "data/rounds/base/answer_scores"):
        copy = shutil.copytree if (source / each).is_dir() else shutil.copyfile
        (folder / each).parent.mkdir(parents=True, exist_ok=True)
        copy(source / each, folder / each)
    shutil.copytree(source / "data/rounds/base/policy", folder / "data/rounds/base/policy")
    for part in ("history", "made"):
        (folder / "data" / part).mkdir()
    shutil.copyfile(source / "data/history/base.json", folder / "data/history/base.json")
    lines = ["rounds:"]
    history = json.loads((source / f"data/history/{name}.json").read_text())
    for index in range(1, number + 1):
        new = f"r{index}"
        lines.append(f"  {new}: {{from: {f'r{index - 1}' if index > 1 else 'base'}}}")
        for each in TABLES:
            shutil.copytree(source / f"data/rounds/{name}/{each}", folder / f"data/rounds/{new}/{each}")
        own = {"round": history["round"] | {"round": index, "name": new}, "steps": history["steps"]}
        (folder / f"data/history/{new}.json").write_text(json.dumps(own))
        shutil.copyfile(source / f"data/made/update@{name}.json", folder / f"data/made/update@{new}.json")
    (folder / "rounds.yaml").write_text("\n".join(lines) + "\n")


def table(result: dict[str, Any]) -> str:
    """A row a number of rounds."""
    rows = [
        [number, f"{each['first']['seconds']:.1f}", f"{each['next']['seconds']:.1f}", f"{each['bytes'] / 1e6:.2f}"]
        for number, each in result["rounds"].items()
    ]
    return markdown(["rounds", "from nothing, s", "one round changed, s", "page, MB"], rows)


if __name__ == "__main__":
    main()
