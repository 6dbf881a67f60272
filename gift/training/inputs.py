"""What an update starts from: its files, as rank 0 finds them, its rows, and the optimizer steps that they make."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gift.policy.files import PolicyFiles, find_policy
from gift.policy.folder import read_config
from gift.policy.lineage import Lineage
from gift.policy.lora import check_parent
from gift.policy.refusals import dropout_refusal
from gift.project.errors import UserError
from gift.project.params import settings_of
from gift.project.seeds import seed_of
from gift.project.work import refuse_existing, tree_digest
from gift.training.rows import Rows, read_round
from gift.training.schedule import check_schedule
from gift.training.settings import Update, UpdateLaunch
from gift.training.steps import steps_of_groups
from gift.training.targets import Chosen, choose


@dataclass(frozen=True)
class Settings:
    """What the two files of settings say of an update."""

    update: Update
    launch: UpdateLaunch
    seed: int


@dataclass(frozen=True)
class Paths:
    """What an update reads, and the four things that it publishes."""

    base: Path
    policy: Path
    optimizer: Path
    rollouts: Path
    scores: Path
    reference: Path
    out_policy: Path
    out_optimizer: Path
    metrics: Path
    steps: Path

    @property
    def outputs(self) -> tuple[Path, Path, Path, Path]:
        return self.out_policy, self.out_optimizer, self.metrics, self.steps


@dataclass(frozen=True)
class Plan:
    """The policy that a round starts from, its rows, what of them trains, and the groups of every optimizer step.

    `source` is the metadata of the rollouts; `note` is what to say of the learning rate.
    """

    files: PolicyFiles
    lineage: Lineage
    rows: Rows
    source: dict[str, Any]
    chosen: Chosen
    steps: list[list[int]]
    note: str | None


def find_parent(paths: Paths, settings: Settings) -> tuple[PolicyFiles, Lineage]:
    """Look at the policy (its files are hashed) and refuse what cannot be trained, or has been already."""
    refuse_existing(*paths.outputs)
    files, lineage = find_policy(paths.policy, paths.base)
    check_parent(files, lineage, settings.update.lora)
    if settings.launch.gradient_checkpointing and (reason := dropout_refusal(read_config(files.model))):
        raise UserError(f"launch.yaml: update.gradient_checkpointing: {files.model}: {reason}")
    return files, lineage


def plan_round(paths: Paths, settings: Settings, files: PolicyFiles, lineage: Lineage) -> Plan:
    """Read the tables, and share their groups out to optimizer steps: the same on every rank."""
    update = settings.update
    rows, source = read_round(paths.rollouts, paths.scores, paths.reference, lineage, paths.policy)
    chosen = choose(rows.groups, update)
    if not chosen.indices:
        ledger = chosen.ledger
        raise UserError(
            f"{paths.scores}: no group can train: of {ledger['num_groups']}, {ledger['num_groups_zero_targets']} have "
            f"equal rewards, {ledger['num_groups_unscored']} fewer than two scores and of "
            f"{ledger['num_groups_not_selected']} update.select keeps fewer than two completions; look at the rewards, "
            "raise generate.group_size, or choose prompts that are neither always nor never solved"
        )
    order = seed_of("update", settings.seed, source["round"])
    steps = steps_of_groups(chosen.indices, update.groups_per_step, update.epochs, order)
    note = check_schedule(lineage.optimizer_steps, len(steps), update)
    return Plan(files, lineage, rows, source, chosen, steps, note)


def work_inputs(paths: Paths, settings: Settings, lineage: Lineage) -> dict[str, Any]:
    """All that the result depends on, for the fingerprint of unfinished work; the tables and the state are hashed."""
    return {
        "update": settings_of(settings.update),
        "seed": settings.seed,
        "policy": lineage.model_dump(),
        "optimizer": tree_digest(paths.optimizer),
        "tables": [tree_digest(path) for path in (paths.rollouts, paths.scores, paths.reference)],
    }
