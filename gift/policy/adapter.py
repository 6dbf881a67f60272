"""A policy of either kind: the folder of a whole model, or PEFT's adapter folder on top of the initial policy."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gift.policy.folder import Lineage, load_model, read_lineage
from gift.project.errors import UserError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"


@dataclass(frozen=True)
class PolicyFiles:
    """Where the weights of a policy lie: the folder of a whole model, and that of an adapter on top of it, if any."""

    model: Path
    adapter: Path | None = None

    @property
    def folder(self) -> Path:
        """The policy's own."""
        return self.adapter or self.model


def is_adapter(folder: Path) -> bool:
    return (folder / CONFIG_FILE).is_file() and not (folder / "config.json").exists()


def find_policy(folder: Path, initial: Path) -> tuple[PolicyFiles, Lineage]:
    """The files and the lineage of a policy; an adapter must have been trained on the policy `initial`."""
    lineage = read_lineage(folder)
    if not is_adapter(folder):
        return PolicyFiles(folder), lineage
    base = read_lineage(initial)
    if base.digest != lineage.initial:
        raise UserError(
            f"{folder}: an adapter on the base policy {lineage.initial[:12]}, but {initial} is {base.digest[:12]}; "
            "`dvc repro` trains it again on this one"
        )
    return PolicyFiles(initial, folder), lineage


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json: `r`, `lora_alpha`, `target_modules`, `base_model_name_or_path`, ... (PEFT's LoraConfig)."""
    return dict(json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")))


def load_policy(files: PolicyFiles, dtype: str, device: str = "cpu") -> Any:
    """The causal LM of a policy in evaluation mode, on `device`, in 'float32' or 'bfloat16', with its adapter on."""
    model = load_model(files.model, dtype, device)
    if files.adapter is None:
        return model
    from peft import LoraConfig

    config = LoraConfig.from_pretrained(str(files.adapter))
    config.inference_mode = False
    inject(model, config)
    fill(model, read_weights(model, files.adapter))
    return model


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


def inject(model: Any, config: Any) -> None:
    """Put PEFT's layers in place of the linear ones that the adapter targets; all else is frozen."""
    from peft import inject_adapter_in_model

    inject_adapter_in_model(config, model).eval()


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


def merge_remedy(adapter: Path) -> str:
    return f"begin a project whose base.model is the folder that `gift merge {adapter} FOLDER` makes"
