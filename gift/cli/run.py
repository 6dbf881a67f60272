"""The commands that run the pipeline, extend and check it, and choose a method."""

import json
from dataclasses import asdict
from pathlib import Path

import click

from gift.project.errors import UserError, counted
from gift.project.rounds import ROUNDS, branches, extend, read_rounds


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", metavar="[ARGUMENT]...", nargs=-1, type=click.UNPROCESSED)
def repro(arguments: tuple[str, ...]) -> None:
    """Run what is stale: `dvc repro` with its ARGUMENTS, after mending what a kill left of DVC's files."""
    from gift.project.console import interruptible

    with interruptible():
        from gift.doctor.again import stages_of_run
        from gift.report.history import HISTORY
        from gift.report.outcome import closing
        from gift.report.page.watch import report_kept_new
        from gift.report.page.write import PAGE
        from gift.upkeep.look import has_remote
        from gift.upkeep.repro import repro as run

        with report_kept_new():
            code = run(arguments, stages_of_run)
        if code:
            raise SystemExit(code)
        for line in closing(HISTORY, branches(read_rounds()), PAGE, has_remote()):
            click.echo(line)


@click.command()
@click.argument("targets", metavar="[TARGET]...", nargs=-1)
def plan(targets: tuple[str, ...]) -> None:
    """The stages that a run would make (of TARGETs such as update@r5, or of all), and why; nothing runs."""
    from gift.doctor.again import world
    from gift.upkeep.show import plan_lines

    for line in plan_lines(world(), targets):
        click.echo(line)


@click.command()
@click.option("--connect", metavar="HOST:PORT", required=True, help="Where the stage listens (workers.listen).")
@click.option("--token", type=Path, default=Path("data/.cache/workers.token"), show_default=True)
@click.option("--workers", type=click.IntRange(min=1), help="How many; without it, as many as there are GPUs for.")
@click.option("--wait", default=60.0, show_default=True, metavar="SECONDS", help="How long to look for the stage.")
@click.option("--stay", is_flag=True, help="Work for the stages that listen there afterwards, too.")
def worker(connect: str, token: Path, workers: int | None, wait: float, stay: bool) -> None:
    """Work for a stage on another host, in the same project's folder; may come and go while the stage lasts."""
    from gift.project.console import interruptible
    from gift.workers.local import work_here
    from gift.workers.settings import is_address

    if not is_address(connect):
        raise click.BadParameter(f"{connect}: must be host:port, such as 10.0.0.1:7070", param_hint="--connect")
    with interruptible():
        raise SystemExit(work_here(connect, token, workers, wait, stay))


@click.command()
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


@click.command()
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


@click.command()
@click.argument("names", metavar="[STAGE]...", nargs=-1)
@click.option("--same", is_flag=True, help="Its edited code makes the same bytes: what was made before stays.")
@click.option("--other", is_flag=True, help="It makes other bytes: under a new number, so that all is made again.")
def code(names: tuple[str, ...], same: bool, other: bool) -> None:
    """Which code each STAGE runs; --same or --other list it in stages/results.yaml (without a STAGE: all edited)."""
    from gift.project.code import UNNUMBERED, code_of, fingerprint, record, stages
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


@click.command()
@click.argument("name", required=False)
@click.option("--file", type=Path, default=Path("params.yaml"), show_default=True)
def method(name: str | None, file: Path) -> None:
    """Lay a method over params.yaml: NAME is a file of presets/methods, of which it takes the keys that make a method.

    Without NAME: list them.
    """
    from gift.compare.presets import lay_over_file
    from gift.methods.names import PRESETS

    if name is None:
        click.echo("\n".join(sorted(path.stem for path in PRESETS.glob("*.yaml"))))
        return
    for line in lay_over_file(file, PRESETS / f"{name}.yaml"):
        click.echo(line)
    click.echo(f"{file}: now {name}; `gift doctor --quick` looks at it")
