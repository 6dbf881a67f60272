"""Write down in which settings a round differs from params.yaml, a file for each section."""

from pathlib import Path

import click

from gift.project import console
from gift.project.door import check_inputs
from gift.project.errors import UserError
from gift.project.params import overrides_text
from gift.project.rounds import ROUNDS, SECTIONS, read_rounds
from gift.project.work import refuse_existing, write_text


@click.command()
@click.option("--round", "name", required=True)
@click.option("--out", "folder", type=Path, required=True, help="A folder; the other stages depend on its files.")
def main(name: str, folder: Path) -> None:
    """A stage depends on the file of its own section, so that another section's change does not make it stale."""
    rounds = read_rounds()
    if name not in rounds:
        raise UserError(f"{ROUNDS}: rounds: there is no round '{name}'")
    files = {section: folder / f"{section}.json" for section in SECTIONS}
    refuse_existing(*files.values())
    check_inputs()
    for section, file in files.items():
        write_text(file, overrides_text(rounds[name], section))
    console.say(f"overrides@{name}", changed=", ".join(rounds[name].overrides) or "nothing")


if __name__ == "__main__":
    console.run(main)
