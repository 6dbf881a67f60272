"""A round's completions as the update sees them, joined from the rollouts, scores and reference tables."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from gift.methods.groups import Groups, groups_of
from gift.policy.lineage import Lineage
from gift.project.errors import UserError
from gift.project.ragged import Ints, Ragged
from gift.rewards.total import Term, gated
from gift.tables.parts import check_lengths, check_same_rows, read_table
from gift.tables.reference import REFERENCE, check_reference
from gift.tables.rollouts import ROLLOUTS, check_rollouts
from gift.tables.scores import read_scores


@dataclass(frozen=True)
class Rows:
    """A round's completions, groups in order: P groups of G rows, row = group * G + sample.

    Tokens are int32 and flat; `groups` has the rest, with all that is scored in the mask.
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
        """The first of the rows with the fewest tokens."""
        return int(self.lengths.sum(1).argmin())


def read_round(
    rollouts: Path, scores: Path, reference: Path, lineage: Lineage, policy: Path
) -> tuple[Rows, dict[str, Any]]:
    """The rows of a round and the rollouts' metadata; tables made with another policy are refused."""
    table, source = read_table(rollouts, ROLLOUTS, check_rollouts, ["prompt_ids", "completion_ids", "finish_reason"])
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
    rows = join_rows(table, scored, referenced, scores_source["rewards"], source["settings"]["max_tokens"])
    del table, scored, referenced
    pa.default_memory_pool().release_unused()  # Arrow keeps what it took for the tables otherwise
    return rows, source


def join_rows(
    rollouts: pa.Table, scores: pa.Table, reference: pa.Table, rewards: Mapping[str, Mapping[str, Any]], max_tokens: int
) -> Rows:
    """Rows of three tables with the same key in the same order.

    rewards: score.rewards as the scores were made with it, from their table's metadata. max_tokens: the longest that a
    completion may be.
    """
    size = pc.max(rollouts["sample"]).as_py() + 1
    completion_ids = Ragged.from_arrow(rollouts["completion_ids"])
    groups = groups_of(
        **rewards_of(scores, rewards, size),
        lengths=torch.from_numpy(completion_ids.lengths).view(-1, size),
        max_tokens=max_tokens,
        truncated=torch.tensor(pc.equal(rollouts["finish_reason"], "length").to_numpy()).view(-1, size),
        ref_logprobs=_tensor(reference["ref_logprobs"]),
        old_logprobs=_tensor(reference["old_logprobs"]),
    )
    return Rows(Ragged.from_arrow(rollouts["prompt_ids"]), completion_ids, groups)


def _tensor(column: pa.ChunkedArray) -> Tensor:
    """All values of a column of lists, in Arrow's own memory: nobody writes there, and torch warns that one could."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(Ragged.from_arrow(column).values)


def rewards_of(scores: pa.Table, rewards: Mapping[str, Mapping[str, Any]], group_size: int) -> dict[str, Any]:
    """The scores table as fields of `Groups`; a null reward does not train (mask False).

    A component whose gate is shut counts as 0, one without a value not at all. rewards: as for `join_rows`. Components
    stand in the order of the table's columns.
    """
    terms = {name: Term(**rewards[name]) for name in scores.column_names if name in rewards}
    opened = gated({name: scores[name].to_numpy() for name in terms}, terms)
    values = torch.from_numpy(np.stack([scores["reward"].to_numpy(), *opened.values()], -1))
    values = values.view(-1, group_size, 1 + len(opened))
    known, numbers = ~values.isnan(), values.nan_to_num().float()
    return {
        "rewards": numbers[..., 0],
        "mask": known[..., 0],
        "components": numbers[..., 1:],
        "known": known[..., 1:] & known[..., :1],
        "weights": torch.tensor([term.weight for term in terms.values()]),
        "names": tuple(terms),
    }
