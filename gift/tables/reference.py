"""The reference table: log-probs of the rollouts' tokens under the reference and under the starting policy."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from gift.tables.parts import KEY, check_lengths, check_logprobs

REFERENCE = pa.schema(
    [
        *KEY,
        pa.field("ref_logprobs", pa.list_(pa.float32()), nullable=False),
        pa.field("old_logprobs", pa.list_(pa.float32()), nullable=False),
    ]
)


def check_reference(table: pa.Table, path: Path) -> None:
    """Both log-prob lists are finite and equally long."""
    check_lengths(table, path, "old_logprobs", pc.list_value_length(table["ref_logprobs"]))
    check_logprobs(table, path, "ref_logprobs")
    check_logprobs(table, path, "old_logprobs")
