"""Reading a round's three tables and joining them for the update, against a join through lists of Python numbers."""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.cases import Run, measured
from benchmarks.measure import fresh, resident, say, settle
from benchmarks.results import finish, markdown

SIDES = ("ours", "through lists")
TABLES = ("rollouts", "scores", "reference")
POLICY = "benchmark"
VOCAB, PROMPT_TOKENS, GROUPS_PER_PART = 151_936, 200, 64


@measured(quick={"repeats": 1}, dtypes=False, repeats=3)
@click.option("--groups", default=1024, show_default=True, help="Prompts of the round.")
@click.option("--group-size", default=16, show_default=True, help="Completions of each prompt.")
@click.option("--tokens", default=1500, show_default=True, help="Tokens of each completion.")
def main(run: Run, groups: int, group_size: int, tokens: int) -> None:
    """Seconds and peak memory, above the tables' own size, until a rank has the rows of a round."""
    groups, group_size, tokens = (8, 4, 50) if run.quick else (groups, group_size, tokens)
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as work:
        size = fresh(write_round, Path(work), groups, group_size, tokens)
        for turn in range(run.repeats):
            for side in SIDES:
                runs[side].append(fresh(measure, side, Path(work)))
                shown = ", ".join(f"{name} {value:.4g}" for name, value in runs[side][-1].items())
                say(f"{side}, {turn + 1} of {run.repeats}: {shown}")
    medians = {
        side: {name: statistics.median(one[name] for one in each) for name in each[0]} for side, each in runs.items()
    }
    settings = {**run.settings, "groups": groups, "group_size": group_size, "tokens": tokens}
    finish("join", settings, {**size, "sides": medians, "runs": runs}, table, run.out)


def write_round(folder: Path, groups: int, group_size: int, tokens: int) -> dict[str, float]:
    """The tables of a round of random tokens; returns the number of its completion tokens and the tables' MiB."""
    import pyarrow as pa

    from gift.project.work import tree_digest
    from gift.tables.parts import write_part
    from gift.tables.reference import REFERENCE, check_reference
    from gift.tables.rollouts import ROLLOUTS, check_rollouts
    from gift.tables.scores import check_scores, scores_schema

    rng = np.random.default_rng(0)
    text = "four letters a token ".ljust(4 * tokens, "x")[: 4 * tokens]
    scores_table = scores_schema(["right"])
    firsts = range(0, groups, GROUPS_PER_PART)

    def column(rows: int, length: int, draw: Any) -> pa.Array:
        return pa.ListArray.from_arrays(pa.array(np.arange(rows + 1, dtype=np.int32) * length), draw(rows * length))

    def ids(count: int) -> pa.Array:
        return pa.array(rng.integers(0, VOCAB, count, dtype=np.int32))

    def logprobs(count: int) -> pa.Array:
        return pa.array(-rng.exponential(size=count).astype(np.float32))

    def key(first: int) -> list[pa.Array]:
        prompts = range(first, min(first + GROUPS_PER_PART, groups))
        names = pa.array([f"p{prompt:06d}" for prompt in prompts for _ in range(group_size)])
        return [names, pa.array(np.tile(np.arange(group_size, dtype=np.int32), len(prompts)))]

    size = 0
    metadata: dict[str, Any] = {"policy": POLICY, "num_rows": groups * group_size, "settings": {"max_tokens": tokens}}
    for index, first in enumerate(firsts):
        names, rows = key(first), len(key(first)[0])
        columns = [column(rows, PROMPT_TOKENS, ids), column(rows, tokens, ids), pa.array([text] * rows)]
        columns += [column(rows, tokens, logprobs), pa.array(["stop"] * rows), pa.array(np.zeros(rows, dtype=np.int64))]
        rollouts = pa.table([*names, *columns], schema=ROLLOUTS)
        size += rollouts.nbytes
        write_part(folder / "rollouts", index, rollouts, ROLLOUTS, check_rollouts, metadata)
    metadata = {"policy": POLICY, "rollouts": tree_digest(folder / "rollouts")}
    metadata["rewards"] = {"right": {"weight": 1.0, "only_if": None}}
    for index, first in enumerate(firsts):
        names, rows = key(first), len(key(first)[0])
        values = pa.array(rng.random(rows))
        scores = pa.table([*names, values, values, pa.array(["ok"] * rows)], schema=scores_table)
        reference = pa.table([*names, column(rows, tokens, logprobs), column(rows, tokens, logprobs)], schema=REFERENCE)
        size += scores.nbytes + reference.nbytes
        write_part(folder / "scores", index, scores, scores_table, check_scores, metadata)
        write_part(folder / "reference", index, reference, REFERENCE, check_reference, metadata)
    return {"completion_tokens": groups * group_size * tokens, "tables_mib": size / 2**20}


def measure(side: str, folder: Path) -> dict[str, float]:
    """Seconds of reading and joining, and MiB of this process above what its libraries take: at its peak, and after."""
    import gift.training.inputs  # noqa: F401

    libraries = settle()
    start = time.perf_counter()
    rows = {"ours": ours, "through lists": through_lists}[side](folder)
    seconds = time.perf_counter() - start
    peak = resident("VmHWM") - libraries
    kept = settle() - libraries
    del rows
    return {"seconds": seconds, "peak_mib": peak, "kept_mib": kept}


def ours(folder: Path) -> object:
    """The rows of the round as the update has them."""
    from gift.policy.folder import Lineage
    from gift.project.work import tree_digest
    from gift.training.inputs import read_round

    lineage = Lineage(digest=POLICY, base=POLICY)
    return read_round(*(folder / name for name in TABLES), tree_digest(folder / "rollouts"), lineage, folder)


def through_lists(folder: Path) -> object:
    """Whole tables, and every token and log-prob a Python number on the way to lists and a tensor a row."""
    import torch

    from gift.tables.parts import read_table
    from gift.tables.reference import REFERENCE, check_reference
    from gift.tables.rollouts import ROLLOUTS, check_rollouts
    from gift.tables.scores import read_scores

    rollouts, _ = read_table(folder / "rollouts", ROLLOUTS, check_rollouts)
    scores, _ = read_scores(folder / "scores")
    reference, _ = read_table(folder / "reference", REFERENCE, check_reference)
    tokens = [rollouts[name].to_pylist() for name in ("prompt_ids", "completion_ids")]
    names = ("ref_logprobs", "old_logprobs")
    logprobs = [[torch.tensor(row) for row in reference[name].to_pylist()] for name in names]
    return rollouts, scores, reference, tokens, logprobs


def table(result: dict[str, Any]) -> str:
    """A row a side: seconds, and peak and kept memory in MiB and, above the tables, in bytes a completion token."""
    count, size = result["completion_tokens"], result["tables_mib"]
    rows = []
    for side in SIDES:
        each = result["sides"][side]
        above = [(each[name] - size) * 2**20 / count for name in ("peak_mib", "kept_mib")]
        numbers = [f"{each['seconds']:.3g}", f"{each['seconds'] / count * 1e9:.3g}"]
        numbers += [f"{each['peak_mib']:,.0f}", f"{each['kept_mib']:,.0f}", *(f"{value:+.1f}" for value in above)]
        rows.append([side, *numbers])
    header = ["side", "s", "ns a token", "peak, MiB", "kept, MiB", "peak above the tables, bytes a token", "kept above"]
    return f"{count:,} completion tokens; the tables are {size:,.0f} MiB.\n\n{markdown(header, rows)}"


if __name__ == "__main__":
    main()
