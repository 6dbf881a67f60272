"""Exact optimizer steps over many micro-batches and processes, by DeepSpeed.

Rules for the caller, the same at every ZeRO stage and world size:

- All is called inside `ranks.distributed()`, and all ranks make the same calls in the same order on the same module.
- All ranks call `forward` equally often, and `backward` equally often (at least once), per optimizer step: ZeRO-2 sums
  gradients and ZeRO-3 gathers weights inside them, so an uneven count hangs. A rank without work pads with a dummy
  micro-batch: any short real input, and the loss `(0.0 * logprobs).sum()`.
- `step` uses the SUM of all losses given to `backward` since the last step, over micro-batches and ranks; nothing is
  averaged. Each `backward` follows its own `forward`; forwards under `torch.no_grad()` may stand anywhere.
"""

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gift.logprobs.checkpointing import checkpoint_selectively
from gift.logprobs.head import LogprobHead
from gift.logprobs.tokens import TokenLogprobs
from gift.project.errors import UserError
from gift.training.deepspeed_config import WHERE, EngineSettings, deepspeed_config
from gift.training.memory import Checkpointing
from gift.training.ranks import own_device, quiet

KINDS = ("weight", "exp_avg", "exp_avg_sq")
"""What AdamW keeps of a parameter."""


class State(Protocol):
    """What AdamW needs to continue, in float32; independent of world size, ZeRO stage and dtype."""

    @property
    def step(self) -> int:
        """Optimizer steps done so far."""

    @property
    def shapes(self) -> Mapping[str, Mapping[str, torch.Size]]:
        """By kind, and by parameter."""

    def tensor(self, kind: str, name: str) -> Tensor:
        """Whole, on the CPU."""


