"""DeepSpeed's configuration of an update: what our settings make of it, which further keys pass, which are refused.

DeepSpeed ignores a top-level key that it does not know without a word, and has many that would change the optimizer
step. So this is a list of what passes; tests/test_deepspeed.py holds it against DeepSpeed's own.
"""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gift.project.errors import UserError
from gift.training.settings import Update, UpdateLaunch

WHERE = "launch.yaml: update.deepspeed"
BUCKET = 500_000_000
"""Gradients that DeepSpeed shares out at once, as long as `reduce_bucket_size` is not set."""


# Keys that say how the same step is computed, or what is measured and printed. A dict is a section.
PASSES: dict[str, Any] = {
    **dict.fromkeys(("steps_per_print", "wall_clock_breakdown", "memory_breakdown", "dump_state", "disable_python_gc")),
    **dict.fromkeys(("tensorboard", "wandb", "comet", "csv_monitor", "comms_logger")),
    "timers": dict.fromkeys(("throughput",)),
    "flops_profiler": dict.fromkeys(
        ("enabled", "recompute_fwd_factor", "profile_step", "module_depth", "top_modules", "detailed", "output_file")
    ),
    "zero_optimization": {
        **dict.fromkeys(("contiguous_gradients", "reduce_scatter", "reduce_bucket_size", "overlap_comm")),
        **dict.fromkeys(("use_multi_rank_bucket_allreduce", "allgather_partitions", "allgather_bucket_size")),
        **dict.fromkeys(("parameter_alignment", "ignore_unused_parameters")),
        **dict.fromkeys(("sub_group_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold")),
        **dict.fromkeys(("stage3_model_persistence_threshold", "stage3_max_live_parameters")),
        **dict.fromkeys(("stage3_max_reuse_distance", "stage3_module_granularity_threshold")),
        **dict.fromkeys(("stage3_use_all_reduce_for_fetch_params", "stage3_allgather_sequential")),
        **dict.fromkeys(("zero_hpz_partition_size", "memory_efficient_linear", "override_module_apply", "leaf_module")),
        **dict.fromkeys(("log_trace_cache_warnings", "enable_sanity_checks")),
        "offload_optimizer": dict.fromkeys(("pin_memory",)),
        "offload_param": dict.fromkeys(("pin_memory",)),
    },
}

_PRECISION = "params.yaml: update.dtype"
_MICRO_BATCH = "launch.yaml: update.tokens_per_batch"
_OFFLOAD = "launch.yaml: update.offload_{}: true (CPU memory; NVMe is not supported)"
# Ours, under another name.
ELSEWHERE = {
    "train_batch_size": "params.yaml: update.groups_per_step",
    "train_micro_batch_size_per_gpu": _MICRO_BATCH,
    "gradient_accumulation_steps": _MICRO_BATCH,
    "managed_gradient_accumulation": _MICRO_BATCH,
    "gradient_clipping": "params.yaml: update.max_grad_norm",
    "optimizer": "params.yaml: update.lr, betas, eps and weight_decay",
    "scheduler": "params.yaml: update.lr_schedule, schedule_steps, min_lr_ratio and warmup_steps",
    **dict.fromkeys(("bf16", "bfloat16", "fp16", "amp", "torch_autocast", "data_types"), _PRECISION),
    "activation_checkpointing": "launch.yaml: update.gradient_checkpointing",
    "checkpoint": "launch.yaml: update.checkpoint_every_steps",
    "log_level": "GIFT_VERBOSE=1 in the environment",
    "zero_optimization.stage": "launch.yaml: update.zero_stage",
    "zero_optimization.cpu_offload": _OFFLOAD.format("optimizer"),
    "zero_optimization.cpu_offload_param": _OFFLOAD.format("parameters"),
    "zero_optimization.offload_optimizer.device": _OFFLOAD.format("optimizer"),
    "zero_optimization.offload_param.device": _OFFLOAD.format("parameters"),
}


