"""This project's side of the benchmarks: the one file here that calls the trainer, the engine and the log-probs."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import Recorder
from benchmarks.shapes import Rollouts, Shape, make_rollouts
from gift.project.ragged import Ragged

LR, CLIP = 1e-5, 1.0  # both sides of a comparison take these


def update_steps(
    folder: Path,
    rollouts: Rollouts,
    dtype: str,
    tokens_per_batch: int,
    warmup: int,
    steps: int,
    packing: str = "auto",
    method: dict[str, Any] | None = None,
    checkpointing: Any = False,
) -> dict[str, Any]:
    """Optimizer steps on all of the rollouts, again and again; what `Recorder.results` says of them.

    method: keys of `update`, as in a file of presets/methods; without it GIFT. checkpointing: as in launch.yaml.
    """
    import deepspeed  # noqa: F401 - an import of the engine's, so that it counts as a library
    import torch
    import transformers.models.qwen3.modeling_qwen3  # noqa: F401

    from gift.training.ranks import distributed

    with distributed() as device:
        recorder = Recorder(warmup, device.type == "cuda")
        trainer, close = start_trainer(folder, rollouts, dtype, tokens_per_batch, packing, method, checkpointing)
        groups = list(range(len(rollouts.rewards) // rollouts.group_size))
        metrics: dict[str, Any] = {}

        def step() -> None:
            metrics.update(trainer.train_step(groups, LR))

        found = recorder.run(step, steps)
        if not math.isfinite(metrics["loss"]):
            raise RuntimeError(f"the loss is {metrics['loss']}")
        close()
    return {**found, "num_tokens": metrics["num_tokens"], "threads": torch.get_num_threads()}


def step_bytes(folder: Path, rollouts: Rollouts, dtype: str, tokens_per_batch: int, checkpointing: Any) -> int:
    """Bytes that torch allocates for a step of all rollouts at its peak, above what is there between steps."""
    import torch

    from gift.training.ranks import distributed

    with distributed() as device:
        trainer, close = start_trainer(folder, rollouts, dtype, tokens_per_batch, checkpointing=checkpointing)
        groups = list(range(len(rollouts.rewards) // rollouts.group_size))
        trainer.train_step(groups, LR)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            rest = torch.cuda.memory_allocated()
            trainer.train_step(groups, LR)
            peak = torch.cuda.max_memory_allocated() - rest
        else:
            with torch.profiler.profile(profile_memory=True) as profile:
                trainer.train_step(groups, LR)
            changes = [each for each in profile.profiler.kineto_results.events() if each.name() == "[memory]"]
            changes.sort(key=lambda each: each.start_ns())
            peak = max(accumulate(each.nbytes() for each in changes))
        close()
    return int(peak)


def start_trainer(
    folder: Path,
    rollouts: Rollouts,
    dtype: str,
    tokens_per_batch: int,
    packing: Any = "auto",
    method: dict[str, Any] | None = None,
    checkpointing: Any = False,
) -> tuple[Any, Callable[[], None]]:
    """A trainer of the rollouts, as stages/update.py starts it, and what closes its engine."""
    import torch

    from gift.methods.choosing import choose
    from gift.methods.making import groups_of
    from gift.policy.folder import PolicyFiles
    from gift.policy.open import open_policy
    from gift.project.sections import check
    from gift.training.engine import EngineSettings, start_engine
    from gift.training.inputs import Rows
    from gift.training.learned import policy_module
    from gift.training.settings import Update
    from gift.training.trainer import Trainer

    model = open_policy(PolicyFiles(folder), "float32")
    # What a model of random weights gives every token, almost exactly: the steps begin near their anchor.
    completions = Ragged.of(rollouts.completion_ids, np.int32)
    logprob = torch.full((len(completions.values),), -math.log(model.config.vocab_size))
    rewards = torch.tensor(rollouts.rewards).view(-1, rollouts.group_size)
    stage = 1 if dtype == "bfloat16" else 0
    fields = {"groups_per_step": len(rewards), "lr": LR, "dtype": dtype}
    settings = check(Update, fields | (method or {}), "benchmark")
    sampled = torch.ones_like(rewards, dtype=torch.bool)
    if settings.shape.record.given:
        sampled[:, -2:] = False
    # For losses that choose among reward functions, or standardise each: another one, of no meaning either.
    components = torch.stack([rewards, rewards.roll(1, -1)], -1)
    groups = groups_of(
        rewards,
        mask=torch.ones_like(rewards, dtype=torch.bool),
        sampled=sampled,
        components=components,
        known=torch.ones_like(components, dtype=torch.bool),
        weights=torch.tensor([1.0, 0.5]),
        names=("one", "other"),
        draws=rewards.roll(2, -1),
        lengths=torch.from_numpy(completions.lengths).view(rewards.shape),
        max_tokens=int(completions.lengths.max()),
        ref_logprobs=logprob,
        old_logprobs=logprob,
        rollout_logprobs=logprob,
    )
    rows = Rows(Ragged.of(rollouts.prompt_ids, np.int32), completions, groups)
    logprobs = policy_module(model, 1.0, packing, settings.match, 0, groups.names)
    engine = start_engine(logprobs, EngineSettings(max_grad_norm=CLIP, dtype=dtype, zero_stage=stage), checkpointing)
    chosen = choose(groups, settings)
    return Trainer(engine, rows, chosen, settings, tokens_per_batch, logprobs.layout), engine.close


def reference_and_update(folder: Path, shape: Shape, times: int, dtype: str, tokens_per_batch: int) -> dict[str, float]:
    """Seconds of the log-prob pass over `times` as many rollouts as the shape has, and of the update on them.

    An optimizer step has as many groups as before, so there are `times` as many steps. Loading is not counted, and
    one pass and one step are made before the clock starts.
    """
    import torch

    from gift.training.ranks import distributed

    rollouts = make_rollouts(replace(shape, groups=shape.groups * times))
    with distributed() as device:
        seconds = {"reference": _reference_seconds(folder, shape, rollouts, dtype, tokens_per_batch, device)}
        trainer, close = start_trainer(folder, rollouts, dtype, tokens_per_batch)
        chosen = [list(range(first, first + shape.groups)) for first in range(0, shape.groups * times, shape.groups)]
        trainer.train_step(chosen[0], LR)
        seconds["update"] = timed(lambda: [trainer.train_step(groups, LR) for groups in chosen], device)
        close()
    return {**seconds, "num_tokens": rollouts.num_tokens, "threads": torch.get_num_threads()}


def _reference_seconds(
    folder: Path, shape: Shape, rollouts: Rollouts, dtype: str, tokens_per_batch: int, device: Any
) -> float:
    """The pass over the rollouts, after one over those of a single step; the model goes with this call."""
    model = load_logprobs(folder, dtype, device)
    reference_pass(model, make_rollouts(shape), tokens_per_batch)
    return timed(lambda: reference_pass(model, rollouts, tokens_per_batch), device)


def load_logprobs(folder: Path, dtype: str, device: Any, packing: Any = "auto") -> Any:
    """The model of the log-prob pass, as gift/training/reference/table.py loads it."""
    from gift.logprobs.tokens import TokenLogprobs
    from gift.policy.folder import PolicyFiles
    from gift.policy.open import open_policy

    return TokenLogprobs(open_policy(PolicyFiles(folder), dtype, str(device)), 1.0, packing)


def reference_pass(model: Any, rollouts: Rollouts, tokens_per_batch: int) -> object:
    """The log-probs of every completion, as gift/training/reference/table.py computes them for one part of a table."""
    from gift.logprobs.batches import row_batches
    from gift.logprobs.tokens import completion_logprobs

    prompts, completions = (Ragged.of(ids, np.int32) for ids in (rollouts.prompt_ids, rollouts.completion_ids))
    lengths = np.stack([prompts.lengths, completions.lengths], axis=1)
    size = rollouts.group_size
    groups = [list(range(first, first + size)) for first in range(0, len(lengths), size)]
    return completion_logprobs(
        model, prompts, completions, row_batches(groups, lengths, tokens_per_batch, model.layout)
    )


def timed(work: Callable[[], object], device: Any) -> float:
    """Seconds of some work, the GPU's included."""
    import torch

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start
