"""The one exception for a user's mistake: click prints its message as a line and exits with code 1."""

from typing import Any

import click


class UserError(click.ClickException):
    """A mistake of the user: what is wrong, where (key, file, row), the rule, and the remedy, in one message."""

    def show(self, file: object = None) -> None:
        click.echo(f"error: {self.message}", err=True)


def wrong_param(key: str, value: Any, problem: str) -> UserError:
    """The error of one key of params.yaml: its value, the rule and the remedy."""
    return UserError(f"params.yaml: {key}: {value!r}: {problem}")
