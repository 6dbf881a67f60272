"""Values of reward functions kept from run to run: scoring again calls only what is new. May be deleted any time."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from gift.project.errors import UserError
from gift.scoring.digest import function_digest
from gift.scoring.loading import Loaded
from gift.scoring.workers.worker import Outcome
from gift.tables.parts import read_file, write_file

ROOT = Path("data/.cache/scores")
KEPT = ("ok", "abstain")
SCHEMA = pa.schema([pa.field("row", pa.binary(16), nullable=False), pa.field("value", pa.float64())])


class RewardCache:
    """One file for each function and part: `<function's digest>/<label>-00000.parquet`, a null value an abstention.

    A value counts for the same function, settings and rows of its call (`reward_code`, `row_keys`). Each part has the
    last rows that were scored as this part.
    """

    def __init__(self, root: Path, label: str, rewards: Iterable[Loaded], user_folder: Path) -> None:
        self.label = label
        self.folders = {reward.name: root / function_digest(reward, user_folder) for reward in rewards}

    def read(self, name: str, index: int, keys: Sequence[bytes]) -> dict[int, Outcome]:
        """Outcomes by row for those of the part's rows that are kept; a file that is damaged is as good as none."""
        try:
            table, _ = read_file(self._path(name, index))
        except UserError:
            return {}
        if (
            not table.schema.equals(SCHEMA)
            or table["row"].null_count
            or not pc.all(pc.is_finite(table["value"])).as_py()
        ):
            return {}
        kept = dict(zip(table["row"].to_pylist(), table["value"].to_pylist(), strict=True))
        return {
            row: Outcome(kept[key], "abstain" if kept[key] is None else "ok", None)
            for row, key in enumerate(keys)
            if key in kept
        }

    def write(self, name: str, index: int, keys: Sequence[bytes], outcomes: dict[int, Outcome]) -> None:
        """Keep the values of a part; what failed is not kept, so that it is tried again."""
        rows = sorted(row for row, outcome in outcomes.items() if outcome.status in KEPT)
        values = {keys[row]: outcomes[row].value for row in rows}
        table = pa.table([list(values), list(values.values())], schema=SCHEMA)
        write_file(self._path(name, index), table, {"artifact": "reward cache"})

    def _path(self, name: str, index: int) -> Path:
        return self.folders[name] / f"{self.label}-{index:05d}.parquet"


def row_keys(digests: Sequence[bytes], spans: Iterable[Sequence[int]]) -> list[bytes]:
    """A key for each row: of its arguments, of those of the rows that share its call, and of its place among them.

    Rows of equal calls have keys of their own, so that each keeps its own value should a function not be a pure one.
    """
    keys = list(digests)
    for span in spans:
        together = b"".join(digests[row] for row in span)
        for place, row in enumerate(span):
            if len(span) > 1:
                keys[row] = hashlib.blake2b(place.to_bytes(8) + together, digest_size=16).digest()
    times: dict[bytes, int] = {}
    for row, key in enumerate(keys):
        times[key] = times.get(key, 0) + 1
        if times[key] > 1:
            keys[row] = hashlib.blake2b(times[key].to_bytes(8) + key, digest_size=16).digest()
    return keys
