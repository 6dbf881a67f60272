"""The rollouts table: the completions of every prompt as they were sampled, tokens and log-probs."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from gift.project.errors import UserError
from gift.tables.parts import KEY, check_lengths, check_logprobs, refuse_rows

FINISH_REASONS = ("stop", "length")
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
    """Every completion has tokens, one finite log-prob a token, a known finish reason; groups are whole and equal."""
    if not table.num_rows:
        raise UserError(f"{path}: has no row; run the stage that writes it again")
    lengths = pc.list_value_length(table["completion_ids"])
    refuse_rows(table, path, pc.equal(lengths, 0), "completion_ids is empty")
    refuse_rows(table, path, pc.equal(pc.list_value_length(table["prompt_ids"]), 0), "prompt_ids is empty")
    check_lengths(table, path, "rollout_logprobs", lengths)
    check_logprobs(table, path, "rollout_logprobs")
    known = pc.is_in(table["finish_reason"], value_set=pa.array(FINISH_REASONS))
    refuse_rows(table, path, pc.invert(known), f"finish_reason must be one of {', '.join(FINISH_REASONS)}")
    groups = table.group_by("prompt_id", use_threads=False).aggregate(
        [("sample", "count"), ("sample", "min"), ("sample", "max")]
    )
    size = groups["sample_count"][0].as_py()
    for prompt, count, first, last in zip(*(groups[name].to_pylist() for name in groups.column_names), strict=True):
        if count != size or first != 0 or last != count - 1:
            raise UserError(
                f"{path}: prompt_id={prompt} has {count} samples; every group must have samples 0 to {size - 1}"
            )
