"""Answer the held-out prompts with a policy: sample 0 is greedy, the others are sampled."""

from pathlib import Path

import click

from gift.project import console
from gift.project.params import read_launch, read_section, read_seed
from gift.project.seeds import seed_of
from gift.project.work import refuse_existing
from gift.sampling.engine.requests import Request
from gift.sampling.rollouts import Launch, read_split, sample
from gift.sampling.settings import Evaluate, GenerateLaunch
from gift.workers.settings import Workers
from stages import of_round, paths


@click.command()
@of_round
@paths("base", "policy", "prompts", "out")
def main(name: str, overrides: Path | None, base: Path, policy: Path, prompts: Path, out: Path) -> None:
    console.quiet()
    refuse_existing(out)
    settings, seed = read_section("evaluate", Evaluate, overrides), read_seed()
    launch = Launch(read_launch("generate", GenerateLaunch), read_launch("workers", Workers))
    split = read_split(policy, base, prompts, settings, "evaluate")
    temperatures = [0.0] + [settings.temperature] * settings.num_samples
    groups = {
        # The same seeds in every round, so that rounds are compared on common random numbers.
        key: [
            Request(ids, seed_of("evaluate", seed, key, index), temperature)
            for index, temperature in enumerate(temperatures)
        ]
        for key, ids in sorted(split.encoded.prompt_ids.items())
    }
    label = f"generate_eval@{name}"
    facts = {"round": split.lineage.round, "num_samples": settings.num_samples, "seed": seed}
    work = sample(label, split, prompts, groups, settings, launch, **facts, num_prompts_too_long=split.num_long)
    work.publish({work.folder / "rollouts": out})
    shown = {"num_prompts_too_long": split.num_long, "num_samples": settings.num_samples}
    console.say(label, num_prompts=len(groups), **shown)


if __name__ == "__main__":
    console.run(main)
