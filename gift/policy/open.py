"""The one way to open a policy: frozen in a dtype on a device, or to be trained, whole or through an adapter."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gift.policy.adapter import adapter_weights, fill, new_weights, read_weights
from gift.policy.folder import PolicyFiles, check_files, stored_in_bfloat16
from gift.policy.refusals import config_refusals, target_refusals, text_config
from gift.policy.settings import Lora
from gift.project.errors import UserError


@dataclass(frozen=True)
class Training:
    """That a policy is opened to be trained: whole (`lora` None), or an adapter, which `seed` draws if it is new."""

    lora: Lora | None
    seed: int


def open_policy(files: PolicyFiles, dtype: str, device: str = "cpu", training: Training | None = None) -> Any:
    """The causal LM of a policy in evaluation mode, on `device`, in 'float32' or 'bfloat16', with its adapter on.

    On 'meta' no weight is read: the model has shapes and configuration, and knows how its files name the weights.

    To be trained whole it comes in float32, also for bfloat16, where the engine makes its masters of these weights; but
    if it is stored in bfloat16 it is read so, and its weights stay the file's pages, which the ranks of a host share.
    To be trained through an adapter it is frozen in `dtype`; the adapter, the parent's or a new one, is in float32.
    """
    lora = training.lora if training else None
    if training and not lora and not (dtype == "bfloat16" and stored_in_bfloat16(files.model)):
        dtype = "float32"
    model = _open_model(files.model, dtype, device)
    if lora is None and files.adapter is None:
        return model
    from peft import LoraConfig, inject_adapter_in_model

    if lora is None:
        config = LoraConfig.from_pretrained(str(files.adapter))
        config.inference_mode = False
    else:
        if lora.target_modules != "all-linear":
            _check_targets(model, lora.target_modules)
        base = files.model.as_posix()  # as dvc.yaml has it: PEFT opens the folder from the project's root
        config = LoraConfig(task_type="CAUSAL_LM", base_model_name_or_path=base, **lora.model_dump())
    inject_adapter_in_model(config, model).eval()  # PEFT's layers in place of the linear ones; all else is frozen
    if training:
        for parameter in adapter_weights(model).values():
            parameter.data = parameter.data.float()
    if files.adapter:
        fill(model, read_weights(model, files.adapter))
    elif training:
        fill(model, new_weights(model, training.seed))
    return model


def _open_model(folder: Path, dtype: str, device: str) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    check_files(folder)
    common: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    config = AutoConfig.from_pretrained(folder, **common)  # with transformers' defaults, before any weight is read
    text = config.get_text_config().to_dict()
    for reason in config_refusals(text_config({**config.to_dict(), "text_config": text})):
        raise UserError(f"{folder}: {reason}")
    if device == "meta":
        common |= {"device_map": device}
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), use_safetensors=True, attn_implementation="sdpa", **common
    )
    return model.to(device).eval()


def _check_targets(model: Any, targets: list[str]) -> None:
    from torch import nn

    modules = dict(model.named_modules())
    head = model.get_output_embeddings()
    linear = {name for name, module in modules.items() if isinstance(module, nn.Linear) and module is not head}
    for reason in target_refusals(targets, modules, linear):
        raise UserError(f"params.yaml: update.lora.target_modules: {reason}")
