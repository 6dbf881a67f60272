"""Check settings, data, rewards and machine before any other stage works; the output says nothing but ok."""

from pathlib import Path

import click

from gift.doctor.findings import closing, has_error, report
from gift.doctor.run import check_project
from gift.project import console
from gift.project.code import check_code
from gift.project.errors import UserError
from gift.project.work import refuse_existing, write_text


@click.command()
@click.argument("out", type=Path)
def main(out: Path) -> None:
    """Errors end the run here. OUT has the same bytes whenever there is none, so that nothing after it runs again."""
    console.quiet()
    refuse_existing(out)
    code = check_code("doctor")
    findings = check_project(quick=True)
    for line in report([finding for finding in findings if finding.level in ("warning", "error")]):
        click.echo(line, err=True)
    click.echo(closing(findings))
    if has_error(findings):
        raise UserError("a later stage would stop: mend the errors above; `gift doctor` checks more, and tells all")
    check_code("doctor", code)
    write_text(out, "ok\n")


if __name__ == "__main__":
    console.run(main)
