"""Say which rewards decide what is sampled, a line that changes with them; `none` where no round samples by rewards."""

from pathlib import Path

import click

from gift.project import console
from gift.project.code import check_code, code_of
from gift.project.params import PARAMS
from gift.project.rounds import lay_over, read_rounds
from gift.project.work import refuse_existing, rewards_digest, write_text
from gift.project.yaml import read_yaml


@click.command()
@click.argument("out", type=Path)
def main(out: Path) -> None:
    """The stage generate depends on OUT, so that only where `generate.sample` is set it depends on rewards."""
    console.quiet()
    refuse_existing(out)
    code = check_code("sampling_rewards")
    content, rounds = read_yaml(PARAMS), read_rounds()
    generate, score = content.get("generate") or {}, content.get("score")
    changes = {name: each.overrides for name, each in rounds.items()}
    ways = [generate, *(lay_over(generate, each.get("generate", {})) for each in changes.values())]
    line = "none"
    if any(way.get("sample") is not None for way in ways):
        own = {name: each["score"] for name, each in changes.items() if "score" in each}
        line = rewards_digest([score, own], code_of("score"))
    check_code("sampling_rewards", code)
    write_text(out, line + "\n")
    console.say("sampling_rewards", decide="nothing" if line == "none" else line[:12])


if __name__ == "__main__":
    console.run(main)
