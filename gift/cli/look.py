"""The commands that look at results: completions, the report, trackers, comparisons."""

import math
from pathlib import Path
from typing import Any, get_args

import click

from gift.project.errors import UserError, amount, counted
from gift.project.rounds import read_rounds
from gift.project.sections import did_you_mean
from gift.upkeep.settings import Tracker


@click.command()
@click.argument("name", metavar="ROUND")
@click.option("--num", "-n", type=click.IntRange(min=1), default=2, show_default=True, help="Prompts to show.")
@click.option("--prompt-id", "prompt_ids", multiple=True, help="Show this prompt.")
@click.option("--by", type=click.Choice(["reward", "spread", "length"]), help="Order of the prompts, largest first.")
@click.option("--ascending", is_flag=True, help="The smallest first.")
@click.option("--only", type=click.Choice(["best", "worst", "failed", "truncated", "right", "wrong", "gained", "lost"]))
@click.option("--search", metavar="TEXT", help="Completions with this text in them or in their prompt.")
@click.option("--answers", is_flag=True, help="The answers to the held-out prompts, not the rollouts.")
@click.option("--against", metavar="ROUND", help="Another round beside it.")
@click.option("--whole", is_flag=True, help="Long texts to their end.")
def inspect(name: str, answers: bool, against: str | None, whole: bool, **query: Any) -> None:
    """Show the completions of ROUND (r1, or a folder such as data/rounds/r1) with their prompts and rewards."""
    from rich.console import Console

    from gift.report.inspect import show
    from gift.report.rows import Query

    def folder(name: str) -> Path:
        if Path(name).is_dir() or "/" in name:
            return Path(name)
        if name != "base" and name not in (known := read_rounds()):
            raise UserError(f"{name}: no such round in rounds.yaml; {did_you_mean(name, ['base', *known])}")
        if name == "base" and not answers:
            raise UserError(
                "base: nothing was sampled for training on the way to it; --answers shows its held-out answers"
            )
        return Path("data/rounds", name)

    show(Console(), folder(name), Query(**query), answers, folder(against) if against else None, whole)


@click.command()
@click.option("--out", type=Path, help="The file; by default data/report/report.html, or that of the comparison.")
@click.option("--with", "others", multiple=True, metavar="[NAME=]RUN", help="A folder, git revision or experiment.")
@click.option("--compare", "comparison", is_flag=True, help="The methods of `gift compare`, in place of the rounds.")
@click.option("--megabytes", type=click.FloatRange(0, 1000), default=3, show_default=True, help="Room for texts.")
def report(out: Path | None, others: tuple[str, ...], comparison: bool, megabytes: float) -> None:
    """Write the report: a page with curves, rollouts and held-out answers, which a browser opens without a server."""
    from gift.report.page import write as page

    if comparison and others:
        raise UserError("--compare and --with: not both; --compare draws the methods of `gift compare` alone")
    if math.isnan(megabytes):
        raise UserError("--megabytes nan: must be a number from 0 to 1000")
    out = page.checked(out or (page.COMPARE_PAGE if comparison else page.PAGE))
    if comparison:
        page.write_comparison(out)
    else:
        page.write_report(out, others, round(megabytes * 1e6))
    click.echo(f"{out}: written ({amount(out.stat().st_size)}); any browser opens it, here or copied elsewhere")


@click.command()
@click.argument("tracker", type=click.Choice(get_args(Tracker)))
@click.option("--project", help="The tracker's name for it; by default that of this folder.")
def export(tracker: str, project: str | None) -> None:
    """Send the history to TRACKER, a run a branch: what is new since the last time."""
    from gift.report.export import export as send

    for branch, number in send(tracker, project or Path.cwd().name).items():
        click.echo(f"{tracker}: {branch}: {counted(number, 'row')} sent")


@click.command()
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Runs at a time.")
@click.option("--table", is_flag=True, help="Only show the table that was made last.")
def compare(jobs: int, table: bool) -> None:
    """Run the methods of compare/compare.yaml that have not run yet, and show their table."""
    from gift.compare.runner import REPORT, run_all

    if not table:
        run_all(jobs, click.echo)
    shown = REPORT / "table.md"
    if not shown.exists():
        raise UserError(f"{shown}: no such file; `gift compare` makes it")
    click.echo(shown.read_text(encoding="utf-8"))
    click.echo(f"figures: {', '.join(str(path) for path in sorted(REPORT.glob('*.svg')))}")


@click.command()
@click.argument("out", type=Path, default=Path(".dvc/plots.html"))
def plots_template(out: Path) -> None:
    """Write the page that `dvc plots show` fills, with its scripts inside, so that plots need no network."""
    from gift.project.work import write_text
    from gift.report.page.write import charts_script, plots_page

    write_text(out, plots_page())
    charts_script()  # so that the first report does not wait for it
    click.echo(f"{out}: written, for `dvc plots show` (plots.html_template of DVC)")