class Engine:
    """A module, its AdamW and this rank's share of both; see the rules at the top of this file."""

    def __init__(self, module: nn.Module, settings: EngineSettings) -> None:
        """`module` arrives on the CPU, whole on every rank; under bfloat16 its weights become the masters exactly."""
        self._params = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._shapes = {name: p.shape for name, p in self._params.items()}
        self._stage, self._max_grad_norm = settings.zero_stage, settings.max_grad_norm
        half = settings.dtype == "bfloat16"
        # No copies: these are the tensors that came, which DeepSpeed is about to replace.
        masters = {n: p.detach() for n, p in self._params.items() if half and p.dtype != torch.bfloat16}
        # Fused: no temporaries as large as the flat partition, and fast on the CPU when offloaded.
        adamw: dict[str, Any] = {"betas": settings.betas, "eps": settings.eps, "weight_decay": settings.weight_decay}
        self._adamw = torch.optim.AdamW(self._params.values(), lr=0.0, fused=True, **adamw)
        count = sum(p.numel() for p in self._params.values())
        config = deepspeed_config(settings, count, pin_memory=torch.cuda.is_available())
        with quiet():
            import deepspeed

            self._tensors, self._zero = deepspeed.utils, deepspeed.zero
            try:
                if self._stage == 3:
                    self._partition(module, torch.bfloat16 if half else torch.float32, config)
                if not half:
                    module.float()
                self._engine: Any = deepspeed.initialize(model=module, optimizer=self._adamw, config=config)[0]
            except (AssertionError, ValueError) as error:  # its own rules for the user's keys
                if not settings.deepspeed:
                    raise
                raise UserError(f"{WHERE}: DeepSpeed refuses it: {' '.join(str(error).split())}") from None
        self.rank, self.world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        if self._stage == 0 and self.world_size == 1:
            self._engine.enable_backward_allreduce = False  # it copies all gradients, to add those of no other rank
        self.device = torch.device(self._engine.device)
        for part in module.modules():
            if isinstance(part, LogprobHead) and part.tied:
                part.tied.accumulates = True  # all gradients here come from `backward`
        self._norm = math.nan
        if self._stage == 0:
            self._adamw.register_step_pre_hook(self._clip)
        self._make_moments()
        for name, master in masters.items():
            self._set_master(self._params[name], "weight", master.to(self.device, torch.float32))

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

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Of the trainable parameters, in their order."""
        return self._shapes

    def tensor(self, kind: str, name: str) -> Tensor:
        """A trainable weight, or a moment of it, whole and in float32; a call of all ranks, and each gets it.

        It is on this rank's device, and may be what the next step changes.
        """
        param = self._params[name]
        if self._stage == 0:
            found = param if kind == "weight" else self._adamw.state[param][kind]
        elif kind == "weight":
            found = self._tensors.safe_get_full_fp32_param(param)
        else:
            found = self._tensors.safe_get_full_optimizer_state(param, kind)
        tensor: Tensor = found.detach()
        return tensor

    def load(self, state: State | None) -> None:
        """Continue from `state`, given on rank 0 (None elsewhere), whatever world size, stage and dtype wrote it.

        Tensor after tensor is read and sent: no rank holds more than one of them beside its share.
        """
        step = torch.zeros((), dtype=torch.int64, device=self.device)
        if state is not None:
            step.fill_(state.step)
            for kind in KINDS:
                found = state.shapes.get(kind, {})
                if wrong := sorted(name for name, _ in found.items() ^ self._shapes.items()):
                    raise UserError(f"state: {kind} does not fit the module: missing, unknown or misshapen {wrong[0]}")
        torch.distributed.broadcast(step, 0)
        for name, param in self._params.items():
            for kind in KINDS:
                value = torch.empty(self._shapes[name], dtype=torch.float32, device=self.device)
                if state is not None:
                    value.copy_(state.tensor(kind, name))
                torch.distributed.broadcast(value, 0)
                self._set(param, kind, value)
        if self._stage in (1, 2):
            self._engine.optimizer.update_lp_params()
        for flat in self._flats:
            self._adamw.state[flat]["step"].fill_(int(step))

    def close(self) -> None:
        """Take DeepSpeed's hooks off the module and let its buffers go."""
        self._engine.destroy()

    def _partition(self, module: nn.Module, dtype: torch.dtype, config: dict[str, Any]) -> None:
        """Cast and share out one parameter after the other, from rank 0's values.

        Left to itself DeepSpeed first casts the whole module and moves it to every GPU, where it may not fit.
        """
        share = self._zero.Init(module=nn.Module(), config_dict_or_path=config)
        for param in module.parameters():
            param.data = param.data.to(own_device(), dtype, copy=True)  # a copy: what is broadcast is written into it
            share._convert_to_zero_parameters([param])
        module.to(own_device())  # its buffers: DeepSpeed takes this for done

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

    @torch.no_grad()
    def _set(self, param: Tensor, key: str, value: Tensor) -> None:
        if self._stage == 0:
            (param if key == "weight" else self._adamw.state[param][key]).copy_(value)
            return
        self._set_master(param, key, value)
        if self._stage == 3 and key == "weight":  # the weights that the forward gathers are a copy of the masters
            with self._zero.GatheredParameters([param], modifier_rank=0):
                param.copy_(value)

    def _set_master(self, param: Any, key: str, value: Tensor) -> None:
        """Set a float32 weight or moment under ZeRO 1 to 3.

        Of a whole tensor DeepSpeed 0.19.8 cuts this rank's share without the padding that fills up the last ones at
        ZeRO 3, and fails where the ranks do not divide the tensor: so it is cut here.
        """
        set_weight = self._tensors.safe_set_full_fp32_param
        set_moment = self._tensors.safe_set_full_optimizer_state
        if self._stage == 3:
            size = param.ds_tensor.numel()
            share = value.flatten()[size * self.rank : size * (self.rank + 1)]
            value = nn.functional.pad(share, (0, size - len(share)))
            set_weight = self._tensors.safe_set_local_fp32_param
            set_moment = self._tensors.safe_set_local_optimizer_state
        if key == "weight":
            set_weight(param, value)
        else:
            set_moment(param, value, key)


def start_engine(logprobs: TokenLogprobs, settings: EngineSettings, checkpointing: Checkpointing) -> Engine:
    """An engine around a policy; with `checkpointing` it recomputes activations in the backward."""
    if checkpointing == "selective":
        checkpoint_selectively(logprobs.model)
    elif checkpointing:
        logprobs.model.gradient_checkpointing_enable({"use_reentrant": False})
        logprobs.model.train()  # transformers checkpoints in training mode only; `dropout_refusal` saw that it is safe
    return Engine(logprobs, settings)
