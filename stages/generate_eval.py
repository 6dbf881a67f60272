"""Answer the held-out prompts with a policy: sample 0 is greedy, the others are sampled."""

from functools import partial
from pathlib import Path

import click

from gift.policy.folder import find_policy, load_tokenizer
from gift.project import console
from gift.project.params import read_launch, read_section, read_seed, settings_of
from gift.project.seeds import seed_of
from gift.project.work import Work, file_digest, refuse_existing
from gift.sampling.encoding import encode_split, refuse_long_prompts
from gift.sampling.engine import Request, start_sampler
from gift.sampling.rollouts import Group, write_rollouts
from gift.sampling.settings import Evaluate, GenerateLaunch
from gift.tables.prompts import read_prompts


@click.command()
@click.option("--round", "name", required=True)
@click.option("--overrides", type=Path, help="What the round changes: the folder that stages.overrides made.")
@click.option("--base", type=Path, required=True)
@click.option("--policy", type=Path, required=True)
@click.option("--prompts", type=Path, required=True)
@click.option("--out", type=Path, required=True)
def main(name: str, overrides: Path | None, base: Path, policy: Path, prompts: Path, out: Path) -> None:
    console.quiet()
    refuse_existing(out)
    settings, seed = read_section("evaluate", Evaluate, overrides), read_seed()
    launch = read_launch("generate", GenerateLaunch)
    files, lineage = find_policy(policy, base)
    table, source = read_prompts(prompts)
    variables = source.get("chat_template_kwargs", {})
    tokenizer = load_tokenizer(files.model)
    every = encode_split(tokenizer, files.model, table, variables, settings, "evaluate", policy)
    encoded, num_long = refuse_long_prompts(every, settings, "evaluate")
    temperatures = [0.0] + [settings.temperature] * settings.num_samples
    groups = [
        Group(
            key,
            # The same seeds in every round, so that rounds are compared on common random numbers.
            [
                Request(encoded.prompt_ids[key], seed_of("evaluate", seed, key, sample), temperature)
                for sample, temperature in enumerate(temperatures)
            ],
        )
        for key in sorted(encoded.prompt_ids)
    ]
    metadata = {
        "artifact": "rollouts",
        "policy": lineage.digest,
        "round": lineage.round,
        "num_samples": settings.num_samples,
        "settings": settings_of(settings),
        "seed": seed,
        "generation_prompt": encoded.opening,
        "num_prompts_too_long": num_long,
    }
    label = f"generate_eval@{name}"
    work = Work(label, {**metadata, "prompts": file_digest(prompts)})
    write_rollouts(
        work.folder / "rollouts",
        groups,
        settings.groups_per_part,
        metadata,
        partial(start_sampler, files, settings, encoded.ends, encoded.context, launch),
        partial(tokenizer.decode, skip_special_tokens=True),
        label,
    )
    work.publish({work.folder / "rollouts": out})
    console.say(label, num_prompts=len(groups), num_prompts_too_long=num_long, num_samples=settings.num_samples)


if __name__ == "__main__":
    console.run(main)
