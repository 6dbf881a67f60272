"""The `gift` command: check a project, extend its rounds, look at one, choose and compare methods, merge an adapter."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from gift.project.errors import UserError, amount, counted, refused
from gift.project.rounds import ROUNDS, branches, extend, read_rounds


class Lines(click.Group):
    """What the machine refuses is a line, as a mistake of the user is."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and error.filename:
                raise UserError(f"{error.filename}: no such file; run `gift` in the project's folder") from None
            raise refused(error) or error from None


@click.group(cls=Lines)
def main() -> None:
    """Look after the rounds of a GIFT pipeline; `dvc repro` runs them."""


@main.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", metavar="[ARGUMENT]...", nargs=-1, type=click.UNPROCESSED)
def repro(arguments: tuple[str, ...]) -> None:
    """Run what is stale: `dvc repro` with its ARGUMENTS, after mending what a kill left of DVC's files."""
    from gift.project.console import interruptible

    with interruptible():
        from gift.doctor.again import stages_of_run
        from gift.report.history import HISTORY, outcomes
        from gift.upkeep.repro import repro as run

        if code := run(arguments, stages_of_run):
            raise SystemExit(code)
        lines = list(outcomes(HISTORY, branches(read_rounds())))
        for line in lines:
            click.echo(line)
        if lines:
            last = lines[-1].partition(":")[0]
            click.echo(f"look: `gift inspect {last}`, `dvc plots show`; keep: `git add -A && git commit`")


@main.command()
@click.argument("targets", metavar="[TARGET]...", nargs=-1)
def plan(targets: tuple[str, ...]) -> None:
    """The stages that a run would make (of TARGETs such as update@r5, or of all), and why; nothing runs."""
    from gift.doctor.again import world
    from gift.upkeep.show import plan_lines

    for line in plan_lines(world(), targets):
        click.echo(line)


@main.command()
@click.argument("names", metavar="ROUND...", nargs=-1, required=True)
@click.option("--settings", is_flag=True, help="Also where settings changed, and not code alone.")
def keep(names: tuple[str, ...], settings: bool) -> None:
    """Keep finished rounds as they are although the code of their stages changed; data/made says what made them."""
    from gift.doctor.again import world
    from gift.upkeep.keep import keep as keep_stages
    from gift.upkeep.keep import stages_to_keep

    steps = stages_to_keep(world(), names, settings)
    if steps:
        keep_stages(steps, names)
    click.echo(f"kept: {', '.join(step.stage.address for step in steps) or 'nothing would run again'}")


