"""A LoRA adapter in PEFT's words and files: where it may go on, its layers in a model, its weights, its two files."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gift.policy.folder import ADAPTER_CONFIG, Lineage, PolicyFiles
from gift.policy.settings import Lora
from gift.project.errors import UserError
from gift.project.seeds import seed_of
from gift.project.work import write_json

WEIGHTS_FILE = "adapter_model.safetensors"


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json: `r`, `lora_alpha`, `target_modules`, `base_model_name_or_path`, ... (PEFT's LoraConfig)."""
    return dict(json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8")))


def adapter_config(model: Any) -> dict[str, Any]:
    """The content of adapter_config.json for a model with an adapter."""
    config = {**model.peft_config["default"].to_dict(), "inference_mode": True}
    # A set has another order in every process.
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}


@contextmanager
def adapter_off(model: Any) -> Iterator[None]:
    """The base policy, bit for bit: the same model with its adapter passed by."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def adapter_weights(model: Any) -> dict[str, Any]:
    """The adapter's parameters, A [r, in] and B [out, r] of every module, by their names in PEFT's file."""
    return {peft_name(name): parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def peft_name(name: str) -> str:
    """What PEFT's file calls a parameter `<module>.lora_A.default.weight` of the model: without the adapter's name."""
    return f"base_model.model.{name.removesuffix('.default.weight')}.weight"


def read_weights(model: Any, folder: Path) -> dict[str, Any]:
    """The tensors of an adapter's file, which must be those that the model's adapter has, all of them and no other."""
    from safetensors.torch import load_file

    tensors = load_file(folder / WEIGHTS_FILE)
    shapes, own = ({name: tensor.shape for name, tensor in each.items()} for each in (tensors, adapter_weights(model)))
    if wrong := sorted({name for name, _ in shapes.items() ^ own.items()}):
        raise UserError(
            f"{folder}: its adapter is on other modules than update.lora.target_modules in params.yaml names "
            f"({wrong[0]}); set them back, or {merge_remedy(folder)}"
        )
    return tensors


def fill(model: Any, weights: Mapping[str, Any]) -> None:
    """Set the adapter's parameters to `weights`, by their names in PEFT's file."""
    import torch

    with torch.no_grad():
        for name, parameter in adapter_weights(model).items():
            parameter.copy_(weights[name])


def save_adapter(folder: Path, config: dict[str, Any], weights: Mapping[str, Any], dtype: str) -> None:
    """PEFT's two files: `config` (of `adapter_config`), and `weights`, named as in the model, in `dtype`."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {peft_name(name): tensor.to(getattr(torch, dtype)).contiguous() for name, tensor in weights.items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    write_json(folder / ADAPTER_CONFIG, config)


def merge_remedy(adapter: Path) -> str:
    return f"begin a project whose base.model is the folder that `gift merge {adapter} FOLDER` makes"


def check_parent(files: PolicyFiles, lineage: Lineage, lora: Lora | None) -> None:
    """Whether a round with this `update.lora` can go on from a policy: from the base, or from an adapter of its kind.

    The modules of the adapter are compared later, when the model is there (`open_policy`).
    """
    key, start = "params.yaml: update.lora", f"the round starts from {files.folder}"
    if files.adapter is None:
        if lora is not None and lineage.parent is not None:
            raise UserError(
                f"{key}: {start}, a whole model that was trained, and an adapter stands on the base policy; set it to "
                f"null, or begin a project with base.model: {files.model}"
            )
        return
    config, remedy = read_adapter_config(files.adapter), f"set it back, or {merge_remedy(files.adapter)}"
    own = {name: config[name] for name in ("r", "lora_alpha")}
    if lora is None:
        raise UserError(f"{key}: null: {start}, an adapter with {json.dumps(own)}; {remedy}")
    for name, value in own.items():
        if (wanted := lora.model_dump()[name]) != value:
            raise UserError(f"{key}.{name}: {wanted}: {start}, an adapter with {value}; {remedy}")


def new_weights(model: Any, seed: int) -> dict[str, Any]:
    """Of a new adapter, by their names in PEFT's file. Its B are 0, so that it leaves the log-probs as they are, to the
    bit. Its A are PEFT's (uniform, up to 1 / sqrt(in)), drawn from the seed and their names: the same on every rank."""
    import torch

    weights = {}
    for name, parameter in adapter_weights(model).items():
        weights[name] = torch.zeros(parameter.shape)
        if name.endswith(".lora_A.weight"):
            generator = torch.Generator().manual_seed(seed_of("lora", seed, name))
            torch.nn.init.kaiming_uniform_(weights[name], a=math.sqrt(5), generator=generator)
    return weights
