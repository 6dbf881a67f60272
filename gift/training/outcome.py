"""What a round leaves: the policy as it is saved, and the proof that it opens as the one that was trained."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gift.logprobs.tokens import ROUNDING, TokenLogprobs, completion_logprobs
from gift.policy.adapter import save_adapter
from gift.policy.files import PolicyFiles
from gift.policy.folder import MODEL_CONFIGS, copy_companions
from gift.policy.open import open_policy
from gift.project.errors import UserError
from gift.project.ragged import Ragged

_LOST = "nothing was published. The model's save_pretrained does not keep its weights or configuration"


@dataclass(frozen=True)
class Probe:
    """One completion (columns of one row), and its log-probs [T] under the trained policy, nats at `temperature`."""

    temperature: float
    prompt_ids: Ragged
    completion_ids: Ragged
    logprobs: Tensor


def save_policy(
    folder: Path, parent: PolicyFiles, weights: Mapping[str, Tensor], dtype: str, adapter: dict[str, Any] | None
) -> PolicyFiles:
    """The trained weights in `dtype`, as a Hugging Face folder or, of a LoRA round, as PEFT's; returns what opens it.

    `weights` are named as in `TokenLogprobs`, which holds the model as `model`. `adapter` is the config of the adapter
    (`adapter_config`), or None where the whole model was trained. Tokenizer and templates are the parent's own files.
    """
    shutil.rmtree(folder, ignore_errors=True)
    own = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
    if adapter is not None:
        save_adapter(folder, adapter, own, dtype)
        copy_companions(parent.folder, folder, leave=MODEL_CONFIGS)
        return PolicyFiles(parent.model, folder)
    cast = {name: tensor.to(getattr(torch, dtype)) for name, tensor in own.items()}
    open_policy(PolicyFiles(parent.model), dtype).save_pretrained(folder, state_dict=cast)
    copy_companions(parent.model, folder)
    return PolicyFiles(folder)


def check_saved(files: PolicyFiles, weights: Mapping[str, Tensor], dtype: str, probe: Probe) -> None:
    """Open the new policy as the next stage will: it has the trained weights to the bit, and the trainer's log-probs.

    `weights` are those given to `save_policy`. The log-probs must be the same on average only: the trainer's may come
    from another device, which rounds a single bfloat16 logit elsewhere.
    """
    model = open_policy(files, dtype)
    opened, rounded = dict(model.named_parameters()), getattr(torch, dtype)
    for name, tensor in weights.items():
        if not torch.equal(opened[name.removeprefix("model.")].to(rounded), tensor.to(rounded)):
            raise UserError(f"{files.folder}: the saved policy differs from the trained one in {name}; {_LOST}")
    logprobs = TokenLogprobs(model, probe.temperature)
    found = torch.from_numpy(completion_logprobs(logprobs, probe.prompt_ids, probe.completion_ids, [[0]]).values)
    gap = float((found - probe.logprobs.cpu()).abs().mean())
    limit = ROUNDING[rounded]
    if not gap <= limit:
        raise UserError(
            f"{files.folder}: the saved policy differs from the trained one by {gap:.3g} nats a token on a probe "
            f"(limit {limit:g}); {_LOST}"
        )
