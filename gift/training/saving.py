"""What a round leaves: its policy, the proof that it opens as the one that was trained, and its training state."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gift.logprobs.tokens import ROUNDING, TokenLogprobs, completion_logprobs
from gift.policy.adapter import save_adapter
from gift.policy.folder import MODEL_CONFIGS, Lineage, PolicyFiles, copy_companions
from gift.policy.open import open_policy
from gift.project.errors import UserError
from gift.project.ragged import Ragged
from gift.project.work import whole_file
from gift.training.engine import Engine, FullState
from gift.training.learned import refuse_other_head
from gift.training.ranks import from_rank_0

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


def save_state(path: Path, state: FullState, facts: Mapping[str, Any]) -> None:
    """One safetensors file with `<kind>/<parameter>` tensors and `facts` (JSON) in its header; whole or not there."""
    tensors = {
        f"{kind}/{name}": tensor.contiguous() for kind in state.tensors for name, tensor in state.tensors[kind].items()
    }
    header = json.dumps({"optimizer_step": state.step, **facts}, sort_keys=True)
    with whole_file(path) as temporary:
        save_file(tensors, temporary, metadata={"gift": header})


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
        remedy = "remove its folder, then `dvc checkout`"
        raise UserError(f"{path}: not a readable training state ({first}); {remedy}") from None


def parents_state(optimizer: Path, parent: Lineage, names: set[str]) -> tuple[FullState, dict[str, Any]] | None:
    """The state that the round before left with its policy; None for the base, which has none.

    `names` are those of the parameters that are to go on from it.
    """
    path = optimizer / "state.safetensors"
    if not path.exists():
        if not (optimizer / "state.json").exists():
            raise UserError(
                f"{optimizer}: no optimizer state; `dvc pull {optimizer}`, or set update.optimizer_state to reset"
            )
        if parent.round:
            raise UserError(
                f"{optimizer}: belongs to the base policy, the round starts from one of round {parent.round}; `dvc "
                "checkout` brings the pair back, or set update.optimizer_state to reset"
            )
        return None
    state, facts = load_state(path)
    if facts["policy"] != parent.digest:
        raise UserError(
            f"{path}: belongs to policy {facts['policy'][:12]}, the round starts from {parent.digest[:12]}; `dvc "
            "checkout` brings the pair back, or set update.optimizer_state to reset"
        )
    refuse_other_head(path, set(state.tensors["weight"]), names)
    return state, facts


def go_on(engine: Engine, look: Callable[[], tuple[FullState, dict[str, Any]] | None]) -> dict[str, Any] | None:
    """Go on from the state that `look` finds, on rank 0 alone; returns its facts, or None where there is none."""
    found: list[FullState] = []

    def facts() -> dict[str, Any] | None:
        if (read := look()) is None:
            return None
        found.append(read[0])
        return read[1]

    known = from_rank_0(facts)
    if known is not None:
        engine.load_full_state(found[0] if found else None)
    return known
