"""Check settings, data, rewards and machine before any other stage works; and which rewards decide what is sampled."""

from pathlib import Path

import click

from gift.doctor.findings import closing, has_error, report
from gift.doctor.rewards import deciding_rewards
from gift.doctor.run import check_project
from gift.project import console
from gift.project.code import check_code
from gift.project.door import check_unchanged
from gift.project.errors import UserError
from gift.project.work import refuse_existing, write_text


@click.command()
@click.argument("out", type=Path)
@click.argument("sampling", type=Path)
def main(out: Path, sampling: Path) -> None:
    """Errors end the run here. OUT has the same bytes whenever there is none, so that nothing after it runs again.

    SAMPLING says `none`, and else changes with the rewards: what samples depends on it.
    """
    console.quiet()
    refuse_existing(out, sampling)
    code = check_code("doctor")
    findings = check_project(quick=True, again=False)
    told = [each for each in findings if each.level in ("warning", "error")]
    for line in report(told):
        click.echo(line, err=True)
    click.echo(closing(findings))
    if has_error(findings):
        raise UserError("a later stage would stop: mend the errors above; `gift doctor` checks more, and tells all")
    decide = deciding_rewards()
    check_unchanged("doctor", code)
    write_text(sampling, decide + "\n")
    write_text(out, "ok\n")


if __name__ == "__main__":
    console.run(main)
