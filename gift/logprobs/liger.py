"""Norms and gated activations of liger-kernel in a model's layers, in place of transformers' own."""

import copy
import importlib.util
import sys
from typing import Any

import torch
from torch import Tensor

from gift.project.errors import in_a_line

OFF = ("rope", "cross_entropy", "fused_linear_cross_entropy")
"""The head is ours. Its rotary embedding writes into what a linear layer made, which selective checkpointing hands out
again, and takes the place of a function that other models of this process use."""
ON = ("rms_norm", "layer_norm", "swiglu", "geglu")
FLOOR = {torch.float32: 1e-5, torch.bfloat16: 1e-3, torch.float16: 1e-4}
"""An error that is no error: as a share of the exact value's norm."""
TOKENS = 37


def use_liger(model: Any, device: torch.device) -> str | None:
    """Give the layers of this model alone liger-kernel's norms and activations, or say why not."""
    if importlib.util.find_spec("liger_kernel") is None:
        return "liger-kernel is not installed (docs/pipeline.md has the command)"
    problem = differs(model, device)
    if problem is None:
        replace_modules(model)
    return problem


def replace_modules(model: Any) -> int:
    """How many modules have other forwards now.

    liger-kernel also replaces classes in the file of the model, for all models to come: those stay as they were.
    """
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    names = vars(sys.modules[type(model).__module__])
    before, own = dict(names), _forwards(model)
    try:
        _apply_liger_kernel_to_instance(model=model, **dict.fromkeys(OFF, False), **dict.fromkeys(ON, True))
    finally:
        names.update(before)
    return len(_forwards(model).items() - own.items())


def _forwards(model: Any) -> dict[str, Any]:
    """The modules that have a forward of their own, not of their class."""
    return {name: vars(each)["forward"] for name, each in model.named_modules() if "forward" in vars(each)}


def differs(model: Any, device: torch.device) -> str | None:
    """What is wrong with liger-kernel for such a model: there is nothing, or its errors are larger than PyTorch's.

    One layer with weights of chance, in the model's type, is held against the same in float32, without and with it.
    """
    dtype = model.get_output_embeddings().weight.dtype
    try:
        small = _small(model, device)
        exact = _run(small.float())
        plain = _run(small.to(dtype))
        if not replace_modules(small):
            return f"it has nothing for models of the kind {model.config.model_type}"
        liger = _run(small)
    except Exception as error:  # a kernel does not compile, or it takes another configuration
        return in_a_line(error)
    for name, right in exact.items():
        size = float(right.norm())
        theirs, ours = (float((each[name].float() - right).norm()) / size for each in (liger, plain))
        if not theirs <= 2 * ours + FLOOR[dtype]:
            return f"the {name} of a trial is off by {theirs:.2g} of its norm, where PyTorch's is by {ours:.2g}"
    return None


def _small(model: Any, device: torch.device) -> Any:
    """The same kind of model with one layer, hardly a vocabulary, and weights of chance that bfloat16 has."""
    config = copy.deepcopy(model.config.get_text_config())
    config.num_hidden_layers, config.vocab_size, config.pad_token_id = 1, 8, None
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:1]
    with device:
        small = type(model)(config).eval()
    small.set_attn_implementation("eager")
    noise = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for weight in small.parameters():
            weight.normal_(float(weight.dim() == 1), 0.1, generator=noise).copy_(weight.bfloat16())
    return small


def _run(small: Any) -> dict[str, Tensor]:
    """The output of its decoder, and the gradients of what goes in and of all weights."""
    decoder, noise = small.get_decoder(), torch.Generator().manual_seed(1)
    first = next(decoder.parameters())
    shape = (1, TOKENS, small.config.hidden_size)
    given, gradient = (torch.randn(shape, generator=noise).bfloat16().to(first) for _ in range(2))
    unused = decoder.get_input_embeddings().weight
    weights = {name: each for name, each in decoder.named_parameters() if each is not unused}
    out = decoder(inputs_embeds=given.requires_grad_(), use_cache=False).last_hidden_state
    made = torch.autograd.grad(out, [given, *weights.values()], gradient)
    names = ["gradient of the input", *(f"gradient of {name}" for name in weights)]
    return {"output": out.detach().float(), **{name: each.float() for name, each in zip(names, made, strict=True)}}
