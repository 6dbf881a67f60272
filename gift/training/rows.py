"""A round's completions as the update sees them, joined from the rollouts, scores and reference tables."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from gift.methods.groups import Groups, groups_of
from gift.policy.folder import Lineage
from gift.project.errors import UserError
from gift.scoring.settings import Score
from gift.tables.parts import (
    REFERENCE,
    ROLLOUTS,
    check_reference,
    check_rollouts,
    check_same_rows,
    check_scores,
    read_table,
    scores_schema,
)


@dataclass(frozen=True)
class Rows:
    """A round's completions, groups in order: P groups of G rows, row = group * G + sample."""

    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    groups: Groups

    def length(self, row: int) -> int:
        return len(self.prompt_ids[row]) + len(self.completion_ids[row])


def read_round(
    rollouts: Path, scores: Path, reference: Path, score: Score, lineage: Lineage, policy: Path
) -> tuple[tuple[pa.Table, pa.Table, pa.Table], dict[str, Any]]:
    """The three tables of a round and the rollouts' metadata; tables made with another policy are refused."""
    table, source = read_table(rollouts, ROLLOUTS, check_rollouts)
    scored, scores_source = read_table(scores, scores_schema(score.rewards), check_scores)
    referenced, reference_source = read_table(reference, REFERENCE, check_reference)
    for path, metadata in ((rollouts, source), (scores, scores_source), (reference, reference_source)):
        if metadata["policy"] != lineage.digest:
            raise UserError(
                f"{path}: made with policy {metadata['policy'][:12]}, but {policy} is {lineage.digest[:12]}; a round "
                f"trains only on its own rollouts: run `dvc repro generate@{path.parent.name}`"
            )
    check_same_rows(scored, table, scores)
    check_same_rows(referenced, table, reference)
    return (table, scored, referenced), source


def join_rows(rollouts: pa.Table, scores: pa.Table, reference: pa.Table, score: Score, max_tokens: int) -> Rows:
    """Rows of three tables with the same key in the same order; max_tokens: the longest that a completion may be."""
    prompts = rollouts["prompt_id"].to_pylist()
    size = prompts.count(prompts[0])
    groups = groups_of(
        **rewards_of(scores, score, size),
        lengths=torch.tensor(pc.list_value_length(rollouts["completion_ids"]).to_numpy()).long().view(-1, size),
        max_tokens=max_tokens,
        truncated=torch.tensor(pc.equal(rollouts["finish_reason"], "length").to_numpy()).view(-1, size),
        ref_logprobs=_flat(reference, "ref_logprobs"),
        old_logprobs=_flat(reference, "old_logprobs"),
    )
    return Rows(rollouts["prompt_ids"].to_pylist(), rollouts["completion_ids"].to_pylist(), groups)


def rewards_of(scores: pa.Table, score: Score, group_size: int) -> dict[str, Any]:
    """The scores table as fields of `Groups`; a null reward does not train (mask False).

    A component whose gate is shut counts as 0, one without a value not at all.
    """
    rewards, mask = _column(scores, "reward", group_size)
    values, known = zip(*(_column(scores, name, group_size) for name in score.rewards), strict=True)
    columns = dict(zip(score.rewards, values, strict=True))
    opened = {
        name: columns[name] * (columns[reward.only_if] == 1) if reward.only_if else columns[name]
        for name, reward in score.rewards.items()
    }
    return {
        "rewards": rewards,
        "mask": mask,
        "components": torch.stack(list(opened.values()), -1),
        "known": torch.stack(known, -1) & mask.unsqueeze(-1),
        "weights": torch.tensor([reward.weight for reward in score.rewards.values()]),
        "names": tuple(score.rewards),
    }


def _flat(table: pa.Table, name: str) -> Tensor:
    return torch.tensor(pc.list_flatten(table[name]).to_numpy())


def _column(scores: pa.Table, name: str, group_size: int) -> tuple[Tensor, Tensor]:
    """A column of the scores as float [P, G], 0 where null, and bool [P, G] where it is not."""
    values = scores[name].to_pylist()
    numbers = torch.tensor([0.0 if value is None else value for value in values])
    return numbers.view(-1, group_size), torch.tensor([value is not None for value in values]).view(-1, group_size)
