"""Stop where finished work would run again unasked; else write down which code each stage runs."""

from pathlib import Path

import click

from gift.project import console
from gift.project.code import UNNUMBERED, codes_of, stages
from gift.project.door import check_inputs
from gift.project.work import forget_noted, write_text
from gift.upkeep.guard import looked


@click.command()
@click.argument("folder", type=Path)
@click.option("--compare", is_flag=True, help="Of the stages of compare/dvc.yaml; without it, of those of dvc.yaml.")
def main(folder: Path, compare: bool) -> None:
    """Runs before all other stages, every time. A file of FOLDER whose stage has the same code is not touched."""
    forget_noted()
    if not compare and not looked():
        from gift.doctor.again import again_findings, tell  # late: in a run of `gift repro` it is not asked again

        tell(again_findings())
    names = [stage for stage in stages() if stage.startswith("compare_") == compare]
    edited = []
    numbers = codes_of(names)
    check_inputs()
    for stage, number in numbers.items():
        path, said = folder / f"{stage}.txt", number + "\n"
        if not path.exists() or path.read_text(encoding="utf-8") != said:
            write_text(path, said)
        edited += [stage] if said.startswith("edited") and stage not in UNNUMBERED else []
    console.say("code", stages=len(names), edited=", ".join(edited) or "none")


if __name__ == "__main__":
    console.run(main)
