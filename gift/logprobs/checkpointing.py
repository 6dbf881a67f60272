"""Selective activation checkpointing: what matrix products made is kept, the rest of a layer is computed again."""

from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from gift.project.errors import UserError

WHERE = "launch.yaml: update.gradient_checkpointing: selective"
PRODUCTS = [torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.linear.default]
"""Of a linear layer, however it is called; what those of attention make has the size of a row's square, and goes."""


def checkpoint_selectively(model: Any) -> None:
    """Let the decoder's layers keep, for backward, their input and the outputs of their linear layers alone.

    In backward a layer is run again with these outputs in hand, so that norms, rotary embeddings, attention and
    activations are computed twice, and matrix products once (torch's selective checkpointing). On a CPU gradients are
    the same bytes. Layers need no training mode, as dropout stays off.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.get_decoder().modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise UserError(f"{WHERE}: not with this model: transformers names no layers of it; set it to true or false")
    for layer in layers:
        layer.forward = partial(_layer, layer.forward)


def _policy(ctx: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in PRODUCTS else CheckpointPolicy.PREFER_RECOMPUTE


def _layer(forward: Any, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    contexts = partial(create_selective_checkpoint_contexts, _policy)
    how: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False, "context_fn": contexts}
    return checkpoint(forward, *args, **how, **kwargs)
