"""Make what all runs of a comparison start from: the prompts, cut into train, dev and test, and the base policy."""

import os
from pathlib import Path

import click

from gift.compare.chain import held_out
from gift.project import console
from gift.project.work import Work, refuse_existing, tree_digest, write_json
from gift.project.yaml import read_yaml
from stages import base, prepare


@click.command()
@click.option("--params", type=Path, required=True)
@click.argument("out", type=Path)
def main(params: Path, out: Path) -> None:
    console.quiet()
    refuse_existing(out)
    content = read_yaml(params)
    work = Work("compare_start", {key: content.get(key) for key in ("seed", "prepare", "arithmetic", "base")})
    folder = work.folder / "project"
    folder.mkdir(exist_ok=True)
    root = Path.cwd()
    link(root, folder)
    write_json(folder / "params.yaml", content)
    under_dvc = os.environ.pop("DVC_STAGE", None)
    os.chdir(folder)
    if not Path("prompts").exists():
        prepare.main(["prompts/train.parquet", "prompts/eval.parquet", "prompts/prepare.json"], standalone_mode=False)
    if not Path("base/policy").exists():
        base.main(["base/policy", "base/optimizer"], standalone_mode=False)
    os.chdir(root)
    if under_dvc is not None:
        os.environ["DVC_STAGE"] = under_dvc
    held_out(folder / "prompts/eval.parquet", folder / "prompts")
    made = work.folder / "start"
    made.mkdir(exist_ok=True)
    for name in ("prompts", "base"):
        (folder / name).rename(made / name)
    digest = tree_digest(made)
    work.publish({made: out})
    console.say("compare_start", digest=digest[:12])


def link(root: Path, folder: Path) -> None:
    """The comparison's own rewards, local files and launch settings, where the stages look for them."""
    places = {"rewards": "compare/rewards", "sources": "sources", "launch.yaml": "launch.yaml"}
    for name, place in places.items():
        if (root / place).exists() and not (folder / name).exists():
            (folder / name).symlink_to(root / place)


if __name__ == "__main__":
    console.run(main)
