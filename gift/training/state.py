"""Training state on disk, as safetensors only: the next policy, the optimizer state, and mid-round checkpoints."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gift.logprobs.tokens import ROUNDING, TokenLogprobs, completion_logprobs
from gift.policy.adapter import PolicyFiles, load_policy
from gift.policy.folder import MODEL_CONFIGS, copy_companions, load_model
from gift.policy.lora import save_adapter
from gift.project.errors import UserError
from gift.project.ragged import Ragged
from gift.training.engine import FullState

_LOST = "nothing was published. The model's save_pretrained does not keep its weights or configuration"


def save_state(path: Path, state: FullState, facts: Mapping[str, Any]) -> None:
    """One safetensors file with `<kind>/<parameter>` tensors and `facts` (JSON) in its header, by tmp and rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    tensors = {
        f"{kind}/{name}": tensor.contiguous() for kind in state.tensors for name, tensor in state.tensors[kind].items()
    }
    header = json.dumps({"optimizer_step": state.step, **facts}, sort_keys=True)
    save_file(tensors, temporary, metadata={"gift": header})
    os.replace(temporary, path)


def load_state(path: Path) -> tuple[FullState, dict[str, Any]]:
    """The state and facts that `save_state` wrote; a damaged file is refused by name."""
    kinds: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["gift"])
            for key in file.keys():  # noqa: SIM118 - a safe_open file is no dict
                kind, name = key.split("/", 1)
                kinds.setdefault(kind, {})[name] = file.get_tensor(key)
        return FullState(facts["optimizer_step"], kinds), facts
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"{path}: not a readable training state ({first}); remove its folder, then `dvc checkout`"
        ) from None


def save_policy(folder: Path, parent: PolicyFiles, weights: dict[str, Tensor], dtype: str, lora: Any) -> PolicyFiles:
    """The trained weights in `dtype`, as a Hugging Face folder or, of a LoRA round, as PEFT's; returns what opens it.

    `weights` are named as in `TokenLogprobs`, which holds the model as `model`. `lora` is the model with its adapter,
    or None where the whole model was trained. Tokenizer and templates are the parent's own files.
    """
    shutil.rmtree(folder, ignore_errors=True)
    own = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
    if lora is not None:
        save_adapter(folder, lora, own, dtype)
        copy_companions(parent.folder, folder, leave=MODEL_CONFIGS)
        return PolicyFiles(parent.model, folder)
    cast = {name: tensor.to(getattr(torch, dtype)) for name, tensor in own.items()}
    load_model(parent.model, dtype).save_pretrained(folder, state_dict=cast)
    copy_companions(parent.model, folder)
    return PolicyFiles(folder)


def probe(model: Any, temperature: float, prompt: Ragged, completion: Ragged) -> Tensor:
    """Log-probs [T] of one completion under a model on the CPU."""
    return torch.from_numpy(completion_logprobs(TokenLogprobs(model, temperature), prompt, completion, [[0]]).values)


def check_saved(
    files: PolicyFiles,
    weights: Mapping[str, Tensor],
    dtype: str,
    temperature: float,
    prompt: Ragged,
    completion: Ragged,
    trained: Tensor,
) -> None:
    """Open the new policy as the next stage will: it has the trained weights to the bit, and the trainer's log-probs.

    `weights` are those given to `save_policy`, `trained` the log-probs [T] of the completion, a column of one row. They
    must be the same on average only: the trainer's may come from another device, which rounds a single bfloat16 logit
    elsewhere.
    """
    model = load_policy(files, dtype)
    opened, rounded = dict(model.named_parameters()), getattr(torch, dtype)
    for name, tensor in weights.items():
        if not torch.equal(opened[name.removeprefix("model.")].to(rounded), tensor.to(rounded)):
            raise UserError(f"{files.folder}: the saved policy differs from the trained one in {name}; {_LOST}")
    gap = float((probe(model, temperature, prompt, completion) - trained.cpu()).abs().mean())
    limit = ROUNDING[rounded]
    if not gap <= limit:
        raise UserError(
            f"{files.folder}: the saved policy differs from the trained one by {gap:.3g} nats a token on a probe "
            f"(limit {limit:g}); {_LOST}"
        )
