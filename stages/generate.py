"""Sample the group rollouts of a round from the policy it starts from."""

from pathlib import Path

import click
import pyarrow.compute as pc

from gift.methods.sample.epochs import take_prompts
from gift.project import console
from gift.project.options import of_round, paths
from gift.project.params import read_launch, read_section, read_seed
from gift.project.seeds import seed_of
from gift.project.work import refuse_existing, write_json
from gift.sampling.encoding import chat_findings
from gift.sampling.engine import Request
from gift.sampling.given import encode_given
from gift.sampling.rollouts import read_split, sample
from gift.sampling.settings import Generate, GenerateLaunch
from gift.tables.parts import read_table
from gift.tables.prompts import prompt_column
from gift.tables.rollouts import ROLLOUTS, check_rollouts, without_given


@click.command()
@of_round
@paths("base", "policy", "prompts", "out", "metrics")
def main(name: str, overrides: Path | None, base: Path, policy: Path, prompts: Path, out: Path, metrics: Path) -> None:
    console.quiet()
    refuse_existing(out, metrics)
    settings, seed = read_section("generate", Generate, overrides), read_seed()
    launch = read_launch("generate", GenerateLaunch)
    split = read_split(policy, base, prompts, settings, "generate")
    asked, lineage = split.encoded, split.lineage
    if prompt_column(split.table) == "messages":
        for finding in chat_findings(split.tokenizer, asked.ends, asked.opening, split.variables, policy):
            click.echo(f"generate: {finding}", err=True)
    given = encode_given(split.tokenizer, split.table, asked, split.variables, settings, policy, prompts)
    ids = list(asked.prompt_ids)
    taken, position = take_prompts(ids, lineage.prompts_consumed, settings.prompts_per_round, seed)
    number = lineage.round + 1
    groups = {
        key: [
            Request(asked.prompt_ids[key], seed_of("generate", seed, number, key, index), settings.temperature)
            for index in range(settings.group_size)
        ]
        for key in sorted(taken)
    }
    label = f"generate@{name}"
    facts = {"round": number, "prompts_consumed": position, "temperature": settings.temperature, "seed": seed}
    work = sample(label, split, prompts, groups, settings, launch, given, **facts)
    folder = work.folder / "rollouts"
    written, _ = read_table(folder, ROLLOUTS, check_rollouts, ["completion_ids", "finish_reason"])
    rollouts = without_given(written)
    numbers = {
        "num_prompts": split.table.num_rows,
        "num_prompts_too_long": split.num_long,
        "num_groups": len(groups),
        "num_completions": rollouts.num_rows,
        "num_truncated": pc.sum(pc.equal(rollouts["finish_reason"], "length")).as_py(),
        "num_tokens": pc.sum(pc.list_value_length(rollouts["completion_ids"])).as_py(),
    }
    if settings.given:
        numbers["num_given"] = written.num_rows - rollouts.num_rows
    write_json(work.folder / "generate.json", numbers)
    work.publish({folder: out, work.folder / "generate.json": metrics})
    console.say(label, **numbers)


if __name__ == "__main__":
    console.run(main)
