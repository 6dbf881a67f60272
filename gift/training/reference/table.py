"""The parts of the reference table, from two policies, and the audit of sampler against trainer."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
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
from gift.logprobs.tokens import TokenLogprobs, completion_logprobs
from gift.policy.adapter import adapter_off
from gift.policy.folder import PolicyFiles, load_tokenizer
from gift.policy.open import open_policy
from gift.project.console import Progress
from gift.project.errors import UserError
from gift.project.ragged import Ragged
from gift.project.sections import Choice
from gift.tables.parquet import part_name, part_paths, read_footer
from gift.tables.parts import read_part, write_part
from gift.tables.reference import REFERENCE, WEIGHTED, check_reference
from gift.tables.rollouts import GIVEN, ROLLOUTS, check_rollouts
from gift.training.reference.settings import ReferenceLaunch
from gift.training.reference.weights import token_weights


def write_reference(
    folder: Path,
    rollouts: Path,
    policy: PolicyFiles,
    reference: PolicyFiles,
    dtype: str,
    launch: ReferenceLaunch,
    weights: Choice | None,
    metadata: dict[str, Any],
    label: str,
) -> None:
    """One part of log-probs for each part of rollouts, with `weights` of its tokens' weights too; finished ones stay.

    Where the reference is the starting policy itself, its log-probs are computed once and stand in both columns. Where
    the policy is an adapter on the reference, one model gives both: with the adapter on, and off.
    """
    parts = part_paths(rollouts)
    missing = [index for index in range(len(parts)) if not (folder / part_name(index)).exists()]
    if not missing:
        return
    temperature = read_footer(parts[0])[1]["temperature"]

    def opened(files: PolicyFiles) -> TokenLogprobs:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return TokenLogprobs(open_policy(files, dtype, device), temperature, launch.packing)

    own = opened(policy)
    if own.note:
        click.echo(f"{label}: {own.note}", err=True)
    tokenizer = load_tokenizer(policy.model) if weights else None
    is_base = policy.adapter is not None and reference == PolicyFiles(policy.model)
    other = own if is_base or reference == policy else opened(reference)
    with Progress(label, len(parts), "parts", len(parts) - len(missing)) as progress:
        for index in missing:
            table, _ = read_part(parts[index], ROLLOUTS, check_rollouts)
            part = _Part(table, launch.tokens_per_batch)
            models = 1 if reference == policy else 2
            old = ref = part.logprobs(own, partial(progress.through, part=0, parts=models))
            if models > 1:
                with adapter_off(other) if is_base else nullcontext():
                    ref = part.logprobs(other, partial(progress.through, part=1, parts=models))
            columns = [table["prompt_id"], table["sample"], ref, old]
            if weights:
                columns.append(token_weights(own, table, part.groups, tokenizer, weights.settings, launch))
            schema = WEIGHTED if weights else REFERENCE
            write_part(folder, index, pa.table(columns, names=schema.names), schema, check_reference, metadata)
            progress.advance(1, len(old.values) * (1 if ref is old else 2))


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
