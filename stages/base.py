"""Make the policy that round 1 starts from, and its empty optimizer state."""

import shutil
from pathlib import Path

import click

from gift.params import read_params
from gift.policy.fetch import make_base
from gift.policy.folder import write_lineage
from gift.project import console
from gift.project.work import Work, refuse_existing, write_json


@click.command()
@click.argument("policy", type=Path)
@click.argument("optimizer", type=Path)
def main(policy: Path, optimizer: Path) -> None:
    console.quiet()
    refuse_existing(policy, optimizer)
    params = read_params()
    task = params.prepare.arithmetic.model_dump() if params.base.model == "arithmetic" else None
    inputs = {"base": params.base.model_dump(mode="json"), "task": task, "seed": params.seed}
    work = Work("base", policy, inputs)
    folder = work.folder / "policy"
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed before its lineage was written
    make_base(params, folder, work.folder / "training")
    lineage = write_lineage(folder)
    write_json(work.folder / "optimizer" / "state.json", {"optimizer_steps": 0, "state": None})
    work.publish({work.folder / "optimizer": optimizer, folder: policy})
    console.say("base", model=params.base.model, digest=lineage.digest[:12])


if __name__ == "__main__":
    console.run(main)
