"""Sample the group rollouts of a round from the policy it starts from."""

from pathlib import Path

import click
import pyarrow.compute as pc

from gift.methods.sample.passes import Stream
from gift.project import console
from gift.project.params import read_launch, read_section, read_seed
from gift.project.work import refuse_existing, write_json
from gift.sampling.by_rewards import sample_by_rewards
from gift.sampling.encoding import chat_findings
from gift.sampling.given import encode_given
from gift.sampling.rollouts import Launch, read_split, requests_of_groups, sample
from gift.sampling.settings import Generate, GenerateLaunch
from gift.tables.parts import read_table
from gift.tables.prompts import prompt_column
from gift.tables.rollouts import ROLLOUTS, check_rollouts, without_given
from gift.workers.settings import Workers
from stages import of_round, paths


@click.command()
@of_round
@paths("base", "policy", "prompts", "out", "metrics")
def main(name: str, overrides: Path | None, base: Path, policy: Path, prompts: Path, out: Path, metrics: Path) -> None:
    console.quiet()
    refuse_existing(out, metrics)
    settings, seed = read_section("generate", Generate, overrides), read_seed()
    launch = Launch(read_launch("generate", GenerateLaunch), read_launch("workers", Workers))
    split = read_split(policy, base, prompts, settings, "generate")
    asked, lineage = split.encoded, split.lineage
    if prompt_column(split.table) == "messages":
        for finding in chat_findings(split.tokenizer, asked.ends, asked.opening, split.variables, policy):
            click.echo(f"generate: {finding}", err=True)
    given = encode_given(split.tokenizer, split.table, asked, split.variables, settings, policy, prompts)
    label, number = f"generate@{name}", lineage.round + 1
    stream = Stream(list(asked.prompt_ids), lineage.prompts_consumed, seed)
    facts = {"round": number, "temperature": settings.temperature, "seed": seed}
    ledger: dict[str, int] = {}
    if settings.sample is None:
        counts = dict.fromkeys(stream.take(settings.prompts_per_round), settings.group_size)
        groups = requests_of_groups(asked.prompt_ids, counts, settings.temperature, seed, number)
        facts["prompts_consumed"] = stream.position
        work = sample(label, split, prompts, groups, settings, launch, given, **facts)
    else:
        paths = (policy, prompts)
        work, ledger = sample_by_rewards(name, split, paths, settings, launch, stream, given, overrides, **facts)
    folder = work.folder / "rollouts"
    written, _ = read_table(folder, ROLLOUTS, check_rollouts, ["completion_ids", "finish_reason"])
    rollouts = without_given(written)
    numbers = {
        "num_prompts": split.table.num_rows,
        "num_prompts_too_long": split.num_long,
        "num_groups": len(pc.unique(rollouts["prompt_id"])),
        "num_completions": rollouts.num_rows,
        "num_truncated": pc.sum(pc.equal(rollouts["finish_reason"], "length")).as_py(),
        "num_tokens": pc.sum(pc.list_value_length(rollouts["completion_ids"])).as_py(),
    }
    if settings.given:
        numbers["num_given"] = written.num_rows - rollouts.num_rows
    if ledger:
        numbers |= ledger
        numbers["num_completions_thrown_away"] = ledger["num_completions_sampled"] - numbers["num_completions"]
    write_json(work.folder / "generate.json", numbers)
    work.publish({folder: out, work.folder / "generate.json": metrics})
    console.say(label, **numbers)


if __name__ == "__main__":
    console.run(main)
