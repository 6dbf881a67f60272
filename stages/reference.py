"""Log-probs of a round's completions under the reference and under the policy that the round starts from."""

from pathlib import Path

import click

from gift.policy.folder import find_policy, find_reference
from gift.project import console
from gift.project.errors import UserError
from gift.project.params import read_launch, read_section, settings_of
from gift.project.work import Work, refuse_existing, tree_digest, write_json
from gift.tables.parts import check_same_rows, read_table
from gift.tables.reference import read_reference
from gift.tables.rollouts import ROLLOUTS, check_rollouts
from gift.training.reference.settings import Precision, Reference, ReferenceLaunch
from gift.training.reference.table import Models, audit, write_reference
from gift.training.reference.weights import weight_metrics
from gift.workers.settings import Workers
from stages import of_round, paths


@click.command()
@of_round
@paths("base", "policy", "rollouts", "out", "metrics")
def main(name: str, overrides: Path | None, base: Path, policy: Path, rollouts: Path, out: Path, metrics: Path) -> None:
    console.quiet()
    refuse_existing(out, metrics)
    settings, dtype = read_section("reference", Reference, overrides), read_section("update", Precision).dtype
    launch = read_launch("reference", ReferenceLaunch)
    sampled, source = read_table(rollouts, ROLLOUTS, check_rollouts, ["rollout_logprobs", "finish_reason"])
    files, lineage = find_policy(policy, base)
    if source["policy"] != lineage.digest:
        raise UserError(
            f"{rollouts}: sampled by policy {source['policy'][:12]}, but {policy} is {lineage.digest[:12]}; "
            f"run `dvc repro generate@{name}`"
        )
    reference, reference_digest = files, lineage.digest
    if settings.policy == "base":
        reference, reference_digest = find_reference(base, files, lineage)
    metadata = {
        "artifact": "reference",
        "policy": lineage.digest,
        "reference": reference_digest,
        "settings": {"policy": settings.policy, "dtype": dtype},
    }
    weights = settings.token_weights
    if weights:  # a table without them has the bytes that it had before there were any
        metadata["settings"] |= {"token_weights": settings_of(weights)}
    label = f"reference@{name}"
    metadata["rollouts"] = tree_digest(rollouts)
    work = Work(label, metadata)
    folder = work.folder / "reference"
    models = Models(files, reference, dtype, source["temperature"], weights, launch)
    write_reference(folder, rollouts, models, metadata, label, read_launch("workers", Workers))
    table, _ = read_reference(folder)
    check_same_rows(table, sampled, folder)
    numbers = audit(sampled, table, settings.max_mean_gap) | (weight_metrics(table) if weights else {})
    write_json(work.folder / "reference.json", numbers)
    work.publish({folder: out, work.folder / "reference.json": metrics})
    gap = numbers["sampling/sampling_logp_difference/mean"]
    console.say(label, completions=table.num_rows, mean_gap=f"{gap:.2g} nats a token")


if __name__ == "__main__":
    console.run(main)
