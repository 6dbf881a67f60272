"""The generate stage's path (requests, vLLM, parts of a table) against a bare `vllm.LLM.generate`, on one engine."""

import os
import statistics
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import numpy as np

from benchmarks.cases import Run, measured, model_of
from benchmarks.measure import fresh, say
from benchmarks.results import finish, markdown, met
from benchmarks.shapes import ROOT, Rollouts, Shape, make_rollouts, shape_of
from gift.doctor.whole import read_params
from gift.project.sections import check
from gift.project.seeds import seed_of
from gift.sampling.settings import Sampling

GOAL = 0.03
CASES = ("embedded", "long prompts")


@measured(quick={"repeats": 1, "passes": 2}, repeats=3, passes=4)
@click.option("--case", "names", multiple=True, type=click.Choice(CASES), help="Without it: both.")
def main(run: Run, names: tuple[str, ...]) -> None:
    """Seconds to sample the same requests on the same engine; goal: within 3% of the bare call."""
    found = {}
    for name in names or CASES:
        shape, sampling = case(name, run.dtype, run.quick)
        rollouts = make_rollouts(shape)
        runs = []
        with model_of(shape) as (folder, parameters):
            for turn in range(run.repeats):
                runs.append(fresh(compare, folder, rollouts, sampling, run.passes))
                medians = ", ".join(f"{side} {statistics.median(runs[-1][side]):.3g} s" for side in ("ours", "bare"))
                say(f"{name}, {turn + 1} of {run.repeats}: {medians}")
        found[name] = {
            "parameters": parameters,
            "requests": len(rollouts.rewards),
            "prompt_tokens": rollouts.num_positions - rollouts.num_tokens,
            "max_tokens": sampling["max_tokens"],
            "sampled_tokens": runs[0]["tokens"],
            "medians": {side: statistics.median([s for each in runs for s in each[side]]) for side in ("ours", "bare")},
            "runs": runs,
        }
    finish("sampler", run.settings, {"cases": found}, table, run.out)


def case(name: str, dtype: str, quick: bool) -> tuple[Shape, dict[str, Any]]:
    """The model and prompts of a case, and what to sample: the shipped task's round, or prompts of 256 tokens."""
    params = read_params(ROOT / "params.yaml").generate
    shape = shape_of("embedded" if name == "embedded" else "hundred", quick)
    if name == "embedded":
        shape = replace(shape, groups=8 if quick else params.prompts_per_round)
        max_tokens = 8 if quick else params.max_tokens
    else:
        shape = replace(shape, groups=4 if quick else 16, prompt=32 if quick else 256)
        max_tokens = 8 if quick else 32
    return shape, {"dtype": dtype, "max_tokens": max_tokens, "temperature": params.temperature}


def compare(folder: Path, rollouts: Rollouts, settings: dict[str, Any], passes: int) -> dict[str, Any]:
    """Seconds of each pass of each side on one engine, after a pass of each that does not count.

    Both sides hand the engine the same requests (prompt, seed, temperature, log-prob of the sampled token). Ours goes
    part by part, decodes, checks and writes the table. Cached prefixes are dropped before every pass.
    """
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    import vllm

    from gift.doctor.whole import read_launch
    from gift.policy.folder import PolicyFiles, load_tokenizer
    from gift.sampling.engine.requests import Request
    from gift.sampling.engine.start import start_sampler
    from gift.sampling.parts import Ask, Here
    from gift.sampling.rollouts import write_rollouts

    sampling = check(Sampling, settings, "benchmark")
    tokenizer = load_tokenizer(folder)
    engines: list[Any] = []
    real = vllm.LLM

    def keep(**arguments: Any) -> Any:
        engines.append(real(**arguments))
        return engines[-1]

    with patch.object(vllm, "LLM", keep):
        launch = read_launch(ROOT / "launch.yaml").generate
        started = start_sampler(PolicyFiles(folder), sampling, [tokenizer.eos_token_id], 1024, launch)
    size = rollouts.group_size
    requests = [
        Request(np.array(prompt), seed_of("benchmark", row) % 2**31, sampling.temperature)
        for row, prompt in enumerate(rollouts.prompt_ids)
    ]
    groups = {f"{row // size:06d}": requests[row : row + size] for row in range(0, len(requests), size)}

    def our_path() -> None:
        with tempfile.TemporaryDirectory() as parts:
            metadata = {"artifact": "rollouts", "policy": "benchmark"}
            decode = partial(tokenizer.decode, skip_special_tokens=True)
            here = Here(lambda: started, decode)
            write_rollouts(Ask(Path(parts), metadata, {}), groups, sampling.groups_per_part, here, "sampler")

    def bare() -> int:
        prompts = [{"prompt_token_ids": request.prompt_ids.tolist()} for request in requests]
        wanted = [
            vllm.SamplingParams(
                temperature=request.temperature,
                max_tokens=sampling.max_tokens,
                seed=request.seed,
                logprobs=0,
                detokenize=False,
                watermarking=False,
            )
            for request in requests
        ]
        outputs = engines[0].generate(prompts, wanted, use_tqdm=False)
        return sum(len(output.outputs[0].token_ids) for output in outputs)

    our_path()
    tokens = bare()
    seconds: dict[str, list[float]] = {"ours": [], "bare": []}
    sides = [("ours", our_path), ("bare", bare)]
    for _ in range(passes):
        for side, work in sides:
            engines[0].reset_prefix_cache()
            begin = time.perf_counter()
            work()
            seconds[side].append(time.perf_counter() - begin)
        sides.reverse()
    return {**seconds, "tokens": tokens}


def table(result: dict[str, Any]) -> str:
    """A row a case: median seconds of both sides, tokens/s, and how much longer ours takes."""
    rows, verdicts = [], []
    for name, case in result["cases"].items():
        ours, bare = case["medians"]["ours"], case["medians"]["bare"]
        rates = [f"{case['sampled_tokens'] / seconds:,.0f}" for seconds in (ours, bare)]
        model = f"{case['parameters'] / 1e6:.3g}M"
        sizes = [f"{case['requests']:,}", f"{case['prompt_tokens']:,}", f"{case['sampled_tokens']:,}"]
        rows.append([name, model, *sizes, f"{ours:.3g}", f"{bare:.3g}", *rates, f"{ours / bare - 1:+.1%}"])
        verdicts.append(f"{name} {ours / bare - 1:+.1%}, {met(ours / bare - 1, GOAL, at_most=True)}")
    header = ["case", "model", "requests", "prompt tokens", "sampled", "ours, s", "bare, s"]
    lines = markdown([*header, "ours, tokens/s", "bare, tokens/s", "ours takes"], rows)
    return f"{lines}\n\nGoal: at most {GOAL:.0%} more than the bare call: {'; '.join(verdicts)}."


if __name__ == "__main__":
    main()
