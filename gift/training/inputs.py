"""What an update starts from: its files, as rank 0 finds them, its rows, and in which steps they train."""

import warnings
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from gift.methods.choosing import Chosen, choose
from gift.methods.groups import Groups, Need
from gift.methods.making import groups_of, number_answers
from gift.policy.adapter import check_parent
from gift.policy.folder import Lineage, PolicyFiles, find_policy, read_config
from gift.policy.refusals import dropout_refusal
from gift.project.door import file_digest
from gift.project.errors import UserError
from gift.project.params import settings_of
from gift.project.ragged import Ints, Ragged
from gift.project.seeds import seed_of
from gift.project.work import refuse_existing, tree_digest
from gift.rewards.total import Term, gated
from gift.tables.parts import check_lengths, check_same_rows, read_table
from gift.tables.places import Places
from gift.tables.prompts import read_domains
from gift.tables.reference import WEIGHTS, read_reference
from gift.tables.rollouts import GIVEN, ROLLOUTS, check_rollouts
from gift.tables.scores import read_scores
from gift.training.settings import Update, UpdateLaunch
from gift.training.steps import check_schedule, steps_of_groups

NEEDED: dict[str, Need] = {"rollout_logprobs": "rollout_logprobs", "completion": "answers", "seed": "draws"}
"""Columns of the rollouts that are read for a need alone."""


@dataclass(frozen=True)
class Rows:
    """A round's completions, groups in order: P groups of G rows, row = group * G + sample.

    Tokens are int32 and flat; `groups` has the rest, with all that is scored in the mask. Where groups are not equally
    large, rows that stand for no completion have no tokens.
    """

    prompt_ids: Ragged
    completion_ids: Ragged
    groups: Groups

    @cached_property
    def lengths(self) -> Ints:
        """int64 [rows, 2]: tokens of each row's prompt, and of its completion."""
        return np.stack([self.prompt_ids.lengths, self.completion_ids.lengths], axis=1)

    @cached_property
    def shortest(self) -> int:
        """The first of the rows with the fewest tokens, of those that stand for a completion."""
        there = np.flatnonzero(self.completion_ids.lengths)
        return int(there[self.lengths[there].sum(1).argmin()])


def read_round(
    rollouts: Path,
    scores: Path,
    reference: Path,
    digest: str,
    lineage: Lineage,
    policy: Path,
    needs: Collection[Need] = (),
    prompts: Path = Path(),
    find_answer: Callable[[str], Hashable | None] | None = None,
) -> tuple[Rows, dict[str, Any]]:
    """The rows of a round and the rollouts' metadata; tables made with another policy are refused.

    digest: `tree_digest` of the rollouts, which scores and log-probs must have been made of. needs: what is read for
    them alone; `domains` are in the prompts, `answers` are what `find_answer` finds.
    """
    columns = ["prompt_ids", "completion_ids", "finish_reason"]
    columns += [name for name, need in NEEDED.items() if need in needs]
    table, source = read_table(rollouts, ROLLOUTS, check_rollouts, columns)
    scored, scores_source = read_scores(scores)
    referenced, reference_source = read_reference(reference, weighted=WEIGHTS in needs)
    for path, metadata in ((rollouts, source), (scores, scores_source), (reference, reference_source)):
        if metadata["policy"] != lineage.digest:
            raise UserError(
                f"{path}: made with policy {metadata['policy'][:12]}, but {policy} is {lineage.digest[:12]}; a round "
                f"trains only on its own rollouts: run `dvc repro generate@{path.parent.name}`"
            )
    for stage, path, metadata in (("score", scores, scores_source), ("reference", reference, reference_source)):
        if metadata["rollouts"] != digest:
            raise UserError(
                f"{path}: made of other rollouts than {rollouts}; a round trains on what was said of its own: run "
                f"`dvc repro {stage}@{path.parent.name}`"
            )
    check_same_rows(scored, table, scores)
    check_same_rows(referenced, table, reference)
    check_lengths(referenced, reference, "ref_logprobs", pc.list_value_length(table["completion_ids"]))
    places = Places.of(table)
    completion_ids = Ragged.from_arrow(table["completion_ids"])
    ends = table["finish_reason"]
    groups = groups_of(
        **rewards_of(scored, scores_source["rewards"]),
        lengths=torch.from_numpy(places.spread(completion_ids.lengths, 0)),
        max_tokens=source["settings"]["max_tokens"],
        sampled=torch.tensor(places.spread(pc.not_equal(ends, GIVEN).to_numpy(), True)),
        truncated=torch.tensor(places.spread(pc.equal(ends, "length").to_numpy(), False)),
        ref_logprobs=_tensor(referenced["ref_logprobs"]),
        old_logprobs=_tensor(referenced["old_logprobs"]),
        token_weights=_tensor(referenced[WEIGHTS]) if WEIGHTS in needs else None,
        **_needed(table, places, needs, prompts, find_answer),
    )
    rows = Rows(places.lists(Ragged.from_arrow(table["prompt_ids"])), places.lists(completion_ids), groups)
    del table, scored, referenced
    pa.default_memory_pool().release_unused()  # Arrow keeps what it took for the tables otherwise
    return rows, source


