"""Make what all runs of a comparison start from: the prompts, cut into train, dev and test, and the base policy."""

import shutil
from pathlib import Path

import click

from gift.compare.chain import held_out, inside
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
    link(Path.cwd(), folder)
    write_json(folder / "params.yaml", content)
    with inside(folder):
        # What each publishes last is there, or nothing is: it may have been killed in between.
        if not Path("prompts/prepare.json").exists():
            shutil.rmtree("prompts", ignore_errors=True)
            tables = ["prompts/train.parquet", "prompts/eval.parquet", "prompts/prepare.json"]
            prepare.main(tables, standalone_mode=False)
        if not Path("base/policy").exists():
            shutil.rmtree("base", ignore_errors=True)
            base.main(["base/policy", "base/optimizer"], standalone_mode=False)
    held_out(folder / "prompts/eval.parquet", folder / "prompts")
    work.publish({folder / name: out / name for name in ("prompts", "base")})
    console.say("compare_start", digest=tree_digest(out)[:12])


def link(root: Path, folder: Path) -> None:
    """The comparison's own rewards, local files and launch settings, where the stages look for them."""
    places = {"rewards": "compare/rewards", "sources": "sources", "launch.yaml": "launch.yaml"}
    for name, place in places.items():
        if (root / place).exists() and not (folder / name).exists():
            (folder / name).symlink_to(root / place)


if __name__ == "__main__":
    console.run(main)
