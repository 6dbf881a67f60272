"""How long every call of a reward took: for people, in no artifact, for those hold no clock."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from gift.scoring.rows import PartRows
from gift.tables.parquet import write_file
from gift.tables.parts import KEY


@dataclass(frozen=True)
class Slowest:
    """The call that took longest: for people, in no table."""

    seconds: float = 0.0
    name: str = ""


class Seconds:
    """One file for each part, `<label>-00000.parquet`: a row a completion, a column a reward.

    Seconds are those of the call a row was in; null where nothing was called. A part in which nothing was called keeps
    its file: the last calls of these rows are in it, if they were scored as this part. May be deleted any time.
    """

    def __init__(self, root: Path | None, label: str) -> None:
        """root: the folder of the files; None for none."""
        self.root, self.label, self.slowest = root, label, Slowest()

    def write(self, index: int, rows: PartRows, called: dict[str, dict[int, float]]) -> None:
        """called: seconds by reward and row, in the order of the rewards."""
        for name, each in called.items():
            row = max(each, key=lambda row: each[row], default=None)
            if row is not None and each[row] > self.slowest.seconds:
                where = f"{name} of prompt_id={rows.prompt_ids[row]}, sample={rows.samples[row]}"
                self.slowest = Slowest(each[row], where)
        if self.root is None or not any(called.values()):
            return
        columns = [[each.get(row) for row in range(len(rows.prompt_ids))] for each in called.values()]
        schema = pa.schema([*KEY, *(pa.field(name, pa.float64()) for name in called)])
        table = pa.table([rows.prompt_ids, rows.samples, *columns], schema=schema)
        write_file(self.root / f"{self.label}-{index:05d}.parquet", table, {"artifact": "seconds"})