@dataclass(frozen=True)
class EngineSettings:
    """AdamW and how it is spread. `max_grad_norm` None: no clipping. `deepspeed`: more keys of DeepSpeed's config."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float | None = 1.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    zero_stage: Literal[0, 1, 2, 3] = 0
    offload_optimizer: bool = False
    offload_parameters: bool = False
    deepspeed: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if problems := list(self._problems()):
            raise UserError("\n       ".join(problems))

    def _problems(self) -> Iterator[str]:
        """A line for each impossible combination and each key that does not pass."""
        if self.dtype == "bfloat16" and self.zero_stage == 0:
            yield (
                "launch.yaml: update.zero_stage: 0 with update.dtype bfloat16 would sum gradients in bfloat16: "
                "use zero_stage 1"
            )
        if self.offload_optimizer and self.zero_stage == 0:
            yield "launch.yaml: update.offload_optimizer: needs zero_stage 1, 2 or 3, not 0"
        if self.offload_parameters and self.zero_stage != 3:
            yield f"launch.yaml: update.offload_parameters: needs zero_stage 3, not {self.zero_stage}"
        yield from key_problems(self.deepspeed)
        zero = self.deepspeed.get("zero_optimization", {})
        for key, wanted in self.offloads.items():
            if isinstance(zero, Mapping) and key in zero and not wanted:
                switch = ELSEWHERE[f"zero_optimization.{key}.device"]
                yield f"{WHERE}.zero_optimization.{key}: is not switched on; use {switch}"

    @property
    def offloads(self) -> dict[str, bool]:
        """DeepSpeed's names of the two kinds of offload, and whether we want them."""
        return {"offload_optimizer": self.offload_optimizer, "offload_param": self.offload_parameters}

    def bytes_of_a_step(self, num_trained: int, largest: int, batch: int) -> int:
        """What comes to `bytes_a_rank` while a step is made: a batch's activations; or, when it has passed, the largest
        of the gradients in float32. In bfloat16 there are gradients of the weights' type besides, from ZeRO 2 on no
        more of them than two of DeepSpeed's buckets hold."""
        if self.dtype == "float32":
            return batch
        gradients = num_trained if self.zero_stage < 2 else min(num_trained, 2 * BUCKET)
        return 2 * gradients + max(batch, 4 * largest)

    def bytes_a_rank(self, num_parameters: int, num_trained: int, world: int) -> int:
        """Weights (shared out at ZeRO 3), float32 gradients (from 2 on), Adam's state and masters (from 1 on)."""
        half = self.dtype == "bfloat16"
        state = num_trained * (12 if half else 8) * (not self.offload_optimizer)
        parts = ((num_parameters * (2 if half else 4), 3), (num_trained * 4, 2), (state, 1))
        return sum(size // world if self.zero_stage >= least else size for size, least in parts)


def engine_settings(settings: Update, launch: UpdateLaunch) -> EngineSettings:
    """What the two files say about the engine; impossible combinations and DeepSpeed keys are refused here."""
    by_dtype: Literal[0, 1] = 1 if settings.dtype == "bfloat16" else 0
    return EngineSettings(
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        dtype=settings.dtype,
        zero_stage=by_dtype if launch.zero_stage is None else launch.zero_stage,
        offload_optimizer=launch.offload_optimizer,
        offload_parameters=launch.offload_parameters,
        deepspeed=launch.deepspeed,
    )


def key_problems(keys: Mapping[str, Any], passing: dict[str, Any] = PASSES, section: str = "") -> Iterator[str]:
    """A line for each key that does not pass, naming the setting of ours or the spelling meant."""
    for key, value in keys.items():
        name = f"{section}{key}"
        if name in ELSEWHERE:
            yield f"{WHERE}.{name}: is ours to set; use {ELSEWHERE[name]}"
        elif key not in passing:
            close = difflib.get_close_matches(str(key), passing, n=1, cutoff=0.8)
            meant = f"did you mean '{close[0]}'?" if close else "docs/pipeline.md lists what passes"
            yield (
                f"{WHERE}.{name}: does not pass: DeepSpeed does not know it, or it would change the optimizer step or "
                f"do nothing here; {meant}"
            )
        elif passing[key] and not isinstance(value, Mapping):
            yield f"{WHERE}.{name}: {value!r}: must be a map of DeepSpeed's keys"
        elif passing[key]:
            yield from key_problems(value, passing[key], f"{name}.")


def deepspeed_config(settings: EngineSettings, num_parameters: int, pin_memory: bool) -> dict[str, Any]:
    """The dict that DeepSpeed is given: our keys, the user's further ones (never one of ours), then our defaults."""
    half = settings.dtype == "bfloat16"
    more = dict(settings.deepspeed)
    zero: dict[str, Any] = {"reduce_bucket_size": min(500_000_000, num_parameters)}  # DeepSpeed allocates all of it
    zero |= dict(more.pop("zero_optimization", {}))
    for key, wanted in settings.offloads.items():
        if wanted:
            zero[key] = {"pin_memory": pin_memory, **zero.get(key, {}), "device": "cpu"}
    return {
        **more,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,  # `step` alone ends a sum, after however many `backward`s
        "gradient_clipping": (settings.max_grad_norm or 0.0) if settings.zero_stage else 0.0,
        "bf16": {"enabled": half, "check_grad_overflow": half},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW on the CPU too: DeepSpeed's own needs a compiler
        "zero_optimization": {**zero, "stage": settings.zero_stage},
    }
