"""Make the prompts tables of training and evaluation from the source that params.yaml names."""

from pathlib import Path

import click

from gift.embedded.task import Arithmetic
from gift.project import console
from gift.project.params import read_section, read_seed, settings_of
from gift.project.work import Work, refuse_existing, write_json
from gift.prompts.origins import untracked_sources
from gift.prompts.settings import Prepare
from gift.prompts.sources import prepare_prompts
from gift.tables.prompts import prompts_table, write_prompts


@click.command()
@click.argument("train", type=Path)
@click.argument("evaluation", type=Path)
@click.argument("ledger", type=Path)
def main(train: Path, evaluation: Path, ledger: Path) -> None:
    console.quiet()
    refuse_existing(train, evaluation, ledger)
    settings, seed = read_section("prepare", Prepare), read_seed()
    task = read_section("arithmetic", Arithmetic)
    made = prepare_prompts(settings, seed, task)
    metadata = {
        "artifact": "prompts",
        "settings": settings_of(settings),
        "seed": seed,
        "chat_template_kwargs": settings.chat_template_kwargs,
    }
    if settings.source == "arithmetic":
        metadata["num_operands"] = task.num_operands
    work = Work("prepare", metadata)
    moves = {}
    for rows, path, split in ((made.train, train, "train"), (made.eval, evaluation, "eval")):
        unfinished = work.folder / f"{split}.parquet"
        write_prompts(unfinished, prompts_table(rows, path), {**metadata, "split": split})
        moves[unfinished] = path
    counts = {**made.ledger, "sources": made.by_source} if made.by_source else made.ledger
    write_json(work.folder / "prepare.json", counts)
    work.publish({**moves, work.folder / "prepare.json": ledger})
    for source in untracked_sources(settings):
        click.echo(f"prepare: {source} is not in sources/: when it changes, run `dvc repro -f -s prepare`", err=True)
    console.say("prepare", **{name.removeprefix("num_"): count for name, count in made.ledger.items() if count})


if __name__ == "__main__":
    console.run(main)
