"""Sample the group rollouts of a round from the policy it starts from."""

from functools import partial
from pathlib import Path

import click
import pyarrow.compute as pc

from gift.methods.sample.epochs import take_prompts
from gift.policy.folder import find_policy, load_tokenizer
from gift.project import console
from gift.project.params import read_launch, read_section, read_seed, settings_of
from gift.project.seeds import seed_of
from gift.project.work import Work, file_digest, refuse_existing, write_json
from gift.sampling.encoding import encode_split, refuse_long_prompts
from gift.sampling.engine import Request, start_sampler
from gift.sampling.rollouts import Group, write_rollouts
from gift.sampling.settings import Generate, GenerateLaunch
from gift.sampling.templates import chat_findings
from gift.tables.parts import read_table
from gift.tables.prompts import prompt_column, read_prompts
from gift.tables.rollouts import ROLLOUTS, check_rollouts


@click.command()
@click.option("--round", "name", required=True)
@click.option("--overrides", type=Path, help="What the round changes: the folder that stages.overrides made.")
@click.option("--base", type=Path, required=True)
@click.option("--policy", type=Path, required=True)
@click.option("--prompts", type=Path, required=True)
@click.option("--out", type=Path, required=True)
@click.option("--metrics", type=Path, required=True)
def main(name: str, overrides: Path | None, base: Path, policy: Path, prompts: Path, out: Path, metrics: Path) -> None:
    console.quiet()
    refuse_existing(out, metrics)
    settings, seed = read_section("generate", Generate, overrides), read_seed()
    launch = read_launch("generate", GenerateLaunch)
    files, lineage = find_policy(policy, base)
    table, source = read_prompts(prompts)
    variables = source.get("chat_template_kwargs", {})
    tokenizer = load_tokenizer(files.model)
    every = encode_split(tokenizer, files.model, table, variables, settings, "generate", policy)
    encoded, num_long = refuse_long_prompts(every, settings, "generate")
    if prompt_column(table) == "messages":
        for finding in chat_findings(tokenizer, encoded.ends, encoded.opening, variables, policy):
            click.echo(f"generate: {finding}", err=True)
    taken, position = take_prompts(list(encoded.prompt_ids), lineage.prompts_consumed, settings.prompts_per_round, seed)
    number = lineage.round + 1
    groups = [
        Group(
            key,
            [
                Request(encoded.prompt_ids[key], seed_of("generate", seed, number, key, sample), settings.temperature)
                for sample in range(settings.group_size)
            ],
        )
        for key in sorted(taken)
    ]
    metadata = {
        "artifact": "rollouts",
        "policy": lineage.digest,
        "round": number,
        "prompts_consumed": position,
        "temperature": settings.temperature,
        "settings": settings_of(settings),
        "seed": seed,
        "generation_prompt": encoded.opening,
    }
    label = f"generate@{name}"
    work = Work(label, {**metadata, "prompts": file_digest(prompts)})
    folder = work.folder / "rollouts"
    write_rollouts(
        folder,
        groups,
        settings.groups_per_part,
        metadata,
        partial(start_sampler, files, settings, encoded.ends, encoded.context, launch),
        partial(tokenizer.decode, skip_special_tokens=True),
        label,
    )
    rollouts, _ = read_table(folder, ROLLOUTS, check_rollouts, ["completion_ids", "finish_reason"])
    numbers = {
        "num_prompts": table.num_rows,
        "num_prompts_too_long": num_long,
        "num_groups": len(groups),
        "num_completions": rollouts.num_rows,
        "num_truncated": pc.sum(pc.equal(rollouts["finish_reason"], "length")).as_py(),
        "num_tokens": pc.sum(pc.list_value_length(rollouts["completion_ids"])).as_py(),
    }
    write_json(work.folder / "generate.json", numbers)
    work.publish({folder: out, work.folder / "generate.json": metrics})
    console.say(label, **numbers)


if __name__ == "__main__":
    console.run(main)
