"""Run a method of a comparison: rounds from the common base under one seed and learning rate, in one process."""

import json
from pathlib import Path

import click

from gift.compare.chain import run_chain
from gift.compare.plan import laid_over
from gift.project import console
from gift.project.work import Work, refuse_existing, tree_digest, write_json
from gift.project.yaml import read_yaml
from stages import evaluate, generate, generate_eval, reference, score, update
from stages.compare.start import link

STAGES = {
    "generate": generate.main,
    "score": score.main,
    "reference": reference.main,
    "update": update.main,
    "generate_eval": generate_eval.main,
    "evaluate": evaluate.main,
}


@click.command()
@click.option("--name", required=True, help="Of the run.")
@click.option("--params", type=Path, required=True)
@click.option("--method", type=Path, required=True, help="What the method changes (stages.compare.methods).")
@click.option("--start", type=Path, required=True, help="What stages.compare.start made.")
@click.option("--split", type=click.Choice(["dev", "test"]), required=True)
@click.option("--rounds", type=click.IntRange(min=1), required=True)
@click.option("--seed", type=click.IntRange(min=0), required=True)
@click.option("--lr", type=float, help="The learning rate.")
@click.option("--chosen", type=Path, help="The file that names it (stages.compare.choose); without both, the method's.")
@click.option("--out", type=Path, required=True)
def main(
    name: str,
    params: Path,
    method: Path,
    start: Path,
    split: str,
    rounds: int,
    seed: int,
    lr: float | None,
    chosen: Path | None,
    out: Path,
) -> None:
    console.quiet()
    refuse_existing(out)
    if chosen:
        lr = json.loads(chosen.read_text(encoding="utf-8"))["lr"]
    content = laid_over(read_yaml(params), json.loads(method.read_text(encoding="utf-8")), lr, seed)
    facts = {"method": method.stem, "lr": content["update"]["lr"], "seed": seed, "split": split}
    work = Work(f"compare_run@{name}", {"content": content, "rounds": rounds, "start": tree_digest(start), **facts})
    folder = work.folder / "project"
    fill(folder, start)
    one_thread()
    with console.Progress(f"compare_run@{name}", rounds + 1, "rounds") as progress:
        made = run_chain(
            folder, content, rounds, Path(f"data/prompts/{split}.parquet"), STAGES, lambda _: progress.advance()
        )
    write_json(work.folder / "run.json", {**facts, **made})
    work.publish({work.folder / "run.json": out})
    last = made["rows"][-1]
    shown = {key.removeprefix("eval/"): value for key, value in last.items() if key.startswith("eval/a")}
    console.say(f"compare_run@{name}", rounds=last["round"], **shown, kl=last["kl"])


def fill(folder: Path, start: Path) -> None:
    """A project folder in which rounds can go on from the base; unfinished ones stay."""
    (folder / "data/rounds/base").mkdir(parents=True, exist_ok=True)
    link(Path.cwd(), folder)
    links = {
        "data/prompts": "prompts",
        "data/rounds/base/policy": "base/policy",
        "data/rounds/base/optimizer": "base/optimizer",
    }
    for name, source in links.items():
        if not (folder / name).exists():
            (folder / name).symlink_to((start / source).resolve())


def one_thread() -> None:
    """On a CPU: several runs at a time are faster, and numbers do not depend on how many cores there are."""
    import torch

    if not torch.cuda.is_available():
        torch.set_num_threads(1)


if __name__ == "__main__":
    console.run(main)
