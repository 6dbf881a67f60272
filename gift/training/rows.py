"""A round's completions as the update sees them, joined from the rollouts, scores and reference tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from gift.methods.select.spread import enough_rewards, has_preference
from gift.methods.shape.zscore import Rewards
from gift.policy.lineage import Lineage
from gift.project.errors import UserError
from gift.project.ragged import Ints, Ragged
from gift.rewards.total import Term, gated
from gift.tables.parts import check_lengths, check_same_rows, read_table
from gift.tables.reference import REFERENCE, check_reference
from gift.tables.rollouts import ROLLOUTS, check_rollouts
from gift.tables.scores import read_scores
from gift.training.settings import Update


@dataclass(frozen=True)
class Rows:
    """A round's completions, groups in order: P groups of G rows, row = group * G + sample.

    Tokens are int32, log-probs float32 in nats, both flat: `rows.ref_logprobs.take(chosen).values` are those of some
    rows, in their order.
    """

    prompt_ids: Ragged
    completion_ids: Ragged
    ref_logprobs: Ragged
    old_logprobs: Ragged
    rewards: Rewards

    @property
    def group_size(self) -> int:
        return self.rewards.mask.shape[1]

    def rows_of(self, groups: Sequence[int]) -> list[int]:
        return [group * self.group_size + sample for group in groups for sample in range(self.group_size)]

    @cached_property
    def lengths(self) -> Ints:
        """int64 [rows, 2]: tokens of each row's prompt, and of its completion."""
        return np.stack([self.prompt_ids.lengths, self.completion_ids.lengths], axis=1)

    @cached_property
    def shortest(self) -> int:
        """The first of the rows with the fewest tokens."""
        return int(self.lengths.sum(1).argmin())


def read_round(
    rollouts: Path, scores: Path, reference: Path, lineage: Lineage, policy: Path
) -> tuple[Rows, dict[str, Any]]:
    """The rows of a round and the rollouts' metadata; tables made with another policy are refused."""
    table, source = read_table(rollouts, ROLLOUTS, check_rollouts, ["prompt_ids", "completion_ids"])
    scored, scores_source = read_scores(scores)
    referenced, reference_source = read_table(reference, REFERENCE, check_reference)
    for path, metadata in ((rollouts, source), (scores, scores_source), (reference, reference_source)):
        if metadata["policy"] != lineage.digest:
            raise UserError(
                f"{path}: made with policy {metadata['policy'][:12]}, but {policy} is {lineage.digest[:12]}; a round "
                f"trains only on its own rollouts: run `dvc repro generate@{path.parent.name}`"
            )
    check_same_rows(scored, table, scores)
    check_same_rows(referenced, table, reference)
    check_lengths(referenced, reference, "ref_logprobs", pc.list_value_length(table["completion_ids"]))
    rows = join_rows(table, scored, referenced, scores_source["rewards"])
    del table, scored, referenced
    pa.default_memory_pool().release_unused()  # Arrow keeps what it took for the tables otherwise
    return rows, source


def join_rows(
    rollouts: pa.Table, scores: pa.Table, reference: pa.Table, rewards: Mapping[str, Mapping[str, Any]]
) -> Rows:
    """Rows of three tables with the same key in the same order; a null reward does not train (mask False).

    rewards: score.rewards as the scores were made with it, from their table's metadata.
    """
    group_size = pc.max(rollouts["sample"]).as_py() + 1
    return Rows(
        prompt_ids=Ragged.from_arrow(rollouts["prompt_ids"]),
        completion_ids=Ragged.from_arrow(rollouts["completion_ids"]),
        ref_logprobs=Ragged.from_arrow(reference["ref_logprobs"]),
        old_logprobs=Ragged.from_arrow(reference["old_logprobs"]),
        rewards=rewards_of(scores, rewards, group_size),
    )


def rewards_of(scores: pa.Table, rewards: Mapping[str, Mapping[str, Any]], group_size: int) -> Rewards:
    """The scores table as tensors; a component whose gate is shut counts as 0, one without a value not at all.

    rewards: as for `join_rows`. Components stand in the order of the table's columns.
    """
    terms = {name: Term(**rewards[name]) for name in scores.column_names if name in rewards}
    opened = gated({name: scores[name].to_numpy() for name in terms}, terms)
    values = torch.from_numpy(np.stack([scores["reward"].to_numpy(), *opened.values()], -1))
    values = values.view(-1, group_size, 1 + len(opened))
    known, numbers = ~values.isnan(), values.nan_to_num().float()
    return Rewards(
        total=numbers[..., 0],
        mask=known[..., 0],
        components=numbers[..., 1:],
        known=known[..., 1:] & known[..., :1],
        weights=torch.tensor([term.weight for term in terms.values()]),
    )


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
