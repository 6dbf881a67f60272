"""Exact optimizer steps over many micro-batches and processes: the only file that knows DeepSpeed.

Rules for the caller, the same at every ZeRO stage and world size:

- All is called inside `distributed()`, and all ranks make the same calls in the same order on the same module.
- All ranks call `forward` equally often, and `backward` equally often (at least once), per optimizer step: ZeRO-2 sums
  gradients and ZeRO-3 gathers weights inside them, so an uneven count hangs. A rank without work pads with a dummy
  micro-batch: any short real input, and the loss `(0.0 * logprobs).sum()`.
- `step` uses the SUM of all losses given to `backward` since the last step, over micro-batches and ranks; nothing is
  averaged. Each `backward` follows its own `forward`; forwards under `torch.no_grad()` may stand anywhere.
"""

import math
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gift.errors import UserError

_VERBOSE = os.environ.get("GIFT_VERBOSE") == "1"  # let DeepSpeed talk
_STATES = ("weight", "exp_avg", "exp_avg_sq")
# DeepSpeed's keys that would change the step, beside those that `_config` sets.
_OURS = {"optimizer", "scheduler", "fp16", "amp", "torch_autocast", "train_batch_size", "gradient_predivide_factor"}
_OURS |= {"prescale_gradients", "sparse_gradients", "elasticity", "tensor_parallel"}


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
        if self.dtype == "bfloat16" and self.zero_stage == 0:
            raise UserError(
                "launch.yaml: update.zero_stage: 0 with update.dtype bfloat16 would sum gradients in bfloat16: "
                "use zero_stage 1"
            )
        if self.offload_optimizer and self.zero_stage == 0:
            raise UserError("launch.yaml: update.offload_optimizer needs zero_stage 1, 2 or 3, not 0")
        if self.offload_parameters and self.zero_stage != 3:
            raise UserError(f"launch.yaml: update.offload_parameters needs zero_stage 3, not {self.zero_stage}")


@dataclass(frozen=True)
class FullState:
    """What AdamW needs to continue, whole and fp32 on CPU; independent of world size, ZeRO stage and dtype."""

    step: int  # optimizer steps done so far
    tensors: dict[str, dict[str, Tensor]]  # "weight", "exp_avg", "exp_avg_sq", each by parameter name


@contextmanager
def distributed() -> Iterator[torch.device]:
    """Join the launcher's processes (torchrun, deepspeed, srun), or stand alone; yields this rank's device.

    gloo on CPU, nccl on GPU. Without a launcher the group's store is in memory: no port. May be entered again.
    """
    cuda = torch.cuda.is_available()
    if torch.distributed.is_initialized():  # an outer `distributed()` owns the group
        yield _device()
        return
    launched = _launched(cuda)
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it
    if not cuda:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if not launched or os.environ["MASTER_ADDR"] in ("127.0.0.1", "localhost"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    where: dict[str, Any] = {"device_id": _device()} if cuda else {}
    if not launched:
        where |= {"store": torch.distributed.HashStore(), "rank": 0, "world_size": 1}  # type: ignore[attr-defined]
    if cuda:
        torch.cuda.set_device(_device())
    torch.distributed.init_process_group("nccl" if cuda else "gloo", **where)
    with _quiet():
        import deepspeed

        if not cuda:
            # Else DeepSpeed compiles a shared-memory all-reduce (g++, ninja, 40 s), used by nothing but its
            # tensor-parallel inference. It has no switch; this table of usable ops is what DeepSpeed asks.
            deepspeed.ops.__compatible_ops__ = {}
        deepspeed.init_distributed()
    deepspeed.utils.logging.set_log_level_from_string("info" if _VERBOSE else "error")
    if not _VERBOSE:
        warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)  # ZeRO-3's calls
    goodbye = not launched
    try:
        yield _device()
        goodbye = True
    finally:  # after an error on one rank of many, a common goodbye could wait for ever on the others
        if goodbye:
            deepspeed.comm.destroy_process_group()
            deepspeed.comm.comm.cdb = None


