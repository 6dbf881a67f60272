"""What an update starts from: its files, as rank 0 finds them, its rows, and the optimizer steps that they make."""

from dataclasses import astuple, dataclass
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
from gift.training.rows import Rows, read_round, select_groups
from gift.training.schedule import check_schedule
from gift.training.settings import Update, UpdateLaunch
from gift.training.steps import steps_of_groups


@dataclass(frozen=True)
class Settings:
    """What the two files of settings say of an update."""

    update: Update
    launch: UpdateLaunch
    seed: int


@dataclass(frozen=True)
class Inputs:
    base: Path
    policy: Path
    optimizer: Path
    rollouts: Path
    scores: Path
    reference: Path


@dataclass(frozen=True)
class Outputs:
    policy: Path
    optimizer: Path
    metrics: Path
    steps: Path


@dataclass(frozen=True)
class Parent:
    """The policy that a round starts from."""

    files: PolicyFiles
    lineage: Lineage


@dataclass(frozen=True)
class Plan:
    """The rows of a round, the metadata of its rollouts, the groups of every optimizer step, and the ledger of all."""

    rows: Rows
    source: dict[str, Any]
    steps: list[list[int]]
    ledger: dict[str, int]
    note: str | None


def find_parent(inputs: Inputs, outputs: Outputs, settings: Settings) -> Parent:
    """Look at the policy (its files are hashed) and refuse what cannot be trained, or has been already."""
    refuse_existing(*astuple(outputs))
    files, lineage = find_policy(inputs.policy, inputs.base)
    check_parent(files, lineage, settings.update.lora)
    if settings.launch.gradient_checkpointing and (reason := dropout_refusal(read_config(files.model))):
        raise UserError(f"launch.yaml: update.gradient_checkpointing: {files.model}: {reason}")
    return Parent(files, lineage)


def plan_round(inputs: Inputs, settings: Settings, parent: Parent) -> Plan:
    """Read the tables, and share their groups out to optimizer steps: the same on every rank."""
    lineage, update = parent.lineage, settings.update
    rows, source = read_round(inputs.rollouts, inputs.scores, inputs.reference, lineage, inputs.policy)
    groups, ledger = select_groups(rows, update)
    if not groups:
        raise UserError(
            f"{inputs.scores}: no group can train: of {ledger['num_groups']}, {ledger['num_groups_zero_spread']} have "
            f"equal rewards and {ledger['num_groups_unscored']} fewer than two scores; look at the rewards, raise "
            "generate.group_size, or choose prompts that are neither always nor never solved"
        )
    order = seed_of("update", settings.seed, source["round"])
    steps = steps_of_groups(groups, update.groups_per_step, update.epochs, order)
    return Plan(rows, source, steps, ledger, check_schedule(lineage.optimizer_steps, len(steps), update))


def work_inputs(inputs: Inputs, settings: Settings, lineage: Lineage) -> dict[str, Any]:
    """All that the result depends on, for the fingerprint of unfinished work; the tables and the state are hashed."""
    return {
        "update": settings_of(settings.update),
        "seed": settings.seed,
        "policy": lineage.model_dump(),
        "optimizer": tree_digest(inputs.optimizer),
        "tables": [tree_digest(path) for path in (inputs.rollouts, inputs.scores, inputs.reference)],
    }
