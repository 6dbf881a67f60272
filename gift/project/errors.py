"""The one exception for a user's mistake: click prints its message as a line and exits with code 1."""

import click


class UserError(click.ClickException):
    """A mistake of the user: what is wrong, where (key, file, row), the rule, and the remedy, in one message."""

    def show(self, file: object = None) -> None:
        click.echo(f"error: {self.message}", err=True)
