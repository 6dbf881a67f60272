"""The reference table: log-probs of the rollouts' tokens under the reference and under the starting policy."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gift.project.errors import UserError
from gift.project.ragged import Ragged
from gift.tables.parquet import part_paths, read_footer
from gift.tables.parts import KEY, check_lengths, check_logprobs, read_table, row_name

WEIGHTS = "token_weights"
SET_WEIGHTS = "set reference.token_weights, such as {oar_g: {answer: {boxed: {}}}}"
LISTS = pa.list_(pa.float32())
REFERENCE = pa.schema([*KEY, *(pa.field(name, LISTS, nullable=False) for name in ("ref_logprobs", "old_logprobs"))])
WEIGHTED = REFERENCE.append(pa.field(WEIGHTS, LISTS, nullable=False))


def read_reference(folder: Path, weighted: bool = False) -> tuple[pa.Table, dict[str, Any]]:
    """The whole table, with weights of tokens where it was made with them; `weighted`: it must be."""
    columns, _ = read_footer(part_paths(folder)[0])
    if weighted and WEIGHTS not in columns:
        raise UserError(f"{folder}: has no {WEIGHTS}, which a method of section update reads; {SET_WEIGHTS}")
    return read_table(folder, WEIGHTED if WEIGHTS in columns else REFERENCE, check_reference)


def check_reference(table: pa.Table, path: Path) -> None:
    """All lists of a row are equally long; log-probs are finite, weights above 0."""
    lengths = pc.list_value_length(table["ref_logprobs"])
    check_lengths(table, path, "old_logprobs", lengths)
    check_logprobs(table, path, "ref_logprobs")
    check_logprobs(table, path, "old_logprobs")
    if WEIGHTS in table.column_names:
        check_lengths(table, path, WEIGHTS, lengths)
        _check_weights(table, path)


def _check_weights(table: pa.Table, path: Path) -> None:
    column = Ragged.from_arrow(table[WEIGHTS])
    right = np.isfinite(column.values) & (column.values > 0)
    if not right.all():
        wrong = int(right.argmin())
        row = int(np.searchsorted(column.offsets, wrong, side="right")) - 1
        raise UserError(
            f"{path}: row {row} ({row_name(table, row)}): {WEIGHTS} holds {column.values[wrong]:g}; a weight is finite "
            "and above 0"
        )
