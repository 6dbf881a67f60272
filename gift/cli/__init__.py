"""The `gift` command: run and check a project, look at its rounds, keep them, choose and compare methods."""

from typing import Any

import click

from gift.cli.keep import card, gc, keep, merge, prune, verify
from gift.cli.look import compare, export, inspect, plots_template, report
from gift.cli.run import code, doctor, method, plan, repro, rounds, worker
from gift.cli.start import init
from gift.project.errors import UserError, refused


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
@click.version_option(package_name="gift", message="gift %(version)s")
def main() -> None:
    """Look after the rounds of a GIFT pipeline; `dvc repro` runs them."""


RUN = (repro, plan, rounds, worker, doctor, method, code)
LOOK = (report, inspect, export, compare, plots_template)
KEEP = (keep, verify, prune, gc, merge, card)
for command in (init, *RUN, *LOOK, *KEEP):
    main.add_command(command)
