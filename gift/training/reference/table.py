"""The parts of the reference table, from two policies, and the audit of sampler against trainer."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from gift.logprobs.batches import row_batches
from gift.logprobs.kernels import use_kernels
from gift.logprobs.tokens import TokenLogprobs, completion_logprobs
from gift.policy.adapter import adapter_off
from gift.policy.folder import PolicyFiles, load_tokenizer
from gift.policy.open import open_policy
from gift.project.console import Progress, through
from gift.project.errors import UserError
from gift.project.params import settings_of
from gift.project.ragged import Ragged
from gift.project.sections import Choice
from gift.tables.parquet import part_name, part_paths
from gift.tables.parts import read_part, write_part
from gift.tables.reference import REFERENCE, WEIGHTED, check_reference
from gift.tables.rollouts import GIVEN, ROLLOUTS, check_rollouts
from gift.training.reference.settings import Reference, ReferenceLaunch
from gift.training.reference.weights import token_weights
from gift.workers.link import Job, Part
from gift.workers.settings import Workers
from gift.workers.start import pool_for
from gift.workers.worker import Work


@dataclass(frozen=True)
class Models:
    """What a part is made with: two policies, of which the reference may be the starting one, and how."""

    policy: PolicyFiles
    reference: PolicyFiles
    dtype: str
    temperature: float
    weights: Choice | None
    launch: ReferenceLaunch


def write_reference(
    folder: Path, rollouts: Path, models: Models, metadata: dict[str, Any], label: str, workers: Workers
) -> None:
    """One part of log-probs for each part of rollouts, here or by workers; finished ones stay."""
    paths = part_paths(rollouts)
    missing = [index for index in range(len(paths)) if not (folder / part_name(index)).exists()]
    if not missing:
        return
    job = Job("reference", label, "reference", setup_of(models), number=models.launch.processes)
    tasks = {index: {"index": index, "rollouts": str(paths[index]), "metadata": metadata} for index in missing}
    with Progress(label, len(paths), "parts", len(paths) - len(missing)) as progress:
        if (opened := pool_for(job, workers)) is None:
            work = open_models(models)
            if work.note:
                click.echo(f"{label}: {work.note}", err=True)
            for task in tasks.values():
                progress.advance(1, work.make(task, folder)["tokens"])
            return
        parts = [Part(index, partial(dict, task), folder / part_name(index)) for index, task in tasks.items()]
        with opened as pool:
            for _ in pool.run(parts, progress):
                pass


def setup_of(models: Models) -> dict[str, Any]:
    """The same for a worker, as JSON."""
    files = {"policy": models.policy.as_json(), "reference": models.reference.as_json()}
    weights = models.weights and settings_of(models.weights)
    plain = {"dtype": models.dtype, "temperature": models.temperature, "weights": weights}
    return {**files, **plain, "launch": models.launch.model_dump(mode="json")}


def open_job(setup: dict[str, Any]) -> Work:
    """The models of a worker."""
    files = {name: PolicyFiles.of_json(setup[name]) for name in ("policy", "reference")}
    weights = setup["weights"] and Reference(token_weights=setup["weights"]).token_weights
    launch = ReferenceLaunch(**setup["launch"])
    return open_models(
        Models(**files, dtype=setup["dtype"], temperature=setup["temperature"], weights=weights, launch=launch)
    )


def open_models(models: Models) -> Work:
    """Load them; what makes a part, and what is to be said of the layout of its tokens.

    Where the reference is the starting policy itself, its log-probs are computed once and stand in both columns. Where
    the policy is an adapter on the reference, one model gives both: with the adapter on, and off.
    """
    policy, reference, weights, launch = models.policy, models.reference, models.weights, models.launch

    def opened(files: PolicyFiles) -> TokenLogprobs:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        found = TokenLogprobs(open_policy(files, models.dtype, device), models.temperature, launch.packing)
        use_kernels(found, launch, torch.device(device))
        return found

    own = opened(policy)
    tokenizer = load_tokenizer(policy.model) if weights else None
    is_base = policy.adapter is not None and reference == PolicyFiles(policy.model)
    other = own if is_base or reference == policy else opened(reference)

    def make(task: dict[str, Any], folder: Path) -> dict[str, Any]:
        table, _ = read_part(Path(task["rollouts"]), ROLLOUTS, check_rollouts)
        part = _Part(table, launch.tokens_per_batch)
        passes = 1 if reference == policy else 2
        old = ref = part.logprobs(own, partial(through, part=0, parts=passes))
        if passes > 1:
            with adapter_off(other) if is_base else nullcontext():
                ref = part.logprobs(other, partial(through, part=1, parts=passes))
        columns = [table["prompt_id"], table["sample"], ref, old]
        if weights:
            columns.append(token_weights(own, table, part.groups, tokenizer, weights.settings, launch))
        schema = WEIGHTED if weights else REFERENCE
        named = pa.table(columns, names=schema.names)
        write_part(folder, task["index"], named, schema, check_reference, task["metadata"])
        return {"tokens": len(old.values) * passes}

    return Work(make, own.note)


class _Part:
    """The tokens of a part of the rollouts, and the rows of each of its groups."""

    def __init__(self, rollouts: pa.Table, tokens_per_batch: int) -> None:
        self.prompts, self.completions = (
            Ragged.from_arrow(rollouts[name]) for name in ("prompt_ids", "completion_ids")
        )
        self.lengths = np.stack([self.prompts.lengths, self.completions.lengths], axis=1)
        prompt_of = rollouts["prompt_id"].to_pylist()
        self.groups = [list(rows) for _, rows in groupby(range(len(prompt_of)), prompt_of.__getitem__)]
        self.tokens_per_batch = tokens_per_batch

    def logprobs(self, model: TokenLogprobs, through: Callable[[list[list[int]]], Iterable[list[int]]]) -> pa.ListArray:
        batches = through(row_batches(self.groups, self.lengths, self.tokens_per_batch, model.layout))
        return completion_logprobs(model, self.prompts, self.completions, batches).to_arrow()


def audit(rollouts: pa.Table, reference: pa.Table, max_mean_gap: float) -> dict[str, float]:
    """How far the sampler's log-probs are from the trainer's for the same policy, nats a token; above the limit: fail.

    A gap means that the two engines do not run the same model (weights, precision, temperature, template). Answers that
    were given have no log-probs of the sampler: they are counted.
    """
    given = pc.equal(rollouts["finish_reason"], GIVEN)
    num_given = pc.sum(given).as_py()
    if num_given:
        rollouts, reference = (each.filter(pc.invert(given)) for each in (rollouts, reference))
    column = Ragged.from_arrow(rollouts["rollout_logprobs"])
    sampled = column.values.astype(np.float64)
    trained = Ragged.from_arrow(reference["old_logprobs"]).values.astype(np.float64)
    gap = np.abs(sampled - trained)
    mean = float(gap.mean())
    if mean > max_mean_gap:
        row = int(np.searchsorted(column.offsets, gap.argmax(), side="right")) - 1
        raise UserError(
            f"params.yaml: reference.max_mean_gap: sampler and trainer differ by {mean:.4g} nats a token on average "
            f"(limit {max_mean_gap:g}), most at prompt_id={rollouts['prompt_id'][row]}, "
            f"sample={rollouts['sample'][row]}; they do not run the same model: compare generate.dtype with "
            "update.dtype, or raise the limit if that is the cause"
        )
    ratio = np.exp(trained - sampled)
    return ({"num_given": num_given} if num_given else {}) | {
        "sampling/sampling_logp_difference/mean": mean,
        "sampling/sampling_logp_difference/max": float(gap.max()),
        "sampling/importance_sampling_ratio/mean": float(ratio.mean()),
        "sampling/importance_sampling_ratio/min": float(ratio.min()),
        "sampling/importance_sampling_ratio/max": float(ratio.max()),
    }
