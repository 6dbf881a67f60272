"""The rollouts table: the completions of every prompt as they were sampled, tokens and log-probs; given answers."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from gift.project.errors import UserError
from gift.tables.parquet import metadata_of
from gift.tables.parts import KEY, check_lengths, check_logprobs, refuse_rows

GIVEN = "given"
"""The finish reason of an answer that was given: nobody sampled it, so it has no log-probs of the sampler."""
NO_SEED = -1
FINISH_REASONS = ("stop", "length", GIVEN)
ROLLOUTS = pa.schema(
    [
        *KEY,
        pa.field("prompt_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("completion_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("completion", pa.string(), nullable=False),
        pa.field("rollout_logprobs", pa.list_(pa.float32()), nullable=False),
        pa.field("finish_reason", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
    ]
)


def check_rollouts(table: pa.Table, path: Path) -> None:
    """Every completion has tokens, one finite log-prob a token, a known finish reason; groups are whole and equal.

    A given answer has no log-prob and no seed; such rows stand behind the sampled ones, as many in every group. Where
    the table's metadata have `group_sizes`, each group has the size that they say.
    """
    if not table.num_rows:
        raise UserError(f"{path}: has no row; run the stage that writes it again")
    lengths = pc.list_value_length(table["completion_ids"])
    refuse_rows(table, path, pc.equal(lengths, 0), "completion_ids is empty")
    refuse_rows(table, path, pc.equal(pc.list_value_length(table["prompt_ids"]), 0), "prompt_ids is empty")
    known = pc.is_in(table["finish_reason"], value_set=pa.array(FINISH_REASONS))
    refuse_rows(table, path, pc.invert(known), f"finish_reason must be one of {', '.join(FINISH_REASONS)}")
    given = pc.equal(table["finish_reason"], GIVEN)
    drawn = pc.and_(given, pc.greater(pc.list_value_length(table["rollout_logprobs"]), 0))
    refuse_rows(table, path, drawn, "a given answer has rollout_logprobs, but no sampler drew it")
    check_lengths(table, path, "rollout_logprobs", pc.if_else(given, 0, lengths))
    check_logprobs(table, path, "rollout_logprobs")
    seeded = pc.not_equal(given, pc.equal(table["seed"], NO_SEED))
    refuse_rows(table, path, seeded, f"seed must be {NO_SEED} for a given answer, and for no other")
    groups = table.group_by("prompt_id", use_threads=False).aggregate(
        [("sample", "count"), ("sample", "min"), ("sample", "max")]
    )
    sizes = metadata_of(table).get("group_sizes", {})
    usual = groups["sample_count"][0].as_py()
    for prompt, count, first, last in zip(*(groups[name].to_pylist() for name in groups.column_names), strict=True):
        size = sizes.get(prompt, usual)
        if count != size or first != 0 or last != count - 1:
            raise UserError(
                f"{path}: prompt_id={prompt} has {count} samples; every group must have samples 0 to {size - 1}"
            )
    if not pc.any(given).as_py():
        return
    num_sampled = size - pc.sum(given).as_py() // groups.num_rows
    misplaced = pc.not_equal(given, pc.greater_equal(table["sample"], num_sampled))
    if not num_sampled or pc.any(misplaced).as_py():
        what = "given answers must stand behind what was sampled, as many in every group"
        refuse_rows(table, path, misplaced if num_sampled else given, what)


def without_given(table: pa.Table) -> pa.Table:
    """The rows that were sampled; `table` has the column finish_reason."""
    sampled = pc.not_equal(table["finish_reason"], GIVEN)
    return table if pc.all(sampled).as_py() else table.filter(sampled)
