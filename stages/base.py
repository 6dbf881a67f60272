"""Make the policy that round 1 starts from, and its empty optimizer state."""

import shutil
from pathlib import Path

import click

from gift.embedded.task import Arithmetic
from gift.policy.fetch import fetch_base
from gift.policy.folder import check_files, write_lineage
from gift.policy.settings import Base
from gift.project import console
from gift.project.params import read_section, read_seed, settings_of
from gift.project.work import Work, refuse_existing, write_json


@click.command()
@click.argument("policy", type=Path)
@click.argument("optimizer", type=Path)
def main(policy: Path, optimizer: Path) -> None:
    console.quiet()
    refuse_existing(policy, optimizer)
    base, seed = read_section("base", Base), read_seed()
    task = read_section("arithmetic", Arithmetic) if base.model == "arithmetic" else None
    work = Work("base", {"base": settings_of(base), "task": task and settings_of(task), "seed": seed})
    folder = work.folder / "policy"
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed before its lineage was written
    if task:
        train(task, seed, folder, work.folder / "training")
    else:
        fetch_base(base, folder)
    lineage = write_lineage(folder)
    write_json(work.folder / "optimizer" / "state.json", {"optimizer_steps": 0, "state": None})
    work.publish({work.folder / "optimizer": optimizer, folder: policy})
    console.say("base", model=base.model, digest=lineage.digest[:12])


def train(task: Arithmetic, seed: int, folder: Path, work: Path) -> None:
    """Fill `folder` with the embedded policy; `work` keeps its unfinished training."""
    from gift.embedded.base_policy import train_base

    with console.Progress("base", task.steps, "steps") as progress:
        model, tokenizer = train_base(task, seed, work, lambda step, loss: progress.advance(step - progress.done))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    check_files(folder)


if __name__ == "__main__":
    console.run(main)
