"""Selective activation checkpointing: what matrix products and attention made is kept, the rest is computed again."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from gift.project.errors import UserError

Forward = Callable[..., Any]
WHERE = "launch.yaml: update.gradient_checkpointing: selective"
MOST_OTHERS = 0.1
"""The share of a layer's weights that may lie outside its products: more of it would be computed twice in secret."""
ATTENTION = {
    getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}")
    for kernel in ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
}
"""The kernels of torch's attention whose backward pass needs no more than their inputs and outputs."""


def checkpoint_selectively(model: Any) -> None:
    """Let the decoder's layers keep, for backward, their input and the outputs of linear layers and attention alone.

    In backward a layer is run again, its linear layers and attention handing out what they made, so that norms, rotary
    embeddings and activations are computed twice, and what takes time once. torch's own selective checkpointing does
    the same at each of its operations, and costs time there; here only these are touched. The graph is the one
    without it, so on a CPU gradients are the same bytes. Layers need no training mode, as dropout stays off.
    """
    layers = _layers(model)
    for layer in layers:
        products = list(_products(layer))
        inside = sum(weight.numel() for product in products for weight in product.parameters())
        total = sum(weight.numel() for weight in layer.parameters())
        if total - inside > MOST_OTHERS * total:
            kind, share = type(layer).__name__, 1 - inside / total
            raise UserError(
                f"{WHERE}: not with this model: {share:.0%} of the weights of a {kind} are in no linear layer, and "
                "would be multiplied with twice; set it to true or false"
            )
        for product in products:
            product.forward = partial(_product, product, product.forward)
        layer.forward = partial(_layer, layer.forward)


def _layers(model: Any) -> list[nn.Module]:
    from transformers.modeling_layers import GradientCheckpointingLayer

    found = [module for module in model.get_decoder().modules() if isinstance(module, GradientCheckpointingLayer)]
    if not found:
        raise UserError(f"{WHERE}: not with this model: transformers names no layers of it; set it to true or false")
    return found


def _products(module: nn.Module) -> Iterator[nn.Module]:
    """The linear layers below a module; one with an adapter is one, whose parts are not told apart."""
    from transformers.pytorch_utils import Conv1D

    for child in module.children():
        if isinstance(child, (nn.Linear, Conv1D)) or isinstance(getattr(child, "base_layer", None), nn.Linear):
            yield child
        else:
            yield from _products(child)


class _Run:
    """One forward of one layer: what is kept of it, to be handed out in the same order when it is run again."""

    def __init__(self) -> None:
        self.made: deque[tuple[tuple[Any, ...], int]] = deque()  # a call's outputs; the count of writes into the first
        self.again = False

    def handed_out(self) -> tuple[Any, ...] | None:
        """What this call made in the first run; None in that run itself, and where nothing is left."""
        return self.made.popleft()[0] if self.again and self.made else None

    @contextmanager
    def first(self) -> Iterator[None]:
        with _running(self):
            yield
        if any(outputs[0]._version != version for outputs, version in self.made):
            raise UserError(
                f"{WHERE}: not with this model: it writes into what a linear layer or attention made; set it to true"
            )
        if self.made:
            self.made.pop()  # nothing in a layer needs its last product, unless a norm follows: then it is made again

    @contextmanager
    def second(self) -> Iterator[None]:
        self.again = True
        try:
            with _running(self):
                yield
        finally:
            self.made.clear()  # torch ends it where it has what it needs; a third run makes all products again


_RUN: ContextVar[_Run | None] = ContextVar("run", default=None)


@contextmanager
def _running(run: _Run) -> Iterator[None]:
    token = _RUN.set(run)
    try:
        yield
    finally:
        _RUN.reset(token)


def attended(kernel: Callable[[], tuple[Any, ...]]) -> tuple[Any, ...]:
    """What a kernel of attention makes; in a layer's second run that is what it made in the first.

    To be called below autograd, whose graph of the second run is of what is handed out.
    """
    run = _RUN.get()
    if run is None:
        return kernel()
    if kept := run.handed_out():
        return kept
    made = kernel()
    if not run.again:
        aliases = tuple(each.detach() if isinstance(each, Tensor) else each for each in made)
        run.made.append((aliases, made[0]._version))
    return made


def keeping_attention() -> AbstractContextManager[Any]:
    """For a call of torch's attention: its kernel runs once, where that is one of `ATTENTION`."""
    return nullcontext() if _RUN.get() is None else _BelowAutograd()


class _BelowAutograd(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kernel = partial(func, *args, **(kwargs or {}))
        return attended(kernel) if func.overloadpacket in ATTENTION else kernel()


def _contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    run = _Run()
    return run.first(), run.second()


def _layer(forward: Forward, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    how: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False, "context_fn": _contexts}
    return checkpoint(forward, *args, **how, **kwargs)


def _product(module: nn.Module, forward: Forward, x: Tensor) -> Tensor:
    """A linear layer's output; its backward takes the input from the layer's second run, not from the first."""
    run = _RUN.get()
    if run is None:
        return forward(x)
    place = _Place(x)
    if kept := run.handed_out():
        out: Tensor = kept[0]
        return out
    if run.again:
        with torch.no_grad():
            return forward(x).requires_grad_()
    with saved_tensors_hooks(partial(_pack, module, _address(x), place), _unpack):
        out = forward(x)
    run.made.append(((out.detach().requires_grad_(out.requires_grad),), out._version))
    return out


class _Place:
    """A product's input, saved at its place among the layer's tensors, for torch's checkpoint to bring back."""

    def __init__(self, x: Tensor) -> None:
        self.node: Any = _Save.apply(x).grad_fn  # None without gradient
        self.found: Tensor | None = None

    def tensor(self) -> Tensor:
        """For each that saved it, as torch brings it back once: with an adapter they are two. Goes with the last."""
        if self.found is None:
            self.found = self.node.saved_tensors[0]
        return self.found


class _Save(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.new_empty(())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> None:
        raise NotImplementedError("no output of it is used")


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _pack(module: nn.Module, address: int, place: _Place, tensor: Tensor) -> tuple[Any, Any]:
    """What stands in the graph for a tensor that a product saves: its input's place, a weight itself, or the tensor.

    address: where the input's storage is; the hooks live as long as the graph, and must not hold the input. Of a weight
    the storage is not held either: under ZeRO-3 that comes and goes, inside this call too, and may have others in it,
    so that a weight lies elsewhere in the next one.
    """
    layout = tensor.shape, tensor.stride()
    if _address(tensor) == address and place.node is not None:
        return place, (*layout, tensor.storage_offset())
    if _address(tensor):
        for weight in module.parameters():
            if weight.data_ptr() == tensor.data_ptr():
                return weight, (*layout, None)
    return tensor, None


def _unpack(packed: tuple[Any, Any]) -> Tensor:
    source, layout = packed
    if layout is None:
        return source
    tensor = source.tensor() if isinstance(source, _Place) else source.detach()
    return tensor.as_strided(*layout)  # without a place in the storage: where the tensor begins
