"""Rounds of one method in one process: the project's own stages in a folder of their own, and what they leave."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import click
import numpy as np

from gift.project.errors import UserError
from gift.project.ragged import Ragged
from gift.project.work import tree_digest, write_json
from gift.tables.parts import read_table
from gift.tables.prompts import read_prompts, write_prompts
from gift.tables.reference import read_reference
from gift.tables.rollouts import ROLLOUTS, check_rollouts, without_given

Stages = Mapping[str, click.Command]
POLICY, OPTIMIZER = "data/rounds/{}/policy", "data/rounds/{}/optimizer"
TRAIN = "data/prompts/train.parquet"


def run_chain(
    folder: Path, content: dict[str, Any], rounds: int, split: Path, stages: Stages, done: Callable[[str], None]
) -> dict[str, Any]:
    """`rounds` rounds from the base in `folder`, whose params.yaml is to hold `content`; returns their numbers.

    `folder` holds data/prompts/train.parquet and data/rounds/base. `split` are the held-out prompts. A row is a policy:
    what it answers to these, and what its rollouts on training prompts show, so one more round is sampled than trained.
    What stands in `folder` already is not made again. A round whose update publishes nothing is the last.
    """
    write_json(folder / "params.yaml", content)
    log = (folder / "log.txt").open("a", encoding="utf-8")
    with log, redirect_stdout(log), redirect_stderr(log), inside(folder):  # what the stages say is in the log
        digests: dict[str, str] = {}
        rows: list[dict[str, float]] = []
        stopped = None
        for number in range(rounds + 1):
            policy, name = f"r{number}" if number else "base", f"r{number + 1}"
            evaluated = _evaluate(policy, split, stages)
            sampled = _sample(name, policy, stages)
            rows.append({"round": number, **evaluated, **sampled})
            digests[name] = tree_digest(Path(f"data/rounds/{name}/rollouts"))
            if number < rounds:
                try:
                    rows[-1] |= _update(name, policy, stages)
                except UserError as error:  # it drifted away, or no group can train: that is a result, too
                    stopped = str(error)
                    break
            done(name)
    return {"rows": rows, "rounds": rounds, "rollouts": digests, "stopped": stopped}


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """In `folder` as the working directory, as the stages of a project there, and as if outside DVC."""
    under_dvc = os.environ.pop("DVC_STAGE", None)
    try:
        with chdir(folder):
            yield
    finally:
        if under_dvc is not None:
            os.environ["DVC_STAGE"] = under_dvc


def _call(stages: Stages, stage: str, name: str, *outputs: str, **paths: str | Path) -> None:
    """Run a stage for the round `name`, unless all of its outputs are there; an error of it is ours.

    Where only some are, it was killed while it published: they go, as DVC takes them away before it runs a stage.
    """
    there = [path for output in outputs if (path := Path(paths[output])).exists()]
    if len(there) == len(outputs):
        return
    for path in there:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    words = [f"--{key.replace('_', '-')}={path}" for key, path in paths.items()]
    stages[stage].main(["--round", name, *words], standalone_mode=False)


def _evaluate(policy: str, split: Path, stages: Stages) -> dict[str, float]:
    here = f"data/rounds/{policy}"
    base, answers, metrics = POLICY.format("base"), f"{here}/answers", f"{here}/metrics/evaluate.json"
    _call(stages, "generate_eval", policy, "out", base=base, policy=POLICY.format(policy), prompts=split, out=answers)
    made = {"scores": f"{here}/answer_scores", "metrics": metrics, "history": f"data/history/{policy}.json"}
    _call(stages, "evaluate", policy, *made, answers=answers, prompts=split, **made)
    return {name: value for name, value in _read(metrics).items() if not name.endswith("_se")}


def _sample(name: str, policy: str, stages: Stages) -> dict[str, float]:
    here = f"data/rounds/{name}"
    own = {"base": POLICY.format("base"), "policy": POLICY.format(policy)}
    rollouts, metrics = f"{here}/rollouts", f"{here}/metrics"
    _call(
        stages,
        "generate",
        name,
        "out",
        "metrics",
        **own,
        prompts=TRAIN,
        out=rollouts,
        metrics=f"{metrics}/generate.json",
    )
    scores = {"out": f"{here}/scores", "notes": f"{here}/notes", "metrics": f"{metrics}/score.json"}
    _call(stages, "score", name, "out", "notes", "metrics", rollouts=rollouts, prompts=TRAIN, **scores)
    made = {"out": f"{here}/reference", "metrics": f"{metrics}/reference.json"}
    _call(stages, "reference", name, "out", "metrics", **own, rollouts=rollouts, **made)
    score, generate = _read(f"{metrics}/score.json"), _read(f"{metrics}/generate.json")
    numbers = {key: score[key] for key in ("reward", "reward_std", "completions/mean_length")}
    completions = generate.get("num_completions_sampled", generate["num_completions"])
    return {**numbers, "completions": completions, **moved(Path(here))}


def moved(folder: Path) -> dict[str, float]:
    """How far a policy is from its reference, by its own samples: from the rollouts and the log-probs of a round.

    kl: mean of the log-ratio of completions, nats, an estimate of KL(policy | reference) without bias. spread: mean
    over groups of its standard deviation (n - 1). entropy: minus the mean log-prob of the tokens, nats.
    """
    table, _ = read_reference(folder / "reference")
    rollouts, _ = read_table(folder / "rollouts", ROLLOUTS, check_rollouts, ["finish_reason"])
    table = without_given(table.append_column("finish_reason", rollouts["finish_reason"]))
    old, ref = (Ragged.from_arrow(table[name]) for name in ("old_logprobs", "ref_logprobs"))
    gap = old.values.astype(np.float64) - ref.values
    ratio = np.add.reduceat(gap, old.offsets[:-1])
    groups = np.flatnonzero(table["sample"].to_numpy() == 0)
    spreads = [float(group.std(ddof=1)) for group in np.split(ratio, groups[1:])]
    entropy = -float(old.values.mean(dtype=np.float64))
    return {"kl": float(ratio.mean()), "spread": float(np.mean(spreads)), "entropy": entropy}


def _update(name: str, policy: str, stages: Stages) -> dict[str, float]:
    here = f"data/rounds/{name}"
    read = {key: f"{here}/{key}" for key in ("rollouts", "scores", "reference")} | {"prompts": TRAIN}
    own = {"base": POLICY.format("base"), "policy": POLICY.format(policy), "optimizer": OPTIMIZER.format(policy)}
    made = {"out_policy": POLICY.format(name), "out_optimizer": OPTIMIZER.format(name)}
    metrics, steps = f"{here}/metrics/update.json", f"{here}/metrics/steps.csv"
    outputs = (*made, "metrics", "steps")
    _call(stages, "update", name, *outputs, **own, **read, **made, metrics=metrics, steps=steps)
    numbers = _read(metrics)
    kept = ("grad_norm", "num_steps", "num_groups_trained", "num_tokens_trained")
    return {f"update/{key}": numbers[key] for key in kept}


def _read(path: str) -> dict[str, Any]:
    return dict(json.loads(Path(path).read_text(encoding="utf-8")))


def held_out(table: Path, folder: Path) -> None:
    """Cut a table of held-out prompts in two: dev.parquet, which chooses learning rates, and test.parquet."""
    whole, metadata = read_prompts(table)
    for first, name in enumerate(("dev", "test")):
        write_prompts(folder / f"{name}.parquet", whole.take(list(range(first, whole.num_rows, 2))), metadata)
