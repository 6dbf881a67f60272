"""Rewards a second: math verification in the pool against a bare loop; and 100,000 rows through the stage."""

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from benchmarks.cases import Run, measured
from benchmarks.measure import fresh, say
from benchmarks.results import finish, markdown, met
from benchmarks.shapes import ROOT
from gift.project.yaml import read_yaml

GOAL_MS = 0.2
GROUP, GROUPS_PER_PART = 8, 256
SIDES = ("bare", "1 worker", "2 workers", "1 worker, nothing to verify")
VERIFIER = '''"""Math-Verify on one completion after another, its own time limits off."""

from math_verify import parse, verify


def right(prompts, completions, completion_ids, answer, **columns):
    return [one(gold, said) for gold, said in zip(answer, completions, strict=True)]


def nothing(prompts, completions, completion_ids, answer, **columns):
    return [1.0] * len(completions)


def one(gold, said):
    return float(verify(parse(gold, parsing_timeout=None), parse(said, parsing_timeout=None), timeout_seconds=None))
'''
TRIVIAL = '''"""A reward that costs nothing."""


def length(prompts, completions, completion_ids, **columns):
    return [float(len(ids)) for ids in completion_ids]
'''


@measured(quick={"repeats": 1}, dtypes=False, repeats=3)
@click.option("--pairs", default=2000, show_default=True, help="Gold answers and completions to verify.")
@click.option("--rows", default=100_000, show_default=True, help="Completions of the round.")
@click.option("--tokens", default=1000, show_default=True, help="Tokens of each.")
def main(run: Run, pairs: int, rows: int, tokens: int) -> None:
    """Goal: the pool costs less than 0.2 ms a row."""
    if run.quick:
        pairs, rows, tokens = 48, 4096, 50
    settings = {**run.settings, "pairs": pairs, "rows": rows, "tokens": tokens}
    runs: dict[str, list[float]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as work:
        for turn in range(run.repeats):
            for side in SIDES:
                folder = Path(work, f"{turn} {side}")
                runs[side].append(fresh(verify_pairs, folder, side, pairs))
                say(f"{turn + 1} of {run.repeats}: {side}: {pairs / runs[side][-1]:,.0f} rewards/s")
        folder = Path(work, "round")
        fresh(write_round, folder, rows, tokens)
        stage = {name: run_stage(folder) for name in ("first", "again")}
        say(", ".join(f"{name} {each['seconds']:.3g} s" for name, each in stage.items()))
    medians = {side: statistics.median(each) for side, each in runs.items()}
    finish("rewards", settings, {"medians": medians, "runs": runs, "stage": stage}, table, run.out)


def pairs_of(count: int) -> list[tuple[str, str]]:
    """Gold answers and completions that end in an answer, right or wrong, of the kinds that MATH has; seeded."""
    draw = random.Random(0)
    forms = (
        "{a}",
        "\\frac{{{a}}}{{{b}}}",
        "{a}\\sqrt{{{b}}}",
        "{a}.{b}",
        "({a}, {b})",
        "[{a}, {c})",
        "{a}x^2 + {b}x - {c}",
    )
    found = []
    for _ in range(count):
        numbers = {name: draw.randint(2, 999) for name in "abc"}
        form = draw.choice(forms)
        gold = form.format(**numbers)
        if draw.random() < 0.5:
            numbers["a"] += 1
        reasons = " ".join(f"From {draw.randint(2, 99)} follows the next step, as before." for _ in range(20))
        found.append((f"${gold}$", f"{reasons} The answer is $\\boxed{{{form.format(**numbers)}}}$."))
    return found


def verify_pairs(folder: Path, side: str, count: int) -> float:
    """Seconds to verify all pairs: in a loop, or by `score_parts`, less what it takes for one group alone."""
    pairs = pairs_of(count)
    folder.mkdir()
    os.chdir(folder)
    Path("rewards").mkdir()
    Path("rewards/verifier.py").write_text(VERIFIER)
    if side == "bare":
        return bare_seconds(pairs)
    from gift.project.sections import check
    from gift.scoring.settings import Score

    nothing = side == SIDES[-1]
    reward = {"right": {"function": f"rewards/verifier.py:{'nothing' if nothing else 'right'}"}}
    times = 20 if nothing else 1  # enough of them to see beside the start of a worker
    pairs *= times
    score = check(Score, {"rewards": reward, "timeout_seconds": 60.0}, "the benchmark")
    write_rollouts(Path("few"), pairs[:GROUP], 3)
    write_rollouts(Path("all"), pairs, 3)
    tables = ("few", "few", "all")  # the first pays for imports
    _, few, every = (seconds_of_parts(name, score, int(side[0]), pairs) for name in tables)
    return (every - few) * len(pairs) / (len(pairs) - GROUP) / times


def bare_seconds(pairs: list[tuple[str, str]]) -> float:
    space: dict[str, Any] = {}
    exec(VERIFIER, space)  # what the workers import
    for gold, said in pairs[:GROUP]:
        space["one"](gold, said)
    begin = time.perf_counter()
    for gold, said in pairs[GROUP:]:
        space["one"](gold, said)
    return (time.perf_counter() - begin) * len(pairs) / (len(pairs) - GROUP)


def seconds_of_parts(name: str, score: Any, workers: int, pairs: list[tuple[str, str]]) -> float:
    import pyarrow as pa

    from gift.scoring.score import score_parts

    golds = [gold for gold, _ in pairs]
    ids = [f"p{number:08d}" for number in range(len(pairs))]
    prompts = pa.table({"prompt_id": ids, "prompt": ["Find x."] * len(ids), "answer": golds})
    begin = time.perf_counter()
    score_parts(Path("scores"), Path(name), prompts, score, workers, {"policy": "p"}, name)
    seconds = time.perf_counter() - begin
    shutil.rmtree("scores")
    return seconds


def write_rollouts(folder: Path, pairs: list[tuple[str, str]], tokens: int) -> None:
    """One completion a prompt, `GROUP` x 256 a part."""
    size = GROUP * GROUPS_PER_PART
    for index, cut in enumerate(range(0, len(pairs), size)):
        said = [text for _, text in pairs[cut : cut + size]]
        write_rows(folder, index, [f"p{cut + row:08d}" for row in range(len(said))], [0] * len(said), said, tokens)


def write_rows(
    folder: Path, index: int, prompt_ids: list[str], samples: Iterable[int], said: list[str], tokens: int
) -> None:
    """A part of rollouts whose completions have `tokens` tokens of random ids."""
    import numpy as np
    import pyarrow as pa

    from gift.tables.parts import write_part
    from gift.tables.rollouts import ROLLOUTS, check_rollouts

    count = len(prompt_ids)
    draw = np.random.default_rng(index)
    ends = pa.array(np.arange(count + 1, dtype=np.int32) * tokens)
    ids = pa.ListArray.from_arrays(ends, pa.array(draw.integers(0, 50_000, count * tokens, dtype=np.int32)))
    logprobs = pa.ListArray.from_arrays(ends, pa.array(-draw.random(count * tokens, dtype=np.float32)))
    columns = [prompt_ids, list(samples), [[1, 2, 3]] * count, ids, said, logprobs, ["stop"] * count, [0] * count]
    arrays = [
        pa.array(each, field.type) if isinstance(each, list) else each
        for each, field in zip(columns, ROLLOUTS, strict=True)
    ]
    metadata = {"policy": "p", "round": 1, "num_samples": GROUP - 1, "num_prompts_too_long": 0}
    write_part(folder, index, pa.table(arrays, schema=ROLLOUTS), ROLLOUTS, check_rollouts, metadata)


def write_round(folder: Path, rows: int, tokens: int) -> None:
    """A project of one round of `rows` completions, with a reward that costs nothing."""
    import pyarrow as pa

    from gift.tables.prompts import write_prompts

    (folder / "rewards").mkdir(parents=True)
    (folder / "rewards/trivial.py").write_text(TRIVIAL)
    params = read_yaml(ROOT / "params.yaml")
    params["score"] = {"rewards": {"answer": {"function": "rewards/trivial.py:length"}}}
    (folder / "params.yaml").write_text(json.dumps(params))
    ids = [f"p{number:08d}" for number in range(rows // GROUP)]
    prompts = pa.table({"prompt_id": ids, "prompt": ["What comes next?"] * len(ids), "answer": ["1"] * len(ids)})
    write_prompts(folder / "prompts.parquet", prompts, {"artifact": "prompts"})
    text = "a word of it " * (tokens // 3)
    for index, cut in enumerate(range(0, len(ids), GROUPS_PER_PART)):
        names = [name for name in ids[cut : cut + GROUPS_PER_PART] for _ in range(GROUP)]
        samples = [row % GROUP for row in range(len(names))]
        said = [f"{text}{index}.{row}" for row in range(len(names))]
        write_rows(folder / "rollouts", index, names, samples, said, tokens)


def run_stage(folder: Path) -> dict[str, float]:
    """`stages.score` as DVC starts it: wall seconds, and the most memory that the stage or a worker of it had, MiB."""
    paths = {"rollouts": "rollouts", "prompts": "prompts.parquet", "out": "data/rounds/r1/scores"}
    paths["notes"] = "data/rounds/r1/notes"
    named = [
        word for key, path in {"round": "r1", **paths, "metrics": "metrics.json"}.items() for word in (f"--{key}", path)
    ]
    shutil.rmtree(folder / "data/rounds", ignore_errors=True)
    (folder / "metrics.json").unlink(missing_ok=True)
    return run_module(folder, "stages.score", *named)


def run_module(folder: Path, *words: str) -> dict[str, float]:
    """`python -m ...` of the project: wall seconds, and MiB of the largest process."""
    begin = time.perf_counter()
    where = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", *words]
    process = subprocess.Popen(command, cwd=folder, env=where, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise click.ClickException(f"{words[0]}: exit code {process.returncode}")
    return {"seconds": time.perf_counter() - begin, "peak_mib": used.ru_maxrss / 1024}


def table(result: dict[str, Any]) -> str:
    """Rewards a second by side, and what a row costs besides the verifier; then the stage."""
    settings, medians, stage = result["settings"], result["medians"], result["stage"]
    rows, pairs = [], settings["pairs"]
    for side, seconds in medians.items():
        speed = f"{medians['bare'] / seconds:.2f}" if side != SIDES[-1] else ""
        rows.append([side, f"{seconds:.3g}", f"{pairs / seconds:,.0f}", f"{1000 * seconds / pairs:.3f}", speed])
    verifier = markdown(["math verification", "s", "rewards/s", "ms a row", "x the bare loop"], rows)
    over = 1000 * medians[SIDES[-1]] / pairs
    rows = [
        [name, f"{each['seconds']:.3g}", f"{1000 * each['seconds'] / settings['rows']:.3f}", f"{each['peak_mib']:,.0f}"]
        for name, each in stage.items()
    ]
    whole = markdown([f"stage, {settings['rows']:,} rows", "s", "ms a row", "peak, MiB"], rows)
    goal = f"Goal: with nothing to verify a row takes one worker at most {GOAL_MS} ms: {over:.3f} ms, "
    return f"{verifier}\n\n{goal}{met(over, GOAL_MS, at_most=True)}.\n\n{whole}"


if __name__ == "__main__":
    main()
