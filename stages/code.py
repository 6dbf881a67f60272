"""Write down which code each stage runs: the number of its results, or that it was edited."""

from pathlib import Path

import click

from gift.project import console
from gift.project.code import code_of, stages
from gift.project.work import write_text


@click.command()
@click.argument("folder", type=Path)
def main(folder: Path) -> None:
    """A file of FOLDER whose stage has the same code as before is not touched."""
    edited = []
    for stage in stages():
        path, said = folder / f"{stage}.txt", code_of(stage) + "\n"
        if not path.exists() or path.read_text(encoding="utf-8") != said:
            write_text(path, said)
        edited += [stage] if said.startswith("edited") else []
    console.say("code", stages=len(stages()), edited=", ".join(edited) or "none")


if __name__ == "__main__":
    console.run(main)
