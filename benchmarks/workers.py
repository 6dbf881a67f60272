"""The generate stage's parts by one engine with all cores, against two engines that share them."""

import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.cases import Run, measured, model_of
from benchmarks.measure import fresh, say
from benchmarks.results import finish, markdown
from benchmarks.shapes import Rollouts, make_rollouts, shape_of
from gift.project.seeds import seed_of

GROUPS_PER_PART, MAX_TOKENS = 4, 64
MODELS = ("embedded", "hundred")


@measured(quick={"repeats": 1, "passes": 1}, dtypes=False, repeats=2, passes=3)
@click.option("--model", "models", multiple=True, type=click.Choice(MODELS), help="Without it: both.")
def main(run: Run, models: tuple[str, ...]) -> None:
    """Seconds of the same parts, once all engines are up, and until they are."""
    found = {}
    for name in models or MODELS:
        shape = replace(shape_of(name, run.quick), groups=8 if run.quick else 32)
        rollouts, runs = make_rollouts(shape), []
        with model_of(shape) as (folder, parameters):
            for turn in range(run.repeats):
                for number in (1, 2):
                    runs.append({"engines": number, **fresh(parts_of, folder, rollouts, number, run.passes)})
                    say(f"{name}, {turn + 1} of {run.repeats}: {number} engines: {runs[-1]['seconds']}")
        found[name] = {"parameters": parameters, "requests": len(rollouts.rewards), "runs": runs}
    finish("workers", run.settings, {"models": found}, table, run.out)


def parts_of(folder: Path, rollouts: Rollouts, number: int, passes: int) -> dict[str, Any]:
    """Seconds of each pass over all parts by workers; the first, which does not count, waits for their engines."""
    from gift.policy.folder import PolicyFiles, load_tokenizer
    from gift.sampling.engine.requests import Request
    from gift.sampling.parts import Ask, Engines, Here
    from gift.sampling.rollouts import write_rollouts
    from gift.sampling.settings import GenerateLaunch, Sampling
    from gift.workers.settings import Workers

    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # each worker has its share of the cores, and so many threads
        os.environ.pop(name, None)
    sampling = Sampling(max_tokens=MAX_TOKENS, groups_per_part=GROUPS_PER_PART)
    size, ends = rollouts.group_size, [load_tokenizer(folder).eos_token_id]
    requests = [
        Request(np.array(prompt, np.int32), seed_of("benchmark", row), 1.0)
        for row, prompt in enumerate(rollouts.prompt_ids)
    ]
    groups = {f"{row // size:06d}": requests[row : row + size] for row in range(0, len(requests), size)}
    # One worker too is a process of its own here: it listens for others, of whom none comes.
    workers, launch = Workers(listen="127.0.0.1:0"), GenerateLaunch(engines=number)
    policy, unused = PolicyFiles(folder.absolute()), Here(lambda: _never(), str)
    seconds, digests = [], set()
    with tempfile.TemporaryDirectory() as work:
        os.chdir(work)
        with Engines("generate@bench", policy, sampling, (ends, 1024), launch, workers, unused) as engines:
            for index in range(passes + 1):
                begin, parts = time.perf_counter(), Path(f"pass-{index}/rollouts")
                ask = Ask(parts, {"artifact": "rollouts", "policy": "benchmark"}, {})
                write_rollouts(ask, groups, GROUPS_PER_PART, engines, "generate@bench")
                seconds.append(time.perf_counter() - begin)
                digests.add(tuple(path.read_bytes() for path in sorted(parts.iterdir())))
        os.chdir("/")
    return {"first": seconds[0], "seconds": seconds[1:], "passes_that_differ": len(digests) - 1}


def _never() -> Any:
    raise AssertionError("no engine starts in this process")


def table(result: dict[str, Any]) -> str:
    """A row a model and number of engines: the first pass, with its starts, and the median of the others."""
    rows, lines = [], []
    for name, case in result["models"].items():
        medians = {}
        for number in (1, 2):
            runs = [each for each in case["runs"] if each["engines"] == number]
            medians[number] = statistics.median([second for each in runs for second in each["seconds"]])
            first = statistics.median([each["first"] for each in runs])
            model = f"{name}, {case['parameters'] / 1e6:.3g}M"
            rows.append([model, number, f"{case['requests']:,}", f"{first:.3g}", f"{medians[number]:.3g}"])
        lines.append(f"{name}: two engines take {medians[2] / medians[1]:.2f} of the time of one")
    header = ["model", "engines", "requests", "first pass, with starts, s", "a pass, s"]
    return f"{markdown(header, rows)}\n\n{'; '.join(lines)}."


if __name__ == "__main__":
    main()