class Engine:
    """A module, its AdamW and this rank's share of both; see the rules at the top of this file."""

    def __init__(self, module: nn.Module, settings: EngineSettings) -> None:
        """`module` arrives whole on every rank; under bfloat16 its fp32 weights become the master weights exactly."""
        self._params = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._shapes = {name: p.shape for name, p in self._params.items()}
        self._stage, self._max_grad_norm = settings.zero_stage, settings.max_grad_norm
        half = settings.dtype == "bfloat16"
        masters = {n: p.detach().float().cpu() for n, p in self._params.items() if half and p.dtype != torch.bfloat16}
        if not half:
            module.float()
        # Fused: no temporaries as large as the flat partition, and fast on the CPU when offloaded.
        adamw: dict[str, Any] = {"betas": settings.betas, "eps": settings.eps, "weight_decay": settings.weight_decay}
        self._adamw = torch.optim.AdamW(self._params.values(), lr=0.0, fused=True, **adamw)
        config = _config(settings, sum(p.numel() for p in self._params.values()))
        with _quiet():
            import deepspeed

            self._tensors, self._zero = deepspeed.utils, deepspeed.zero
            self._engine: Any = deepspeed.initialize(model=module, optimizer=self._adamw, config=config)[0]
        self.rank, self.world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self.device = torch.device(self._engine.device)
        self._norm = math.nan
        if self._stage == 0:
            self._adamw.register_step_pre_hook(self._clip)
        self._make_moments()
        for name, master in masters.items():
            self._tensors.safe_set_full_fp32_param(self._params[name], master.to(self.device))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's output; with gradient for a `backward`, or under `torch.no_grad()`."""
        return self._engine(*args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        """Add this micro-batch's gradient to the sum over micro-batches and ranks that the next `step` uses."""
        self._engine.backward(loss * self.world_size)  # DeepSpeed divides by the world size when it reduces

    def step(self, lr: float) -> float:
        """Clip, step with learning rate `lr`, drop the gradients; returns the global gradient norm before clipping."""
        for group in self._adamw.param_groups:
            group["lr"] = lr
        self._engine.step()
        norm = self._norm if self._stage == 0 else float(self._engine.get_global_grad_norm())
        if not math.isfinite(norm) or norm < 0:
            trouble = f"the gradient is not finite (optimizer steps: {self.steps}): this policy must not be kept"
            raise UserError(f"{trouble}; look for log-probs of -inf or a loss of NaN, or lower the learning rate")
        return norm

    @property
    def steps(self) -> int:
        """Optimizer steps done so far, those of a loaded state included."""
        return int(self._adamw.state[self._flats[0]]["step"])

    def weights(self) -> dict[str, Tensor] | None:
        """The trainable weights by name, whole, fp32, on CPU, on rank 0; None elsewhere."""
        return self._gather("weight")

    def full_state(self) -> FullState | None:
        """All that is needed to continue exactly, on rank 0 (12 bytes of memory a parameter there); None elsewhere."""
        tensors = {key: self._gather(key) for key in _STATES}
        return FullState(self.steps, {key: whole for key, whole in tensors.items() if whole}) if not self.rank else None

    def load_full_state(self, state: FullState | None) -> None:
        """Continue from `state`, given on rank 0 (None elsewhere), whatever world size, stage and dtype wrote it."""
        step = torch.zeros((), dtype=torch.int64, device=self.device)
        if state is not None:
            step.fill_(state.step)
            for key in _STATES:
                found = {name: tensor.shape for name, tensor in state.tensors.get(key, {}).items()}
                if wrong := sorted(name for name, _ in found.items() ^ self._shapes.items()):
                    raise UserError(f"state: {key} does not fit the module: missing, unknown or misshapen {wrong[0]}")
        torch.distributed.broadcast(step, 0)
        for name, param in self._params.items():
            for key in _STATES:
                value = torch.empty(self._shapes[name], dtype=torch.float32, device=self.device)
                if state is not None:
                    value.copy_(state.tensors[key][name])
                torch.distributed.broadcast(value, 0)
                self._set(param, key, value)
        if self._stage in (1, 2):
            self._engine.optimizer.update_lp_params()
        for flat in self._flats:
            self._adamw.state[flat]["step"].fill_(int(step))

    def close(self) -> None:
        """Take DeepSpeed's hooks off the module and let its buffers go."""
        self._engine.destroy()

    def _clip(self, *_: object) -> None:
        """Without ZeRO DeepSpeed clips but keeps the norm to itself, so clip here, just before AdamW's step."""
        self._norm = float(nn.utils.clip_grad_norm_(self._params.values(), self._max_grad_norm or math.inf))

    def _make_moments(self) -> None:
        """Give AdamW its zero moments now, not at the first step: a state can be read and loaded at any time."""
        optimizer = self._engine.optimizer
        flats = optimizer.fp32_partitioned_groups_flat if self._stage == 3 else self._adamw.param_groups[0]["params"]
        self._flats: list[Tensor] = list(flats)
        for flat in self._flats:
            zeros = {key: torch.zeros_like(flat, requires_grad=False) for key in ("exp_avg", "exp_avg_sq")}
            self._adamw.state[flat] = {"step": torch.zeros((), device=flat.device), **zeros}
        if self._stage in (1, 2):
            optimizer._lazy_init_hp_params_optimizer_state()  # as it does itself after its first step

    def _gather(self, key: str) -> dict[str, Tensor] | None:
        whole = {}
        for name, param in self._params.items():
            if self._stage == 0:
                tensor = param if key == "weight" else self._adamw.state[param][key]
            elif key == "weight":
                tensor = self._tensors.safe_get_full_fp32_param(param)
            else:
                tensor = self._tensors.safe_get_full_optimizer_state(param, key)
            if self.rank == 0:
                whole[name] = tensor.detach().to("cpu", torch.float32, copy=True)
        return whole if self.rank == 0 else None

    @torch.no_grad()
    def _set(self, param: Tensor, key: str, value: Tensor) -> None:
        if self._stage == 0:
            (param if key == "weight" else self._adamw.state[param][key]).copy_(value)
        elif key != "weight":
            self._tensors.safe_set_full_optimizer_state(param, value, key)
        else:
            self._tensors.safe_set_full_fp32_param(param, value)
            if self._stage == 3:  # the weights that the forward gathers are a copy of the masters
                with self._zero.GatheredParameters([param], modifier_rank=0):
                    param.copy_(value)


def _config(settings: EngineSettings, num_parameters: int) -> dict[str, Any]:
    """DeepSpeed's configuration: our keys, the user's further ones (never one of ours), then our defaults."""
    zero: dict[str, Any] = {"stage": settings.zero_stage}
    offload = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if settings.offload_optimizer:
        zero["offload_optimizer"] = offload
    if settings.offload_parameters:
        zero["offload_param"] = offload
    half = settings.dtype == "bfloat16"
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,  # `step` alone ends a sum, after however many `backward`s
        "gradient_clipping": (settings.max_grad_norm or 0.0) if settings.zero_stage else 0.0,
        "bf16": {"enabled": half, "check_grad_overflow": half},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW on the CPU too: DeepSpeed's own needs a compiler
    }
    more = dict(settings.deepspeed)
    more_zero = dict(more.pop("zero_optimization", {}))
    if taken := sorted(more.keys() & (config.keys() | _OURS)) + sorted(more_zero.keys() & zero.keys()):
        raise UserError(f"deepspeed: {taken[0]} would change the optimizer step, which gift's settings own: remove it")
    bucket = {"reduce_bucket_size": min(500_000_000, num_parameters)}  # DeepSpeed allocates all of it
    return config | more | {"zero_optimization": bucket | zero | more_zero}


def _device() -> torch.device:
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")


def _launched(cuda: bool) -> bool:
    """Whether a launcher started us. srun names ranks its own way; give them torch's names."""
    if "RANK" not in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        alone = cuda and torch.cuda.device_count() == 1  # --gpus-per-task=1: each task sees its own GPU as number 0
        os.environ["LOCAL_RANK"] = "0" if alone else os.environ["SLURM_LOCALID"]
        os.environ.update(RANK=os.environ["SLURM_PROCID"], WORLD_SIZE=os.environ["SLURM_STEP_NUM_TASKS"])
    missing = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"} - os.environ.keys()
    if "RANK" in os.environ and missing:
        raise UserError(f"RANK is set but not {', '.join(sorted(missing))}: start with torchrun, deepspeed or srun")
    return "RANK" in os.environ


@contextmanager
def _quiet() -> Iterator[None]:
    """Swallow what DeepSpeed prints and warns about while it is imported and set up."""
    with warnings.catch_warnings(), redirect_stdout(sys.stdout if _VERBOSE else StringIO()):
        warnings.simplefilter("default" if _VERBOSE else "ignore")
        yield