@main.command()
@click.option(
    "--states", type=click.IntRange(min=1), required=True, help="Optimizer states to keep of a line of rounds."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
def prune(states: int, yes: bool) -> None:
    """Remove old optimizer states from data/ and DVC's cache; no round is trained again for want of one."""
    from gift.project.graph import read_lock
    from gift.upkeep.look import dvc_cache
    from gift.upkeep.prune import prune as remove
    from gift.upkeep.prune import states_to_prune

    going = states_to_prune(read_rounds(), read_lock(), dvc_cache(), states)
    for state in going:
        click.echo(f"{state.folder}: {amount(state.size)}")
    if not going:
        click.echo("nothing to prune")
        return
    size = amount(sum(state.size for state in going))
    if yes or click.confirm(f"Remove {len(going)} states, {size}, for good?"):
        remove(going)


@main.command()
@click.option("--project", "projects", type=Path, multiple=True, help="Another project that shares the cache.")
@click.option("--workspace", is_flag=True, help="Also what branches, tags or experiments alone need.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def gc(projects: tuple[Path, ...], workspace: bool, yes: bool) -> None:
    """Remove from DVC's cache and data/.work what no stage needs any more: old tables, policies, states."""
    from gift.project.graph import read_graph
    from gift.upkeep.gc import remove, unused
    from gift.upkeep.look import dvc_cache

    found = unused(dvc_cache(), read_graph(), projects, workspace)
    for line in found.lines:
        click.echo(line)
    if not found.size:
        click.echo("nothing to remove")
    elif yes or click.confirm(f"Remove {amount(found.size)}, for good?"):
        remove(found)


@main.command()
@click.argument("names", metavar="[ROUND]...", nargs=-1)
@click.option("--rows", type=click.IntRange(min=0), default=8, show_default=True, help="Completions to run of a round.")
@click.option("--remote", is_flag=False, flag_value="", help="Ask DVC's remote (NAME, or the default) what it lacks.")
def verify(names: tuple[str, ...], rows: int, remote: str | None) -> None:
    """Check what finished rounds made (ROUNDs, or all): digests, tables, lineage, ledger, log-probs; or a remote."""
    from gift.project import console
    from gift.project.graph import read_graph, read_lock

    console.quiet()
    from gift.upkeep.verify import Checked, missing_in_remote
    from gift.upkeep.verify import verify as look

    known = read_rounds()
    if remote is None:
        checks = look(read_graph(), read_lock(), known, list(names or known), rows)
    else:
        missing = missing_in_remote(remote or None)
        found = f"{len(missing)} outputs are not there: {', '.join(missing[:8])}" if missing else "has all outputs"
        checks = iter([Checked("remote", found, wrong=bool(missing))])
    wrong = 0
    for each in checks:
        wrong += each.wrong
        click.echo(f"{'wrong' if each.wrong else 'ok':<6} {each.what}: {each.found}")
    if wrong:
        raise SystemExit(1)


@main.command()
@click.argument("number", type=click.IntRange(min=1), required=False)
@click.option("--file", type=Path, default=ROUNDS, show_default=True)
def rounds(number: int | None, file: Path) -> None:
    """Show the rounds and their branches; with NUMBER, extend the chain r1, r2, ... to so many first."""
    new = extend(file, number) if number else 0
    known = read_rounds(file)
    for line in branches(known).values():
        shown = (f"{name} ({', '.join(known[name].overrides)})" if known[name].overrides else name for name in line[1:])
        click.echo(f"{line[0]} -> {' -> '.join(shown)}")
    num = counted(len(known), "round")
    click.echo(f"{file}: {num}, {new} of them new; `make repro` runs what is not made yet")


@main.command()
@click.option("--quick", is_flag=True, help="Only what takes a second or two: what `dvc repro` runs first.")
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects in place of a table.")
def doctor(quick: bool, as_json: bool) -> None:
    """Check settings, data, rewards and machine before any stage works; exit code 1 where a stage would fail."""
    from gift.project import console

    console.quiet()
    from gift.doctor.findings import closing, has_error, report
    from gift.doctor.run import check_project

    findings = check_project(quick)
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        click.echo("\n".join([*report(findings), closing(findings)]))
    if has_error(findings):
        raise SystemExit(1)


@main.command()
@click.argument("names", metavar="[STAGE]...", nargs=-1)
@click.option("--same", is_flag=True, help="Its edited code makes the same bytes: what was made before stays.")
@click.option("--other", is_flag=True, help="It makes other bytes: under a new number, so that all is made again.")
def code(names: tuple[str, ...], same: bool, other: bool) -> None:
    """Which code each STAGE runs; --same or --other list it in stages/results.yaml (without a STAGE: all edited)."""
    from gift.project.code import UNNUMBERED, code_of, fingerprint, record, stages
    from gift.project.errors import UserError
    from gift.project.sections import did_you_mean

    for name in names:
        if name not in stages():
            raise UserError(f"{name}: no such stage; {did_you_mean(name, stages())}")
    if same and other:
        raise UserError("--same or --other, not both")
    for name in names or stages():
        said = code_of(name)
        if same or other:
            if name not in UNNUMBERED and (names or said.startswith("edited")):
                click.echo(record(name, same=same))
        else:
            click.echo(f"{name:<14} {fingerprint(name)}  {said if said.startswith('edited') else f'results {said}'}")


@main.command()
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
        return Path(name) if Path(name).is_dir() or "/" in name else Path("data/rounds", name)

    show(Console(), folder(name), Query(**query), answers, folder(against) if against else None, whole)


@main.command()
@click.argument("policy", type=Path)
@click.argument("out", type=Path)
@click.option("--base", type=Path, help="The base policy, where it is not where the adapter's config says.")
def merge(policy: Path, out: Path, base: Path | None) -> None:
    """Merge a LoRA POLICY (data/rounds/r1/policy) with its base into the plain Hugging Face folder OUT."""
    from gift.project import console

    console.quiet()
    from gift.policy.merge import merge as merge_policy

    dtype = merge_policy(policy, out, base)
    click.echo(f"{out}: written, in {dtype}; `base.model: {out}` begins a project from it")


@main.command()
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Runs at a time.")
@click.option("--table", is_flag=True, help="Only show the table that was made last.")
def compare(jobs: int, table: bool) -> None:
    """Run the methods of compare/compare.yaml that have not run yet, and show their table."""
    from gift.compare.runner import REPORT, run_all
    from gift.project.errors import UserError

    if not table:
        run_all(jobs, click.echo)
    shown = REPORT / "table.md"
    if not shown.exists():
        raise UserError(f"{shown}: no such file; `gift compare` makes it")
    click.echo(shown.read_text(encoding="utf-8"))
    click.echo(f"figures: {', '.join(str(path) for path in sorted(REPORT.glob('*.svg')))}")


@main.command()
@click.argument("name")
@click.option("--file", type=Path, default=Path("params.yaml"), show_default=True)
def method(name: str, file: Path) -> None:
    """Lay the method NAME, a file of presets/methods, over params.yaml: the keys that make a method, and no other."""
    from gift.compare.presets import METHODS, lay_over_file

    for line in lay_over_file(file, METHODS / f"{name}.yaml"):
        click.echo(line)
    click.echo(f"{file}: now {name}; `gift doctor --quick` looks at it")


@main.command()
@click.argument("out", type=Path, default=Path(".dvc/plots.html"))
def plots_template(out: Path) -> None:
    """Write the page that `dvc plots show` fills, with its scripts inside, so that plots need no network."""
    import vl_convert

    # DVC's own page loads its scripts from the network. Its charts are of Vega-Lite 5, and call a global vegaEmbed.
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version="5.21")
    page = (
        "<!DOCTYPE html>\n<html>\n<head>\n<meta charset='utf-8'>\n<title>DVC plots</title>\n"
        f"<script type='text/javascript'>{bundle}</script>\n</head>\n"
        "<body>\n{plot_divs}\n</body>\n</html>\n"
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    click.echo(f"{out}: written, for `dvc plots show` (plots.html_template of DVC)")


if __name__ == "__main__":
    main()
