"""The options that stages have in common: the round, what it changes, and the paths that are read and made."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Main = Callable[..., Any]


def of_round(main: Main) -> Main:
    """--round NAME, and --overrides FOLDER, which the base policy has not."""
    text = "What the round changes: the folder that stages.overrides made."
    main = click.option("--overrides", type=Path, help=text)(main)
    return click.option("--round", "name", required=True)(main)


def paths(*names: str) -> Callable[[Main], Main]:
    """An option for each name: a path that must be given."""

    def add(main: Main) -> Main:
        for name in reversed(names):  # click shows the last one first
            main = click.option(f"--{name.replace('_', '-')}", type=Path, required=True)(main)
        return main

    return add
