"""Selective activation checkpointing: what matrix products made is kept, the rest of a layer is computed again."""

from collections import deque
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import _detach_helper, _VersionWrapper, checkpoint

from gift.project.errors import UserError

WHERE = "launch.yaml: update.gradient_checkpointing: selective"
PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.linear.default)
"""Of a linear layer, however it is called; what those of attention make has the size of a row's square, and goes."""


def checkpoint_selectively(model: Any) -> None:
    """Let the decoder's layers keep, for backward, their input and the outputs of their linear layers alone.

    In backward a layer is run again with these outputs in hand, so that norms, rotary embeddings, attention and
    activations are computed twice, and matrix products once. On a CPU gradients are the same bytes. Layers need no
    training mode, as dropout stays off.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.get_decoder().modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise UserError(f"{WHERE}: not with this model: transformers names no layers of it; set it to true or false")
    for layer in layers:
        layer.forward = partial(_layer, layer.forward)


def _layer(forward: Any, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    how: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False, "context_fn": _contexts}
    return checkpoint(forward, *args, **how, **kwargs)


def _contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Of the run of a layer, and of the run again.

    torch's own (`create_selective_checkpoint_contexts`) wants every operation of the first in the second, in its order:
    under ZeRO 3 those that gather weights are others.
    """
    made: deque[Any] = deque()
    return _Keep(made), _HandOut(made)


class _Keep(TorchDispatchMode):
    """Keeps what products make, with the count of writes into it."""

    def __init__(self, made: deque[Any]) -> None:
        super().__init__()
        self.made = made

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in PRODUCTS:
            self.made.append(_VersionWrapper(_detach_helper(out)))
        return out


class _HandOut(_Keep):
    """Gives it out in its order, in place of computing it; raises where somebody wrote into it since."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS and self.made:
            return self.made.popleft().get_val(False)
        return func(*args, **(kwargs or {}))
