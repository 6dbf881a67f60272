"""A round's completions as the update sees them, joined from the rollouts, scores and reference tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from gift.methods.before import Rewards
from gift.methods.select.spread import enough_rewards, has_preference
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
from gift.training.settings import Update


@dataclass(frozen=True)
class Rows:
    """A round's completions, groups in order: P groups of G rows, row = group * G + sample."""

    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    ref_logprobs: list[Tensor]
    old_logprobs: list[Tensor]
    rewards: Rewards

    @property
    def group_size(self) -> int:
        return self.rewards.mask.shape[1]

    def rows_of(self, groups: Sequence[int]) -> list[int]:
        return [group * self.group_size + sample for group in groups for sample in range(self.group_size)]

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


def join_rows(rollouts: pa.Table, scores: pa.Table, reference: pa.Table, score: Score) -> Rows:
    """Rows of three tables with the same key in the same order; a null reward does not train (mask False)."""
    prompts = rollouts["prompt_id"].to_pylist()
    group_size = prompts.count(prompts[0])
    return Rows(
        prompt_ids=rollouts["prompt_ids"].to_pylist(),
        completion_ids=rollouts["completion_ids"].to_pylist(),
        ref_logprobs=[torch.tensor(values) for values in reference["ref_logprobs"].to_pylist()],
        old_logprobs=[torch.tensor(values) for values in reference["old_logprobs"].to_pylist()],
        rewards=rewards_of(scores, score, group_size),
    )


def rewards_of(scores: pa.Table, score: Score, group_size: int) -> Rewards:
    """The scores table as tensors; a component whose gate is shut counts as 0, one without a value not at all."""
    values, known = zip(*(_column(scores, name, group_size) for name in score.rewards), strict=True)
    columns = dict(zip(score.rewards, values, strict=True))
    total, mask = _column(scores, "reward", group_size)
    opened = {
        name: columns[name] * (columns[reward.only_if] == 1) if reward.only_if else columns[name]
        for name, reward in score.rewards.items()
    }
    return Rewards(
        total=total,
        mask=mask,
        components=torch.stack(list(opened.values()), -1),
        known=torch.stack(known, -1) & mask.unsqueeze(-1),
        weights=torch.tensor([reward.weight for reward in score.rewards.values()]),
    )


def _column(scores: pa.Table, name: str, group_size: int) -> tuple[Tensor, Tensor]:
    """A column of the scores as float [P, G], 0 where null, and bool [P, G] where it is not."""
    values = scores[name].to_pylist()
    numbers = torch.tensor([0.0 if value is None else value for value in values])
    return numbers.view(-1, group_size), torch.tensor([value is not None for value in values]).view(-1, group_size)


def select_groups(rows: Rows, settings: Update) -> tuple[list[int], dict[str, int]]:
    """The groups that train, and the ledger of the others; its sums close."""
    mask = rows.rewards.mask
    enough = enough_rewards(mask)
    spread = has_preference(rows.rewards, settings.advantages)
    chosen = enough & spread if settings.gift.zero_spread == "mask" else enough
    ledger = {
        "num_groups": len(mask),
        "num_completions": mask.numel(),
        "num_completions_unscored": int((~mask).sum()),
        "num_groups_unscored": int((~enough).sum()),
        "num_groups_zero_spread": int((enough & ~spread).sum()),
        "num_groups_selected": int(chosen.sum()),
    }
    return chosen.nonzero().squeeze(-1).tolist(), ledger