def _needed(
    table: pa.Table,
    places: Places,
    needs: Collection[Need],
    prompts: Path,
    find: Callable[[str], Hashable | None] | None,
) -> dict[str, Any]:
    """The fields of `Groups` that are read for what needs them alone."""
    found: dict[str, Any] = {}
    if "rollout_logprobs" in needs:
        found["rollout_logprobs"] = _sampler_logprobs(table)
    if "answers" in needs and find is not None:
        answers = places.listed([find(text) for text in table["completion"].to_pylist()])
        found["answers"] = number_answers(answers, places.size)
    if "draws" in needs:  # 24 bits, so that float32 holds each of them, and none becomes 1
        draws = [(seed_of("draw", seed) >> 39) / 2**24 for seed in table["seed"].to_pylist()]
        found["draws"] = torch.from_numpy(places.spread(np.array(draws, np.float32), np.nan))
    if "domains" in needs:
        first = table.filter(pc.equal(table["sample"], 0))
        found["domains"] = read_domains(prompts, first["prompt_id"].to_pylist())
    return found


def _sampler_logprobs(table: pa.Table) -> Tensor:
    """Float [N] beside the tokens of all completions; nan for those of given answers, which no sampler drew."""
    given = pc.equal(table["finish_reason"], GIVEN)
    if not pc.any(given).as_py():
        return _tensor(table["rollout_logprobs"])
    lengths = pc.list_value_length(table["completion_ids"]).to_numpy()
    drawn = torch.from_numpy(np.repeat(~given.to_numpy(), lengths))
    found = torch.full(drawn.shape, float("nan"))
    found[drawn] = _tensor(table["rollout_logprobs"])
    return found


def _tensor(column: pa.ChunkedArray) -> Tensor:
    """All values of a column of lists, in Arrow's own memory: nobody writes there, and torch warns that one could."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(Ragged.from_arrow(column).values)


def rewards_of(scores: pa.Table, rewards: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The scores table as fields of `Groups`; a null reward does not train (mask False), nor does an empty place.

    A component whose gate is shut counts as 0, one without a value not at all. rewards: score.rewards as the scores
    were made with it, from their table's metadata. Components stand in the order of the table's columns.
    """
    terms = {name: Term(**rewards[name]) for name in scores.column_names if name in rewards}
    opened = gated({name: scores[name].to_numpy() for name in terms}, terms)
    columns = np.stack([scores["reward"].to_numpy(), *opened.values()], -1)
    values = torch.from_numpy(Places.of(scores).spread(columns, np.nan))
    known, numbers = ~values.isnan(), values.nan_to_num().float()
    return {
        "rewards": numbers[..., 0],
        "mask": known[..., 0],
        "components": numbers[..., 1:],
        "known": known[..., 1:] & known[..., :1],
        "weights": torch.tensor([term.weight for term in terms.values()]),
        "names": tuple(terms),
    }


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
    prompts: Path
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


def find_parent(paths: Paths, settings: Settings) -> tuple[PolicyFiles, Lineage, str]:
    """Look at the policy (its files are hashed) and refuse what cannot be trained, or has been already.

    Returns the digest of the rollouts too: what is hashed, one rank hashes for all.
    """
    refuse_existing(*paths.outputs)
    files, lineage = find_policy(paths.policy, paths.base)
    check_parent(files, lineage, settings.update.lora)
    if settings.launch.gradient_checkpointing is True and (reason := dropout_refusal(read_config(files.model))):
        raise UserError(f"launch.yaml: update.gradient_checkpointing: {files.model}: {reason}")
    return files, lineage, tree_digest(paths.rollouts)


def plan_round(paths: Paths, settings: Settings, files: PolicyFiles, lineage: Lineage, digest: str) -> Plan:
    """Read the tables, and share their groups out to optimizer steps: the same on every rank."""
    update = settings.update
    tables = (paths.rollouts, paths.scores, paths.reference)
    beside = (update.needs, paths.prompts, update.find_answer)
    rows, source = read_round(*tables, digest, lineage, paths.policy, *beside)
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
        "prompts": file_digest(paths.prompts) if "domains" in settings.update.needs else None,
    }
